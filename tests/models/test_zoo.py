"""The CIFAR zoo: the specification's counts and taps, any image size, taps that hooks can read, trained weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models.zoo import ZOO, create, names
from stillroom.models.zoo._base import ZooNet
from stillroom.models.zoo.resnet import PaddedSubsampling

# Channels of tap 0 (stem), taps 1..L, and the sides of their maps at 32×32.
Taps = tuple[tuple[int, ...], tuple[int, ...]]
THREE = (32, 32, 16, 8)
RESNET: Taps = ((16, 16, 32, 64), THREE)
DOUBLE: Taps = ((16, 32, 64, 128), THREE)
FOURFOLD: Taps = ((32, 64, 128, 256), THREE)
VGG: Taps = ((64, 128, 256, 512, 512), (32, 16, 8, 4, 4))

# Specification, table of section 8: parameters at 100 classes, taps, size of the pooled vector.
SPECIFIED: dict[str, tuple[int, Taps, int]] = {
    "resnet8": (83_892, RESNET, 64),
    "resnet14": (181_108, RESNET, 64),
    "resnet20": (278_324, RESNET, 64),
    "resnet32": (472_756, RESNET, 64),
    "resnet38": (569_972, RESNET, 64),
    "resnet44": (667_188, RESNET, 64),
    "resnet56": (861_620, RESNET, 64),
    "resnet110": (1_736_564, RESNET, 64),
    "resnet116": (1_833_780, RESNET, 64),
    "resnet14x2": (703_732, DOUBLE, 128),
    "resnet38x2": (2_255_604, DOUBLE, 128),
    "resnet110x2": (6_911_220, DOUBLE, 128),
    "resnet8x4": (1_233_540, FOURFOLD, 256),
    "resnet14x4": (2_783_620, FOURFOLD, 256),
    "resnet32x4": (7_433_860, FOURFOLD, 256),
    "resnet38x4": (8_983_940, FOURFOLD, 256),
    "wrn_16_1": (180_916, RESNET, 64),
    "wrn_16_2": (703_284, DOUBLE, 128),
    "wrn_40_1": (569_780, RESNET, 64),
    "wrn_40_2": (2_255_156, DOUBLE, 128),
    "vgg8": (3_965_028, VGG, 512),
    "vgg11": (9_277_284, VGG, 512),
    "vgg13": (9_462_180, VGG, 512),
    "vgg16": (14_774_436, VGG, 512),
    "vgg19": (20_086_692, VGG, 512),
    "mobilenetv2_half": (812_836, ((16, 12, 16, 48, 160), (16, 16, 8, 4, 2)), 1280),
    "mobilenetv2": (2_353_060, ((32, 24, 32, 96, 320), (16, 16, 8, 4, 2)), 1280),
    "shufflenet_v1": (949_258, ((24, 240, 480, 960), (32, 16, 8, 4)), 960),
    "shufflenet_v2": (1_355_528, ((24, 116, 232, 464), (32, 16, 8, 4)), 1024),
    "shufflenet_v2_x1_5": (2_580_548, ((24, 176, 352, 704), (32, 16, 8, 4)), 1024),
    "resnet18_cifar": (11_220_132, ((64, 64, 128, 256, 512), (32, 32, 16, 8, 4)), 512),
    "resnet50_cifar": (23_705_252, ((64, 256, 512, 1024, 2048), (32, 32, 16, 8, 4)), 2048),
}
# Parameters at 10 classes, from the README of the trained networks; a network of 6n+2 layers has 97 216 · (n - 3) more
# than the one of 20 layers (six convolutions and batch normalisations per step of n).
OPTION_A = {
    "resnet20_a": 269_722,
    "resnet32_a": 464_154,
    "resnet44_a": 658_586,
    "resnet56_a": 853_018,
    "resnet110_a": 269_722 + 97_216 * 15,
}
ONE_PER_KIND = (
    "resnet8",
    "resnet8x4",
    "resnet20_a",
    "resnet18_cifar",
    "resnet50_cifar",
    "wrn_16_1",
    "vgg8",
    "mobilenetv2_half",
    "shufflenet_v1",
    "shufflenet_v2",
)


def on_meta(name: str, *, num_classes: int = 100, in_channels: int = 3) -> ZooNet:
    with torch.device("meta"):
        return create(name, num_classes=num_classes, in_channels=in_channels).eval()


def seeded(name: str, *, num_classes: int = 7, in_channels: int = 3) -> ZooNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create(name, num_classes=num_classes, in_channels=in_channels).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tapped(net: ZooNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits and what passed at each tap path; fail if a tap ran other than once or was written into."""
    paths = net.tap_paths()
    assert paths.stem is not None
    wanted = (paths.stem, *paths.stages, *paths.preact, f"{paths.classifier}:input")
    passed: dict[str, list[tuple[Tensor, int]]] = {path: [] for path in wanted}

    def listen(path: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            value = inputs[0] if path.endswith(":input") else output
            passed[path].append((value, value._version))

        return net.get_submodule(path.removesuffix(":input")).register_forward_hook(hook)

    handles = [listen(path) for path in wanted]
    logits = net(x)
    for handle in handles:
        handle.remove()
    for path, records in passed.items():
        assert len(records) == 1, f"{path} ran {len(records)} times"
        assert records[0][0]._version == records[0][1], f"{path} was written into"
    return logits, {path: records[0][0] for path, records in passed.items()}


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_zoo_holds_exactly_the_specified_networks() -> None:
    assert set(names()) == set(ZOO) == set(SPECIFIED) | set(OPTION_A)


@pytest.mark.parametrize("name", SPECIFIED)
def test_parameters_are_exactly_the_specified_ones(name: str) -> None:
    parameters, _, pooled = SPECIFIED[name]
    assert count(on_meta(name)) == parameters
    assert count(on_meta(name, num_classes=10)) == parameters - 90 * (pooled + 1)


@pytest.mark.parametrize("name", OPTION_A)
def test_option_a_networks_have_the_recorded_number_of_parameters(name: str) -> None:
    assert count(on_meta(name, num_classes=10)) == OPTION_A[name]


@pytest.mark.parametrize("name", ZOO)
def test_taps_have_the_specified_shapes_and_run_once(name: str) -> None:
    channels, sides = SPECIFIED[name][1] if name in SPECIFIED else RESNET
    pooled_size = SPECIFIED[name][2] if name in SPECIFIED else 64
    shapes = [(2, c, side, side) for c, side in zip(channels, sides, strict=True)]
    net = on_meta(name)
    paths = net.tap_paths()
    logits, seen = tapped(net, torch.zeros(2, 3, 32, 32, device="meta"))
    assert paths.stem is not None
    assert [seen[path].shape for path in (paths.stem, *paths.stages)] == shapes
    assert seen[f"{paths.classifier}:input"].shape == (2, pooled_size)
    assert [seen[path].shape for path in paths.preact] == (shapes[1:] if paths.preact else [])
    assert logits.shape == (2, 100)


def test_only_mobilenets_have_no_pre_activation_variants() -> None:
    without = [name for name in ZOO if not on_meta(name).tap_paths().preact]
    assert without == ["mobilenetv2_half", "mobilenetv2"]


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 9, 15), (3, 64, 64)], ids=str)
@pytest.mark.parametrize("name", ONE_PER_KIND)
def test_any_image_of_at_least_8x8_fits(name: str, size: tuple[int, int, int]) -> None:
    net = on_meta(name, num_classes=5, in_channels=size[0])
    x = torch.zeros(2, *size, device="meta")
    assert net(x).shape == (2, 5)


