"""Whole trainings without data: no real image is touched, students learn, killed runs end the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.data.images import TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.data_free.cmi import CMI
from stillroom.distillation.data_free.csd import CSD
from stillroom.distillation.data_free.dafl import DAFL
from stillroom.distillation.data_free.deepinversion import DeepInversion
from stillroom.distillation.data_free.training import (
    Method,
    as_teacher_sees,
    rehearse_data_free,
    train_data_free,
)
from stillroom.distillation.data_free.zskt import ZSKT
from stillroom.distillation.networks import Network, new_network
from stillroom.distillation.training import Setting, Trained, train_alone
from stillroom.errors import InputError
from stillroom.models.store import weights_hash
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

SMALL: dict[str, Any] = {"synthesis_batch": 20, "width": 4}
METHODS: dict[str, Method] = {
    "csd": CSD(kd_steps=4, g_steps=3, initial_rounds=2, initial_g_steps=3, bank_rounds=3, **SMALL),
    "cmi": CMI(kd_steps=4, g_steps=3, memory=30, negatives=25, head_size=8, **SMALL),
    "deepinversion": DeepInversion(kd_steps=4, g_steps=3, synthesis_batch=20),
    "dafl": DAFL(ep_steps=4, kd_steps=3, **SMALL),
    "zskt": ZSKT(ep_steps=4, kd_steps=3, **SMALL),
}


class Small(nn.Sequential):
    """Two convolutions; the dropout draws from the global generator, which a resumed run must find where it was."""

    def __init__(self, width: int, dropout: float, channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, 10),
        )


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(
        data=load_data(DataOptions(name="digits")),
        recipe=Recipe(epochs=3, batch_size=16, lr=0.05, schedule="cosine"),
        seed=0,
        fabric=make_fabric("cpu"),
        show_progress=False,
    )


@pytest.fixture(scope="module")
def teacher(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A teacher of digits with a normalisation of its own."""
    torch.manual_seed(0)
    data = replace(setting.data, mean=(0.1,), std=(0.5,))
    longer = replace(setting, data=data, recipe=replace(setting.recipe, epochs=8, batch_size=64, lr=0.1))
    trained = train_alone(
        new_network(Small(12, 0.0), data), longer, RunDirectory(tmp_path_factory.mktemp("teacher")), label=""
    )
    assert trained.test_accuracy > 90
    return trained.network


def student(setting: Setting) -> Network:
    torch.manual_seed(1)
    return new_network(Small(8, 0.2), setting.data)


def train(name: str, teacher: Network, setting: Setting, folder: Path) -> Trained:
    pupil = student(setting)
    rehearse_data_free(pupil, teacher, METHODS[name], setting)
    return train_data_free(pupil, teacher, METHODS[name], setting, RunDirectory(folder))


def timeless(trained: Trained) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in trained.history]


