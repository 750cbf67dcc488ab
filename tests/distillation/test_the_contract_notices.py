"""The contract case finds the defects it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillation.method_case import MethodCase
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import DryRun, Method
from stillroom.distillation.offline.kd import KD
from stillroom.models.signals import Signals


class Broken(KD):
    """KD with one defect: what the subclass returns instead of the loss."""

    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.own(student.logits, teacher.logits, batch)}


class TeachesTheTeacher(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student - teacher).float().square().mean()


class UnderflowsToNaN(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        p, q = teacher.detach().float().softmax(1), student.float().softmax(1)
        return (p * (p.log() - q.log())).sum(1).mean()


class StaysInHalfPrecision(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student - teacher.detach()).square().mean()


class DependsOnTheOrder(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        weight = torch.arange(len(student))[:, None]
        return (weight * (student - teacher.detach()).float().square()).mean()


class ReadsOnTheHost(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        loss = self.criterion(student, teacher)
        return loss if loss > 0 else 0 * loss


class SplitsTheBatch(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        right = teacher.argmax(1) == batch.target
        return (student - teacher.detach())[right].sum() + (student - teacher.detach()).square().mean()


class TurnsAwayFromTheTeacher(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        # The value is the loss, the gradient its opposite.
        loss = self.criterion(student, teacher)
        return 2 * loss.detach() - loss


class IgnoresTheStudent(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return 0 * student.float().sum()


class ChangesTheTeachersLogits(Broken):
    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        loss = self.criterion(student, teacher.detach().clone())
        teacher.detach().mul_(2)
        return loss


class ForgetsItsMemory(Broken):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.ones(())

    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        self.memory = self.memory + 1
        return self.memory * self.criterion(student, teacher)


class KeepsAnIdleAdapter(Broken):
    def build(self, dry_run: DryRun) -> None:
        self.adapter = nn.Linear(2, 2)

    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.criterion(student, teacher)


class TrainsTheTeachersClassifier(Broken):
    def build(self, dry_run: DryRun) -> None:
        assert dry_run.teacher_classifier is not None
        self.classifier = dry_run.teacher_classifier.requires_grad_()

    def own(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.criterion(student, teacher) + self.classifier.weight.square().mean()


class LogsAPartWithGraph(Broken):
    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        loss = self.criterion(student.logits, teacher.logits)
        return {"loss": loss, "kd": loss}


class TakesAnythingAndHidesIt(Broken):
    """Args: none described."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()


def case_of(method: Callable[[], Method]) -> MethodCase:
    class Case(MethodCase):
        bad_arguments = ({"strength": -1.0},)

        def make(self) -> Method:
            return method()

    return Case()


@pytest.mark.parametrize(
    ("method", "check", "arguments"),
    [
        (TeachesTheTeacher, "test_gradient_reaches_the_claimed_student_signals_and_nothing_else", ()),
        (IgnoresTheStudent, "test_gradient_reaches_the_claimed_student_signals_and_nothing_else", ()),
        (UnderflowsToNaN, "test_value_and_gradient_are_finite_at_extreme_inputs", (1e4, torch.float32)),
        (StaysInHalfPrecision, "test_value_and_gradient_are_finite_at_extreme_inputs", (50.0, torch.bfloat16)),
        (DependsOnTheOrder, "test_the_order_of_the_samples_does_not_matter", ()),
        (ReadsOnTheHost, "test_nothing_is_read_on_the_host", ()),
        (SplitsTheBatch, "test_nothing_is_read_on_the_host", ()),
        (TurnsAwayFromTheTeacher, "test_twenty_steps_reduce_the_loss", ()),
        (ChangesTheTeachersLogits, "test_the_teacher_is_left_as_it_was", ()),
        (TrainsTheTeachersClassifier, "test_the_teacher_is_left_as_it_was", ()),
        (ForgetsItsMemory, "test_a_saved_and_loaded_method_continues_with_the_same_loss", ()),
        (KeepsAnIdleAdapter, "test_every_trainable_parameter_takes_part", ()),
        (LogsAPartWithGraph, "test_forward_returns_a_loss_and_detached_scalar_parts", ()),
        (TakesAnythingAndHidesIt, "test_repr_shows_every_hyperparameter", ()),
        (
            TakesAnythingAndHidesIt,
            "test_hyperparameters_are_keyword_only_typed_defaulted_and_documented",
            (),
        ),
    ],
)
def test_a_defect_fails_its_check(method: type[Method], check: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(AssertionError):
        getattr(case_of(method), check)(*arguments)


def test_a_constructor_that_takes_anything_is_noticed() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        case_of(TakesAnythingAndHidesIt).test_the_constructor_refuses_bad_values()


def test_a_graph_break_is_noticed() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        case_of(ReadsOnTheHost).test_the_step_compiles_as_one_graph_and_gives_the_eager_value()
