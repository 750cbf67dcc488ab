"""One training step as a whole: tapped student, live teacher, method and objective."""

from __future__ import annotations

import copy
from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.methods import FAMILIES, method_class
from stillroom.distillation.offline._method import Method, Weights
from stillroom.distillation.offline.dkd import DKD
from stillroom.distillation.offline.kd import KD
from stillroom.distillation.offline.simkd import SimKD
from stillroom.distillation.offline.task import OfflineTask
from stillroom.errors import InputError
from stillroom.losses import kd_loss
from stillroom.models.signals import Signals, TapPaths
from stillroom.models.taps import Tapped
from stillroom.training.teacher import LiveTeacher

CLASSES, SAMPLES, BATCH = 5, 30, 8
SMALL: dict[str, dict[str, Any]] = {
    "crd": {"feature_dim": 6, "num_negatives": 10},
    "hkd": {"knn": 3, "feature_dim": 6, "num_negatives": 10},
    "cc": {"feature_dim": 6},
}


class Net(nn.Module):
    """Two stages, dropout, a linear classifier."""

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        first = self.relu1(self.bn1(self.conv1(images)))
        second = self.relu2(self.bn2(self.conv2(first)))
        logits: Tensor = self.head(self.drop(second.mean((2, 3))))
        return logits


PATHS = TapPaths(stages=("relu1", "relu2"), preact=("bn1", "bn2"), classifier="head")


def tapped(width: int, seed: int, method: Method, classes: int = CLASSES) -> Tapped:
    torch.manual_seed(seed)
    return Tapped(Net(width, classes), PATHS, method.signals)


def target() -> Tensor:
    return torch.arange(SAMPLES) % CLASSES


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    return Batch(torch.randn(BATCH, 3, 8, 8, generator=generator), target()[index], index)


def build(
    method: Method, weights: Weights | None = None, *, student: Tapped | None = None, teacher: Tapped | None = None
) -> OfflineTask:
    teacher = tapped(6, 1, method) if teacher is None else teacher
    return OfflineTask.build(
        tapped(4, 2, method) if student is None else student,
        LiveTeacher(teacher),
        method,
        method.presets["simkd"] if weights is None else weights,
        batch(seed=9),
        teacher_classifier=teacher.model.head,
        train_target=target(),
        num_classes=CLASSES,
        seed=0,
    )


def named(name: str) -> Method:
    return method_class(name)(**SMALL.get(name, {}))