class Untouchable:
    """Raises whatever is done to it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"somebody asked a training image for {name}")

    def __len__(self) -> int:
        raise AssertionError("somebody counted the training images")

    def __getitem__(self, index: object) -> Any:
        raise AssertionError("somebody took a training image")


@pytest.mark.parametrize("name", METHODS)
def test_no_training_image_is_touched_and_everything_is_told(
    name: str, teacher: Network, setting: Setting, tmp_path: Path
) -> None:
    blind = replace(setting, data=replace(setting.data, train=Untouchable(), holdout=Untouchable()))
    before = weights_hash(teacher.model)
    trained = train(name, teacher, blind, tmp_path)
    assert weights_hash(teacher.model) == before
    assert [record["epoch"] for record in trained.history] == [1, 2, 3]
    assert all("test_accuracy" in record for record in trained.history)
    assert trained.sections[0].title == "Synthesised images"
    assert trained.measured["images_synthesised"] > 0
    assert (trained.network.card.mean, trained.network.card.std) == (teacher.card.mean, teacher.card.std)
    predicted = as_teacher_sees(blind, teacher).predict(trained.network.model)
    reached = 100 * (predicted == setting.data.test.target).double().mean().item()
    assert reached == pytest.approx(trained.test_accuracy)
    if name in ("csd", "cmi", "deepinversion"):
        assert trained.measured["bank_bytes"] == sum(file.stat().st_size for file in (tmp_path / "bank").iterdir())
        assert {"train_synthesis_bn", "train_synthesis_onehot"} <= trained.history[-1].keys()


@pytest.mark.parametrize("name", ["csd", "zskt"])
def test_other_training_images_change_no_bit(name: str, teacher: Network, setting: Setting, tmp_path: Path) -> None:
    trained = train(name, teacher, setting, tmp_path / "a")
    noise = TensorImages(torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    other = train(name, teacher, replace(setting, data=replace(setting.data, train=noise)), tmp_path / "b")
    assert weights_hash(trained.network.model) == weights_hash(other.network.model)
    assert timeless(trained) == timeless(other)


def test_a_student_of_synthetic_images_reads_real_digits(teacher: Network, setting: Setting, tmp_path: Path) -> None:
    method = DeepInversion(kd_steps=60, g_steps=60, synthesis_batch=50, temperature=4.0)
    faster = replace(setting, recipe=replace(setting.recipe, batch_size=50, lr=0.1))
    trained = train_data_free(student(setting), teacher, method, faster, RunDirectory(tmp_path))
    assert trained.measured["teacher_agreement"] > 0.8
    assert trained.test_accuracy > 40  # chance is 10


class KilledError(Exception):
    """Stands for a kill at any moment."""


def kill_after(network: Network, calls: int) -> None:
    """Raise in the network's forward pass number ``calls`` (steps, synthesis and evaluation alike)."""
    count = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += 1
        if count >= calls:
            raise KilledError

    network.model.register_forward_pre_hook(hook)


