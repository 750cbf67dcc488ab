"""A student distilled by any method loads alone from its run directory, and its teacher is what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom import DataOptions, Recipe, distill, load_model
from stillroom.data.sources import load_data
from stillroom.distillation.methods import FAMILIES, method_class
from stillroom.distillation.networks import live_teacher, load_network, new_network
from stillroom.distillation.training import Setting, train_distilled
from stillroom.models.store import weights_hash
from stillroom.training.fabric import make_fabric
from stillroom.training.run import RunDirectory

DATA = DataOptions(name="digits", per_class=4)
RECIPE = Recipe(epochs=1, batch_size=20)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    distill(teacher="resnet14", data=DATA, recipe=RECIPE, out=out, baseline=False, show_progress=False)
    return out / "teacher"


@pytest.mark.parametrize("name", FAMILIES["offline"])
def test_a_distilled_student_reloads_alone_and_predicts_the_same(name: str, teacher: Path, tmp_path: Path) -> None:
    distilled = distill(
        teacher=str(teacher),
        method=name,
        data=DATA,
        recipe=RECIPE,
        out=tmp_path / "run",
        baseline=False,
        show_progress=False,
    )
    loaded = load_model(tmp_path / "run")
    assert loaded.card.classes == tuple("0123456789")
    assert loaded.card.extra["method"] == name
    pixels = load_data(DATA).test.pixels[:50] / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (loaded.card.mean, loaded.card.std))
    images = (pixels - mean) / std
    with torch.no_grad():
        expected = distilled.model.cpu()(images)
        # The trained network's maps lie channels-last in memory; other layouts add in another order.
        answers = loaded.model.to(memory_format=torch.channels_last)(images)
    assert answers.shape == (50, 10)
    assert torch.equal(answers, expected)


@pytest.mark.parametrize("name", FAMILIES["offline"])
def test_an_epoch_leaves_the_state_of_the_teacher_as_it_was(name: str, teacher: Path, tmp_path: Path) -> None:
    images = load_data(DATA)
    method = method_class(name)()
    live, classifier = live_teacher(
        load_network(str(teacher), images), images, signals=method.signals, device=torch.device("cpu")
    )
    before = weights_hash(live.model)
    setting = Setting(data=images, recipe=RECIPE, seed=0, fabric=make_fabric("cpu"), show_progress=False)
    student = new_network("resnet8", images)
    started = weights_hash(student.model)
    train_distilled(
        student, live, method, method.presets["crd"], setting, RunDirectory(tmp_path), teacher_classifier=classifier
    )
    assert weights_hash(student.model) != started
    assert weights_hash(live.model) == before
    assert not live.model.training