def step(module: Any, task: OfflineTask, data: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Everything one step gives: its parts, and all gradients."""
    torch.manual_seed(4)  # dropout
    task.zero_grad()
    parts = module(data)
    parts["loss"].backward()
    gradients = {name: value.grad.clone() for name, value in task.named_parameters() if value.grad is not None}
    return {name: part.detach() for name, part in parts.items()}, gradients


@pytest.mark.parametrize("name", sorted(FAMILIES["offline"]))
def test_the_whole_step_compiles_as_one_graph_and_gives_the_eager_step(name: str) -> None:
    torch._dynamo.reset()
    task = build(named(name)).train()
    eager = copy.deepcopy(task)
    expected = step(eager, eager, batch())
    torch.testing.assert_close(step(torch.compile(task, fullgraph=True, backend="eager"), task, batch()), expected)
    torch.testing.assert_close(task.state_dict(), eager.state_dict())


@pytest.mark.parametrize("name", sorted(FAMILIES["offline"]))
def test_an_epoch_leaves_the_teacher_as_it_was(name: str) -> None:
    method = named(name)
    teacher = tapped(6, 1, method)
    before = copy.deepcopy(teacher.state_dict())
    task = build(method, teacher=teacher)
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    task.start_epoch(1)
    for seed in range(3):
        optimiser.zero_grad()
        task.train()(batch(seed))["loss"].backward()
        optimiser.step()
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["kd", "simkd", "srrl"])
def test_the_task_owns_student_and_adapters_but_not_the_teacher(name: str) -> None:
    method = named(name)
    teacher = tapped(6, 1, method)
    task = build(method, teacher=teacher)
    mine = {id(value) for value in (*task.parameters(), *task.buffers(), *task.modules())}
    assert not mine & {id(value) for value in (*teacher.parameters(), *teacher.buffers(), *teacher.modules())}
    assert {key.split(".")[0] for key in task.state_dict()} <= {"student", "method"}


def test_simkd_trains_the_backbone_and_the_projector_only() -> None:
    task = build(SimKD())
    frozen = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
    classifiers = {
        f"{owner}.{part}" for owner in ("student.model.head", "method.classifier") for part in ("weight", "bias")
    }
    assert frozen == classifiers


def test_kd_trains_the_whole_student() -> None:
    assert all(parameter.requires_grad for parameter in build(KD()).parameters())


def test_adapters_of_a_method_without_weight_are_not_trained() -> None:
    task = build(named("fitnet"), Weights(ce=1.0, kd=0.0, method=0.0))
    assert not any(parameter.requires_grad for parameter in task.method.parameters())
    assert all(parameter.requires_grad for parameter in task.student.parameters())


class Poison(KD):
    """A term that no sum survives."""

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"loss": student.logits.sum() * torch.inf}


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        (Weights(1.0, 0.0, 0.0), {"cross_entropy"}),
        (Weights(0.0, 2.0, 0.0), {"kd"}),
        (Weights(0.5, 2.0, 0.0), {"cross_entropy", "kd"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(weights: Weights, terms: set[str]) -> None:
    task = build(Poison(), weights)
    parts, gradients = step(task.train(), task, batch())
    assert set(parts) == {"loss", "output"} | terms
    expected = sum(
        weight * parts[name] for weight, name in ((weights.ce, "cross_entropy"), (weights.kd, "kd")) if weight
    )
    torch.testing.assert_close(parts["loss"], expected)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("weights", [Weights(0.0, 0.0, 0.0), Weights(1.0, -1.0, 1.0), Weights(1.0, 0.0, float("nan"))])
def test_weights_that_name_no_objective_are_refused(weights: Weights) -> None:
    with pytest.raises(InputError, match="weights must be"):
        build(KD(), weights)


def test_the_objective_is_the_weighted_sum_of_its_three_terms() -> None:
    method = KD(temperature=2.0)
    task = build(method, Weights(ce=0.3, kd=0.5, method=2.0)).eval()
    data = batch()
    parts = task(data)
    teacher, student = task.teacher.signals(data).logits, task.student(data.images).logits
    expected = 0.3 * F.cross_entropy(student, data.target) + 0.5 * kd_loss(student, teacher, temperature=4.0)
    torch.testing.assert_close(parts["loss"], expected + 2.0 * kd_loss(student, teacher, temperature=2.0))
    torch.testing.assert_close(parts["output"], student)


def test_the_own_term_grows_over_the_warm_up_and_other_terms_do_not() -> None:
    task = build(DKD(warmup_epochs=4)).eval()
    data, losses = batch(), []
    for epoch in (1, 2, 4, 9):
        task.start_epoch(epoch)
        parts = task(data)
        losses.append(parts["loss"] - parts["cross_entropy"])
    full = task.method(task.student(data.images), task.teacher.signals(data), data)["loss"]
    torch.testing.assert_close(torch.stack(losses), full * torch.tensor([0.25, 0.5, 1.0, 1.0]))


def test_without_a_warm_up_every_epoch_has_the_full_weight() -> None:
    task = build(KD(), Weights(1.0, 0.0, 3.0))
    for epoch in (1, 100):
        task.start_epoch(epoch)
        assert task.method_weight == 3.0


@pytest.mark.parametrize("name", sorted(FAMILIES["offline"]))
def test_building_depends_on_the_seed_only_and_moves_nothing(name: str) -> None:
    method = named(name)
    students = [tapped(4, 2, method) for _ in range(2)]
    students[0].model.bn1.eval()
    before, modes = copy.deepcopy(students[0].state_dict()), [module.training for module in students[0].modules()]
    tasks = []
    for student, drawn in zip(students, (5, 6), strict=True):
        teacher = tapped(6, 1, method)
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        tasks.append(build(copy.deepcopy(method), student=student, teacher=teacher))
        assert torch.equal(torch.get_rng_state(), state), "building drew from the global random numbers"
    torch.testing.assert_close(tasks[0].state_dict(), tasks[1].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(students[0].state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in students[0].modules()] == modes
    assert all(parameter.grad is None for parameter in tasks[0].parameters())


def test_a_student_of_other_classes_is_refused_before_anything_is_built() -> None:
    method = SimKD()
    with pytest.raises(InputError, match=r"different numbers of classes \(5 and 7\); pass label_map"):
        build(method, student=tapped(4, 2, method, classes=7))
    assert not list(method.parameters())


def test_simkd_answers_with_the_composed_model() -> None:
    task, data = build(SimKD()).eval(), batch()
    output = task(data)["output"]
    torch.testing.assert_close(task.predict(data.images), output)
    assert not torch.allclose(task.student(data.images).logits, output)


@pytest.mark.parametrize("name", sorted(FAMILIES["offline"]))
def test_a_step_under_bfloat16_autocast_is_near_the_float32_step(name: str) -> None:
    task = build(named(name)).eval()
    expected = task(batch())["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch())["loss"]
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)


def test_weights_are_recorded_as_given() -> None:
    assert astuple(build(KD(), Weights(0.1, 0.0, 0.9)).weights) == (0.1, 0.0, 0.9)