@pytest.fixture(scope="module")
def undisturbed(teacher: Network, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("undisturbed")
    saving = replace(setting, checkpoint_every=2)
    return {name: train(name, teacher, saving, root / name) for name in METHODS}


# Forward passes of the student: in its steps, in the synthesis, between the two, in evaluation; of all rounds.
@pytest.mark.parametrize(
    ("name", "calls"),
    [("csd", 9), ("csd", 15), ("csd", 24), ("csd", 34), ("cmi", 6), ("cmi", 11), ("cmi", 20), ("deepinversion", 15)]
    + [(name, calls) for name in ("dafl", "zskt") for calls in (6, 12)],
)
def test_a_killed_and_resumed_run_ends_the_same(
    name: str, calls: int, undisturbed: dict[str, Trained], teacher: Network, setting: Setting, tmp_path: Path
) -> None:
    pupil = student(setting)
    kill_after(pupil, calls)
    with pytest.raises(KilledError):
        train_data_free(pupil, teacher, METHODS[name], replace(setting, checkpoint_every=2), RunDirectory(tmp_path))
    again = train(name, teacher, replace(setting, checkpoint_every=2, resume=True), tmp_path)
    assert weights_hash(again.network.model) == weights_hash(undisturbed[name].network.model)
    assert timeless(again) == timeless(undisturbed[name])


def test_killed_in_the_initial_synthesis_the_bank_is_gone_on_with(
    undisturbed: dict[str, Trained], teacher: Network, setting: Setting, tmp_path: Path
) -> None:
    saving = replace(setting, checkpoint_every=2)
    watched = replace(teacher, model=copy.deepcopy(teacher.model))
    kill_after(watched, 7)  # one call to size the helpers, three steps a round: in the second round
    with pytest.raises(KilledError):
        train_data_free(student(setting), watched, METHODS["csd"], saving, RunDirectory(tmp_path))
    assert [file.name for file in (tmp_path / "bank").iterdir()] == ["round-000001.safetensors"]
    again = train("csd", teacher, replace(saving, resume=True), tmp_path)
    assert weights_hash(again.network.model) == weights_hash(undisturbed["csd"].network.model)


def test_images_lost_in_the_middle_of_a_round_are_not_made_for_another_student(
    teacher: Network, setting: Setting, tmp_path: Path
) -> None:
    saving = replace(setting, checkpoint_every=2)
    pupil = student(setting)
    kill_after(pupil, 7)  # one call to size the helpers, three steps of the synthesis, two of the student
    with pytest.raises(KilledError):
        train_data_free(pupil, teacher, METHODS["cmi"], saving, RunDirectory(tmp_path))
    (tmp_path / "bank" / "round-000001.safetensors").unlink()
    with pytest.raises(InputError, match=r"round-000001.safetensors is missing"):
        train("cmi", teacher, replace(saving, resume=True), tmp_path)


class TestBadInput:
    def test_a_teacher_without_batch_norm(self, teacher: Network, setting: Setting) -> None:
        plain = copy.deepcopy(teacher.model)
        plain[1], plain[4] = nn.Identity(), nn.Identity()
        bare = new_network(plain, setting.data)
        for name in ("csd", "cmi", "deepinversion"):
            with pytest.raises(
                InputError, match=f"^{name} makes images from the statistics of the teacher's BatchNorm"
            ):
                rehearse_data_free(student(setting), bare, METHODS[name], setting)
        for name in ("dafl", "zskt"):
            rehearse_data_free(student(setting), bare, METHODS[name], setting)

    def test_a_side_that_the_generator_cannot_make(self, setting: Setting) -> None:
        odd = replace(setting, data=load_data(DataOptions(name="digits", image_size=10)))
        networks = [new_network(Small(4, 0.0), odd.data) for _ in range(2)]
        for name in ("csd", "dafl"):
            with pytest.raises(InputError, match=r"divisible by 4, not 10; give data.image_size"):
                rehearse_data_free(*networks, METHODS[name], odd)
        rehearse_data_free(*networks, METHODS["deepinversion"], odd)

    def test_a_teacher_for_images_of_another_shape(self, teacher: Network, setting: Setting) -> None:
        other = replace(teacher, card=replace(teacher.card, input_shape=(1, 16, 16)))
        with pytest.raises(InputError, match=r"the teacher takes images of shape \[1, 16, 16\] and digits has"):
            rehearse_data_free(student(setting), other, METHODS["csd"], setting)

    def test_a_bank_that_does_not_fill_a_batch(self, teacher: Network, setting: Setting) -> None:
        large = replace(setting, recipe=replace(setting.recipe, batch_size=61))
        with pytest.raises(InputError, match="the bank holds 60 images in the first round and a batch takes 61"):
            rehearse_data_free(student(setting), teacher, METHODS["csd"], large)

    def test_classes_that_do_not_match(self, teacher: Network, setting: Setting) -> None:
        renamed = replace(teacher, card=replace(teacher.card, classes=tuple("abcdefghij")))
        with pytest.raises(InputError, match="is not among the teacher's 10 classes"):
            rehearse_data_free(student(setting), renamed, METHODS["zskt"], setting)

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            (CSD, {"bank_rounds": 0}, "bank_rounds is 0: a bank without images teaches nothing"),
            (CMI, {"synthesis_batch": 0}, "synthesis_batch is 0: a bank without images teaches nothing"),
            (CSD, {"initial_rounds": 4, "bank_rounds": 3}, "bank_rounds is 3 and would not hold the 4 initial rounds"),
            (DeepInversion, {"g_steps": 0}, "g_steps is 0; it must be at least 1"),
            (CSD, {"csd": -1.0}, "csd is -1.0; it must be a finite number of at least 0"),
            (DAFL, {"balance": float("nan")}, "balance is nan"),
            (ZSKT, {"temperature": 0.0}, "temperature must be a finite number above 0"),
        ],
    )
    def test_hyperparameters_out_of_range(self, kind: type, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            kind(**options)

    def test_a_run_is_not_resumed_with_another_method(self, teacher: Network, setting: Setting, tmp_path: Path) -> None:
        train("csd", teacher, setting, tmp_path)
        other = replace(METHODS["csd"], csd=5.0)
        with pytest.raises(InputError, match=r"belongs to another training: method.csd was 10.0, is now 5.0"):
            train_data_free(student(setting), teacher, other, replace(setting, resume=True), RunDirectory(tmp_path))


def test_the_rehearsal_leaves_the_networks_alone(teacher: Network, setting: Setting) -> None:
    pupil = student(setting)
    before, random = weights_hash(pupil.model), torch.get_rng_state()
    for method in METHODS.values():
        rehearse_data_free(pupil, teacher, method, setting)
    assert weights_hash(pupil.model) == before
    assert pupil.model.training
    assert all(parameter.requires_grad for parameter in pupil.model.parameters())
    assert all(parameter.requires_grad for parameter in teacher.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
