"""Stored networks: what comes back is what was saved, and files are not believed blindly."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillroom.errors import InputError, OutputError
from stillroom.models.composed import Projector, ReusedClassifier
from stillroom.models.create import create_model
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard, load_model, save_model, weights_hash
from stillroom.models.taps import Tapped, find_taps

IMPORTED = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
"""


def card(architecture: str | Any = "resnet8", *, size: int = 8, channels: int = 3) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        num_classes=3,
        classes=("cat", "dög", "fox"),
        mean=(0.1,) * channels,
        std=(0.25,) * channels,
        input_shape=(channels, size, size),
        extra={"method": "simkd", "accuracy": 0.75, "weights": {"ce": 0.0}},
    )


def build(spec: str, size: int = 8, channels: int = 3) -> nn.Module:
    """A network whose running statistics moved, so that forgetting them shows."""
    model = create_model(spec, num_classes=3, in_channels=channels, image_size=size).train()
    with torch.no_grad():
        model(torch.randn(4, channels, max(size, 8), max(size, 8)))
    return model.eval()


def logits(model: nn.Module, size: int = 8, channels: int = 3) -> Tensor:
    with torch.no_grad():
        return model(torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_model(tmp_path, build("resnet8"), card())
    return tmp_path


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "model.json"
    about = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in about.items() if value != "absent"}))


@pytest.mark.parametrize(
    ("spec", "size", "channels"),
    [
        ("resnet8", 8, 1),
        ("mobilenetv2_half", 32, 3),
        ("timm:resnet18", 32, 3),
        ("timm:vit_tiny_patch16_224", 28, 1),
        ("torchvision:mobilenet_v3_small", 32, 1),
    ],
)
def test_a_stored_network_answers_as_before(tmp_path: Path, spec: str, size: int, channels: int) -> None:
    model, about = build(spec, size, channels), card(spec, size=size, channels=channels)
    save_model(tmp_path / "run", model, about)
    for path in (tmp_path / "run", str(tmp_path / "run" / "model.json")):
        loaded = load_model(path)
        assert loaded.card == about
        assert not any(module.training for module in loaded.model.modules())
        assert torch.equal(logits(loaded.model, size, channels), logits(model, size, channels))


@pytest.mark.parametrize(
    ("spec", "size", "pool_size"),
    [
        ("resnet8", 32, 4),
        ("mobilenetv2_half", 32, None),
        ("timm:resnet18", 64, None),
        ("timm:vit_tiny_patch16_224", 32, 4),
        ("torchvision:mobilenet_v3_small", 64, None),
    ],
)
def test_a_composed_student_is_rebuilt_from_its_card_alone(
    tmp_path: Path, spec: str, size: int, pool_size: int | None
) -> None:
    student = build(spec, size)
    sample = torch.randn(4, 3, size, size)
    tap = find_taps(student, sample).stages[-1]
    with torch.no_grad():
        width = Tapped(student, TapPaths((tap,)), {"stages"})(sample).stages[0].shape[1]
    projector = Projector(width, 12, factor=3)
    model = ReusedClassifier(student, tap, projector, nn.Linear(12, 3), sample=sample, pool_size=pool_size)
    with torch.no_grad():
        model.train()(sample)
    model.eval()
    about = card(model.architecture(spec), size=size)
    save_model(tmp_path, model, about)
    loaded = load_model(tmp_path)
    assert isinstance(loaded.model, ReusedClassifier)
    assert loaded.card == about
    assert torch.equal(logits(loaded.model, size), logits(model, size))
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_tied_and_strided_weights_are_stored(tmp_path: Path) -> None:
    model = build("resnet8").to(memory_format=torch.channels_last)
    block = model.layer1[0]
    block.conv2.weight = block.conv1.weight
    save_model(tmp_path, model, card())
    loaded = load_model(tmp_path).model
    assert torch.equal(loaded.layer1[0].conv2.weight, block.conv1.weight)
    assert torch.equal(logits(loaded), logits(model.to(memory_format=torch.contiguous_format)))


def test_saving_again_replaces_both_files(stored: Path) -> None:
    other = build("vgg8", size=32)
    save_model(stored, other, card("vgg8", size=32))
    assert torch.equal(logits(load_model(stored).model, 32), logits(other, 32))
    assert sorted(os.listdir(stored)) == ["model.json", "model.safetensors"]


