"""Networks by specification: what is built, what is refused and in which words."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models.create import ModelSpec, classes_in_weights, create_model

FACTORY = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(192, num_classes))

def plain():
    return Net(4)

def sized(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def free(**options):
    return Net(options["num_classes"])

def wrong():
    return "a network"

class Broken(Net):
    def forward(self, images):
        raise RuntimeError("out of order" + chr(10) + "second line")

number = 3
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "users_own_networks"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return name


def build(spec: str, *, num_classes: int = 4, in_channels: int = 3, image_size: int | tuple[int, int] = 8) -> nn.Module:
    return create_model(spec, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def logits(model: nn.Module, channels: int, height: int, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(2, channels, height, width or height, generator=generator))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("resnet20", ModelSpec("zoo", "resnet20")),
        ("timm:resnet18", ModelSpec("timm", "resnet18")),
        ("torchvision:vgg11_bn", ModelSpec("torchvision", "vgg11_bn")),
        ("pkg.mod:Net.small", ModelSpec("import", "pkg.mod:Net.small")),
        ("resnet56_a@x/resnet56@jpeg.safetensors", ModelSpec("zoo", "resnet56_a", Path("x/resnet56@jpeg.safetensors"))),
        ("timm:resnet18@w.pth", ModelSpec("timm", "resnet18", Path("w.pth"))),
    ],
)
def test_specifications_are_read_and_written_back(text: str, spec: ModelSpec) -> None:
    assert ModelSpec.parse(text) == spec
    assert ModelSpec.parse(spec.architecture).architecture == text.partition("@")[0]


@pytest.mark.parametrize(
    "text", ["", "@w.pth", "resnet20@", "timm:", ":resnet", "my module:net", "a/b.py:net", "hf:x/y"]
)
def test_other_forms_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelSpec.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "channels", "size"),
    [
        ("resnet8", 1, 8),
        ("mobilenetv2_half", 3, 28),
        ("timm:resnet18", 1, 8),
        ("timm:vit_tiny_patch16_224", 1, 8),
        ("timm:vit_tiny_patch16_224", 3, 28),
        ("timm:convnext_atto", 3, 32),
        ("timm:mixer_s32_224", 3, 32),
        ("torchvision:resnet18", 1, 8),
        ("torchvision:mobilenet_v3_small", 1, 28),
        ("torchvision:shufflenet_v2_x0_5", 4, 32),
    ],
)
def test_small_images_of_any_channels_work(spec: str, channels: int, size: int) -> None:
    model = build(spec, in_channels=channels, image_size=size)
    assert logits(model, channels, size).shape == (2, 4)
    assert model.eval().training is False


def test_oblong_images_work() -> None:
    model = build("timm:vit_tiny_patch16_224", image_size=(32, 64))
    assert logits(model, 3, 32, 64).shape == (2, 4)


@pytest.mark.parametrize(("size", "patch"), [(8, 1), (28, 4), (32, 4), (48, 6), (64, 16)])
def test_transformers_get_patches_that_leave_a_grid(size: int, patch: int) -> None:
    model = build("timm:vit_tiny_patch16_224", image_size=size)
    assert model.patch_embed.patch_size == (patch, patch)


def test_networks_are_created_in_training_mode_with_untouched_statistics() -> None:
    model = build("resnet8")
    assert all(module.training for module in model.modules())
    assert all(int(value) == 0 for key, value in model.state_dict().items() if key.endswith("num_batches_tracked"))


def test_equal_random_states_give_equal_networks() -> None:
    torch.manual_seed(3)
    one = build("torchvision:resnet18", in_channels=1)
    torch.manual_seed(3)
    assert torch.equal(logits(build("torchvision:resnet18", in_channels=1), 1, 8), logits(one, 1, 8))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet21", "unknown model 'resnet21'; did you mean 'resnet32'"),
        ("qqqq", "others are written timm:NAME"),
        ("timm:resnet19", r"unknown timm model 'resnet19'; did you mean 'resnet1"),
        ("timm:hf-hub:someone/something", "unknown timm model .*; timm.list_models"),
        ("timm:local-dir:/somewhere", "unknown timm model"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'; did you mean 'resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown torchvision model"),
        ("no_such_package.nets:small", "no module 'no_such_package'"),
        ("torch.nn:Lineer", "has no attribute 'Lineer'"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(spec)


@pytest.mark.parametrize("spec", ["torchvision:vgg11_bn", "torchvision:vit_b_16", "torchvision:inception_v3"])
def test_images_a_network_cannot_take_are_named(spec: str) -> None:
    with pytest.raises(InputError, match=rf"{spec} cannot (take 3x8x8|be built for 8x8) images: ") as caught:
        build(spec)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_no_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="must be positive"):
        build("resnet8", num_classes=0)


@pytest.mark.parametrize("name", ["Net", "plain", "sized", "free"])
def test_users_own_factories_get_what_their_signature_takes(factory: str, name: str) -> None:
    assert logits(build(f"{factory}:{name}"), 3, 8).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "built a str; it must build an nn.Module"),
        ("number", "is a int; name a function or class"),
        ("missing", "has no attribute 'missing'"),
        ("Broken", "cannot take 3x8x8 images: out of order$"),
    ],
)
def test_factories_that_build_no_network_are_refused(factory: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(f"{factory}:{name}")


def test_a_factory_with_other_classes_is_refused(factory: str) -> None:
    with pytest.raises(InputError, match=r"gives \[1, 4\] for one image; expected logits \[1, 7\]"):
        build(f"{factory}:plain", num_classes=7)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_loaded(tmp_path: Path, kind: str, prefix: str) -> None:
    trained = build("resnet8")
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    file = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state if kind == "pt" else {"epoch": 3, "state_dict": state}, file)
    assert torch.equal(logits(build(f"resnet8@{file}"), 3, 8), logits(trained, 3, 8))


def test_weights_from_before_batches_were_counted_are_loaded(tmp_path: Path) -> None:
    trained = build("resnet8")
    state = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    loaded = build(f"resnet8@{tmp_path / 'w.safetensors'}")
    assert torch.equal(logits(loaded, 3, 8), logits(trained, 3, 8))
    assert int(loaded.state_dict()["bn1.num_batches_tracked"]) == 0


def test_weights_that_do_not_fit_name_the_first_key(tmp_path: Path) -> None:
    state = build("resnet8").state_dict()
    first = next(iter(state))
    cases = {
        f"'{first}' is missing": {key: value for key, value in state.items() if key != first},
        "'extra.weight' is unexpected": state | {"extra.weight": torch.zeros(1)},
        r"'linear.weight' has shape \[4, 64\], the network needs \[5, 64\]": state,
    }
    for message, content in cases.items():
        save_file(content, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=message) as caught:
            build(f"resnet8@{tmp_path / 'w.safetensors'}", num_classes=5 if "shape" in message else 4)
        assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_pickles_with_code_are_not_executed(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zip.pth", "bare.pt"):
        with pytest.raises(InputError, match="holds more than tensors"):
            build(f"resnet8@{tmp_path / name}")


def test_damaged_and_missing_weights_are_named(tmp_path: Path) -> None:
    save_file(build("resnet8").state_dict(), tmp_path / "w.safetensors")
    for length in (0, 5, 5000):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes((tmp_path / "w.safetensors").read_bytes()[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors is damaged"):
            build(f"resnet8@{cut}")
        with pytest.raises(InputError, match=r"cut\.safetensors is damaged"):
            classes_in_weights(cut)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04nonsense")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    for file, message in [
        ("cut.pt", "is damaged or holds more"),
        ("list.pt", "holds no state dict"),
        ("none.safetensors", "does not exist"),
        ("cut.onnx", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            build(f"resnet8@{tmp_path / file}")


@pytest.mark.parametrize(
    "spec",
    ["resnet8", "timm:resnet18", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "torchvision:mobilenet_v3_small"],
)
def test_classes_are_read_from_the_final_linear_layer(tmp_path: Path, spec: str) -> None:
    state = build(spec, num_classes=11, image_size=32).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    assert classes_in_weights(tmp_path / "w.safetensors") == 11
    assert classes_in_weights(tmp_path / "w.pth") == 11


def test_classes_stay_unknown_where_no_layer_stands_out(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(3, 2), "b.weight": torch.zeros(4, 2)}, tmp_path / "w.safetensors")
    assert classes_in_weights(tmp_path / "w.safetensors") is None


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet20-jpeg", "resnet56-jpeg"])
def test_trained_networks_load_by_specification(name: str, shared_data: Path) -> None:
    file = shared_data / "cifar10-resnets" / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is missing")
    assert classes_in_weights(file) == 10
    model = build(f"{name.removesuffix('-jpeg')}_a@{file}", num_classes=10, image_size=32)
    state = load_file(file)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
