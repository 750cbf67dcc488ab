"""The deployed SimKD student: same answers as its parts, nothing left that it does not use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models import zoo
from stillroom.models.composed import Projector, ReusedClassifier
from stillroom.models.create import create_model
from stillroom.models.signals import TapPaths
from stillroom.models.taps import Tapped, find_taps

CLASSES = 5


def images(size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def compose(spec: str, size: int, *, pool_size: int | None = None) -> tuple[nn.Module, ReusedClassifier, Tensor]:
    """Return the student, the composed network and what the parts give by hand."""
    student = create_model(spec, num_classes=3, in_channels=3, image_size=size).eval()
    x = images(size)
    tapped = Tapped(student, TapPaths((find_taps(student, x).stages[-1],)), {"stages"}, sample=x)
    with torch.no_grad():
        features = tapped(x).stages[0]
    projector, classifier = Projector(features.shape[1], 8).eval(), nn.Linear(8, CLASSES)
    composed = ReusedClassifier(student, tapped.paths.stages[0], projector, classifier, sample=x, pool_size=pool_size)
    if pool_size is not None and features.shape[2] > pool_size:
        features = F.adaptive_avg_pool2d(features, pool_size)
    return student, composed.eval(), classifier(projector(features).mean((2, 3))).detach()


# Parameters of the student that its last map needs: everything but the modules named here.
UNUSED = {
    "resnet8": ("linear",),
    "wrn_16_1": ("bn", "linear"),
    "vgg8": ("linear",),
    "mobilenetv2_half": ("head", "linear"),
    "shufflenet_v2": ("head", "linear"),
    "timm:resnet18": ("fc",),
    "timm:mobilenetv3_small_050": ("conv_head", "classifier"),
    "timm:convnext_atto": ("head",),
    "torchvision:resnet18": ("fc",),
    "torchvision:mobilenet_v3_small": ("classifier",),
    "torchvision:vgg11_bn": ("classifier",),
    "timm:vit_tiny_patch16_224": ("norm", "head"),
    "torchvision:vit_b_16": ("encoder.ln", "heads"),
}


@pytest.mark.parametrize("spec", UNUSED)
def test_the_composed_network_is_its_parts_and_no_more(spec: str) -> None:
    student, composed, expected = compose(spec, 32)
    with torch.no_grad():
        torch.testing.assert_close(composed(images(32)), expected)
    used = {name for name in student.state_dict() if not name.startswith(tuple(f"{part}." for part in UNUSED[spec]))}
    assert len(used) < len(student.state_dict())
    prefix = "backbone.model."
    assert {name.removeprefix(prefix) for name in composed.state_dict() if name.startswith(prefix)} == used


def test_composing_leaves_the_parts_as_they_were() -> None:
    student = zoo.create("resnet8", num_classes=3).train()
    projector, classifier = Projector(64, 8), nn.Linear(8, CLASSES).requires_grad_(False)
    composed = ReusedClassifier(student, student.tap_paths().stages[-1], projector, classifier, sample=images(8))
    assert isinstance(student.linear, nn.Linear)
    assert student.training
    assert projector.training
    nn.init.zeros_(composed.classifier.weight)
    assert classifier.weight.abs().sum() > 0


def test_running_statistics_survive_composing() -> None:
    student = zoo.create("resnet8", num_classes=3).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    composed = ReusedClassifier(
        student, student.tap_paths().stages[-1], Projector(64, 8), nn.Linear(8, CLASSES), sample=images(8)
    )
    for key, value in composed.backbone.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(("pool_size", "kept"), [(None, None), (4, 4), (8, None), (16, None)])
def test_only_a_larger_map_is_pooled_to_the_teachers(pool_size: int | None, kept: int | None) -> None:
    _, composed, expected = compose("resnet8", 32, pool_size=pool_size)  # its last map is 8×8
    assert composed.pool_size == kept
    with torch.no_grad():
        torch.testing.assert_close(composed(images(32)), expected)


def test_the_composed_network_can_teach() -> None:
    _, composed, expected = compose("resnet8", 8)
    signals = Tapped(composed, find_taps(composed, images(8)), {"stages", "pooled"})(images(8))
    torch.testing.assert_close(signals.logits, expected)
    torch.testing.assert_close(composed.classifier(signals.stages[-1].mean((2, 3))), expected)


@pytest.mark.parametrize("spec", ["resnet8", "torchvision:resnet18"])
def test_the_composed_network_compiles(spec: str) -> None:
    _, composed, expected = compose(spec, 32)
    compiled = torch.compile(composed, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(32)), expected)


@pytest.mark.parametrize("spec", ["resnet8", "torchvision:resnet18"])
def test_the_composed_network_exports(spec: str) -> None:
    _, composed, expected = compose(spec, 32)
    exported = torch.export.export(composed, (images(32),))
    torch.testing.assert_close(exported.module()(images(32)), expected)


def test_layers_that_cannot_be_left_out_stay() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Conv2d(3, 4, 3)
            self.extra = nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc((self.extra(self.map(images)) * self.extra.weight.mean()).mean((2, 3)))

    composed = ReusedClassifier(Reaching(), "map", Projector(4, 8), nn.Linear(8, 2), sample=images(8))
    left = {name.split(".")[2] for name in composed.state_dict() if name.startswith("backbone.")}
    assert left == {"map", "extra"}


@pytest.mark.parametrize(
    ("projector", "classifier", "message"),
    [
        (Projector(64, 8), nn.Linear(9, 2), "classifier takes 9 features, the projector gives 8"),
        (Projector(32, 8), nn.Linear(8, 2), "gives 64 channels, the projector takes 32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(projector: Projector, classifier: nn.Linear, message: str) -> None:
    student = zoo.create("resnet8", num_classes=3)
    with pytest.raises(InputError, match=message):
        ReusedClassifier(student, student.tap_paths().stages[-1], projector, classifier, sample=images(8))


@pytest.mark.parametrize(("student", "teacher", "factor"), [(256, 256, 2), (64, 100, 3), (7, 9, 4)])
def test_the_projector_has_the_papers_parameters(student: int, teacher: int, factor: int) -> None:
    inner = teacher // factor
    expected = student * inner + 9 * inner**2 + inner * teacher + 2 * (2 * inner + teacher)
    assert sum(p.numel() for p in Projector(student, teacher, factor).parameters()) == expected


@pytest.mark.parametrize("factor", [0, -1, 9])
def test_a_factor_that_leaves_no_channel_is_refused(factor: int) -> None:
    with pytest.raises(InputError, match=r"factor must lie in 1\.\.8"):
        Projector(4, 8, factor)