@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2"])
def test_logits_differ_between_images_of_every_size(name: str, size: tuple[int, int, int]) -> None:
    logits = seeded(name, in_channels=size[0])(images(2, *size))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("side", "expected"), [(32, 4), (48, 6), (64, 4), (96, 6)])
def test_vgg_pools_after_block_3_from_64_pixels_on(side: int, expected: int) -> None:
    features = on_meta("vgg8").forward_features(torch.zeros(1, 3, side, side, device="meta"))
    assert features.shape == (1, 512, expected, expected)


@pytest.mark.parametrize("name", ONE_PER_KIND)
def test_forward_is_the_head_of_the_features_which_are_the_last_tap(name: str) -> None:
    net, x = seeded(name), images(2, 3, 16, 16)
    paths = net.tap_paths()
    logits, seen = tapped(net, x)
    features = net.forward_features(x)
    assert torch.equal(net.forward_head(features), logits)
    assert torch.equal(features, seen[paths.stages[-1]])
    classifier = net.get_submodule(paths.classifier or "")
    assert torch.equal(classifier(seen[f"{paths.classifier}:input"]), logits)


@pytest.mark.parametrize("name", [name for name in ONE_PER_KIND if not name.startswith("mobilenet")])
def test_pre_activation_taps_are_what_the_last_activation_reads(name: str) -> None:
    net = seeded(name)
    paths = net.tap_paths()
    _, seen = tapped(net, images(2, 3, 16, 16))
    for stage, preact in zip(paths.stages, paths.preact, strict=True):
        if name.startswith("wrn"):  # the batch normalisation that reads the stage's raw sum
            assert torch.equal(net.get_submodule(preact)(seen[stage]), seen[preact])
        else:
            activated = seen[preact].relu()
            if name.startswith("shufflenet_v2"):
                activated = nn.functional.channel_shuffle(activated, 2)
            assert torch.equal(activated, seen[stage])
        assert (seen[preact] < 0).any()


@pytest.mark.parametrize("name", ONE_PER_KIND)
def test_gradients_reach_every_parameter_and_no_tap_is_written_into(name: str) -> None:
    net = seeded(name).train()
    logits, _ = tapped(net, images(4, 3, 16, 16))
    logits.square().sum().backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert net.get_submodule("linear").weight.grad.abs().sum() > 0
    assert next(net.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "mobilenetv2", "resnet18_cifar", "resnet20_a"])
def test_convolutions_start_at_the_specified_spread(name: str) -> None:
    for module in seeded(name).modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            # Standard error of a standard deviation over n draws is σ/√(2n); five of them.
            margin = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=margin)
            assert module.bias is None or not module.bias.any()


def test_classifiers_start_as_specified() -> None:
    assert not seeded("wrn_16_1").linear.bias.any()
    for name in ("vgg8", "mobilenetv2_half"):
        linear = seeded(name).linear
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not linear.bias.any()
    assert seeded("resnet8").linear.bias.any()


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_evenly() -> None:
    x = images(2, 4, 5, 5)
    out = PaddedSubsampling(4, 8, 2)(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, 0::2, 0::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown zoo network 'resnet8x5'; did you mean 'resnet8x4'\?"):
        create("resnet8x5", num_classes=10)


@pytest.mark.parametrize(("num_classes", "in_channels"), [(0, 3), (10, 0)])
def test_empty_networks_are_refused(num_classes: int, in_channels: int) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        create("resnet8", num_classes=num_classes, in_channels=in_channels)


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet20-jpeg", "resnet56-jpeg"])
def test_trained_cifar10_networks_load_strictly(file: str, shared_data: Path) -> None:
    weights = shared_data / "cifar10-resnets" / f"{file}.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    net = seeded(f"{file.removesuffix('-jpeg')}_a", num_classes=10)
    before = net(images(2, 3, 32, 32))
    net.load_state_dict(load_file(weights), strict=True)
    after = net(images(2, 3, 32, 32))
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