def test_a_full_disk_leaves_the_previous_files(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in stored.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_model(stored, build("resnet8"), card())
    assert {file.name: file.read_bytes() for file in stored.iterdir()} == before


def test_the_hash_follows_names_types_shapes_and_values() -> None:
    class Holder(nn.Module):
        def __init__(self, **tensors: Tensor) -> None:
            super().__init__()
            for name, value in tensors.items():
                self.register_buffer(name, value)

    zeros = torch.zeros(2, 3)
    one = zeros.clone()
    one[1, 2] = 1
    variants = [
        Holder(a=zeros),
        Holder(b=zeros),
        Holder(a=zeros.reshape(3, 2)),
        Holder(a=zeros.to(torch.int32)),
        Holder(a=one),
        Holder(a=one.bfloat16(), b=torch.tensor(3)),
        Holder(),
    ]
    assert len({weights_hash(model) for model in variants}) == len(variants)
    assert weights_hash(Holder(a=zeros, b=one)) == weights_hash(Holder(b=one, a=zeros.t().contiguous().t()))


def test_the_hash_notices_running_statistics() -> None:
    model = build("resnet8")
    before = weights_hash(model)
    logits(model)
    assert weights_hash(model) == before
    logits(model.train())
    assert weights_hash(model) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("cat",)}, "1 class names for 3 classes"),
        ({"mean": (0.1,)}, "one number for each of 3 channels"),
        ({"input_shape": (3, 0, 8)}, "input_shape must be"),
    ],
)
def test_cards_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(card(), **changes)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (card("resnet8@weights.pth"), "must not name weights"),
        (dataclasses.replace(card(), extra={"model": object()}), "cannot be stored"),
    ],
)
def test_cards_that_cannot_be_read_back_are_refused_before_anything_is_written(
    tmp_path: Path, about: ModelCard, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        save_model(tmp_path / "run", build("resnet8"), about)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format version 2, this stillroom reads 1"),
        ({"format": "other"}, "describes no stillroom model"),
        ({"num_classes": "absent"}, "'num_classes' must be a whole number, not None"),
        ({"num_classes": True}, "'num_classes' must be a whole number"),
        ({"num_classes": 10**9}, "must lie in"),
        ({"num_classes": 4}, "3 class names for 4 classes"),
        ({"classes": ["cat", 1, "fox"]}, "'classes' must be a list of names"),
        ({"mean": "0.5"}, "'mean' must be a list of numbers"),
        ({"input_shape": [3, 8]}, "'input_shape' must be three"),
        ({"architecture": 3}, "'architecture' must be an object"),
        ({"architecture": "resnet9"}, "unknown model 'resnet9'"),
        ({"architecture": "resnet14"}, "do not fit ResNet: .* is missing"),
        ({"architecture": "resnet8x4"}, "has shape .*, the network needs"),
        ({"architecture": "resnet8@/etc/passwd"}, "must not name a weights file"),
        ({"architecture": {"kind": "other"}}, "does not know; update"),
        ({"architecture": {"kind": "reused_classifier"}}, "'student_channels' must be"),
        ({"weights_sha256": "0" * 64}, "its hash differs"),
        ({"weights_sha256": "absent"}, "'weights_sha256' must be a text"),
        ({"extra": []}, "'extra' must be an object"),
    ],
)
def test_a_model_json_that_is_wrong_is_refused_in_one_line(stored: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(stored, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_model(stored)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_model_json_that_is_no_json_object_is_refused(stored: Path, text: str) -> None:
    (stored / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.json (is damaged|describes no)"):
        load_model(stored)


def test_missing_files_are_named(stored: Path) -> None:
    with pytest.raises(InputError, match=r"elsewhere/model\.json does not exist"):
        load_model(stored / "elsewhere")
    (stored / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        load_model(stored)


@pytest.mark.parametrize("length", [0, 4, 300, 20_000])
def test_truncated_weights_are_named(stored: Path, length: int) -> None:
    file = stored / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_model(stored)


def test_weights_of_another_run_are_noticed(stored: Path) -> None:
    state = load_file(stored / "model.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, stored / "model.safetensors")
    with pytest.raises(InputError, match="its hash differs"):
        load_model(stored)


def test_a_users_code_is_only_imported_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_stored_network.py").write_text(IMPORTED)
    monkeypatch.chdir(tmp_path)
    spec = "users_stored_network:build"
    save_model(tmp_path / "run", nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), card(spec))
    with pytest.raises(InputError, match="asks to import 'users_stored_network:build', which runs code"):
        load_model(tmp_path / "run")
    hidden = {
        "kind": "reused_classifier",
        "backbone": spec,
        "tap": "0",
        "student_channels": 4,
        "teacher_channels": 4,
        "factor": 2,
        "pool_size": None,
    }
    rewrite(tmp_path / "run", architecture=hidden)
    with pytest.raises(InputError, match="which runs code"):
        load_model(tmp_path / "run")
    assert not (tmp_path / "imported").exists()
    rewrite(tmp_path / "run", architecture=spec)
    assert logits(load_model(tmp_path / "run", allow_import=True).model).shape == (2, 3)
    assert (tmp_path / "imported").exists()
