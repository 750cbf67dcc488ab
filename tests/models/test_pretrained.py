"""Published weights: found in the caches of timm and torchvision, refused in one line where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillroom.errors import InputError
from stillroom.models.create import ModelSpec, create_model
from stillroom.models.pretrained import published

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

TIMM, TORCHVISION = "timm:test_resnet@pretrained", "torchvision:shufflenet_v2_x0_5@pretrained"


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no way to the network: the hub is told so, everything else meets a closed port."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    return tmp_path


def put_timm(folder: Path) -> dict[str, torch.Tensor]:
    """Lay weights where the hub's client looks for them."""
    state: dict[str, torch.Tensor] = timm.create_model("test_resnet").state_dict()
    place = folder / "hub" / "models--timm--test_resnet.r160_in1k"
    (place / "snapshots" / "1").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1")
    save_file(state, place / "snapshots" / "1" / "model.safetensors")
    return state


def put_torchvision(folder: Path) -> dict[str, torch.Tensor]:
    """Lay weights where torch's hub looks for them."""
    weights = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    state: dict[str, torch.Tensor] = torchvision.models.shufflenet_v2_x0_5().state_dict()
    place = folder / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(state, place / weights.url.rpartition("/")[2])
    return state


@pytest.mark.parametrize("spec", [TIMM, TORCHVISION])
def test_weights_that_cannot_be_fetched_are_refused_in_one_line_with_the_mend(spec: str) -> None:
    name = spec.removesuffix("@pretrained")
    with pytest.raises(InputError, match=f"weights of {name} cannot be loaded .*; .* connect .* {name}@FILE") as caught:
        create_model(spec, num_classes=10, in_channels=3, image_size=32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [TIMM, TORCHVISION])
def test_published_weights_are_loaded_whole_for_their_own_classes(spec: str, no_network: Path) -> None:
    state = (put_timm if spec == TIMM else put_torchvision)(no_network)
    model = create_model(spec, num_classes=1000, in_channels=3, image_size=32)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("spec", [TIMM, TORCHVISION])
def test_for_other_classes_all_but_the_head_is_loaded(spec: str, no_network: Path) -> None:
    state = (put_timm if spec == TIMM else put_torchvision)(no_network)
    model = create_model(spec, num_classes=7, in_channels=3, image_size=32)
    fresh = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert fresh == {"fc.weight", "fc.bias"}
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_timm_adapts_its_first_layer_to_grey_images_and_torchvision_refuses_them(no_network: Path) -> None:
    put_timm(no_network)
    put_torchvision(no_network)
    assert create_model(TIMM, num_classes=7, in_channels=1, image_size=32)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(InputError, match="take 3 channels, the images have 1"):
        create_model(TORCHVISION, num_classes=7, in_channels=1, image_size=32)


@pytest.mark.parametrize("spec", [TIMM, TORCHVISION])
def test_published_weights_say_their_classes_and_normalisation(spec: str) -> None:
    parsed = ModelSpec.parse(spec)
    about = published(parsed.source, parsed.name)
    assert len(set(about.classes)) == 1000
    assert about.classes[:2] == ("tench", "goldfish")
    assert len(about.mean) == len(about.std) == 3


def test_normalisation_is_that_of_the_weights_and_not_a_constant() -> None:
    assert published("timm", "vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert published("torchvision", "resnet18").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet20@pretrained", "nobody publishes weights of 'resnet20'; write resnet20@weights.safetensors"),
        ("a.b:net@pretrained", "nobody publishes weights of 'a.b:net'"),
        ("timm:resnet18d_no@pretrained", "unknown timm model 'resnet18d_no'; did you mean 'resnet18d'"),
        ("torchvision:resnet19@pretrained", "unknown torchvision model 'resnet19'; did you mean"),
    ],
)
def test_names_without_published_weights_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_model(spec, num_classes=10, in_channels=3, image_size=32)
