"""The training task of every multi-teacher method, and MMKD's with its bilevel step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer

from stillroom.data.batch import Batch
from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers
from stillroom.distillation.multi_teacher.bilevel import look_ahead
from stillroom.distillation.multi_teacher.hard_buffer import HardBuffer
from stillroom.distillation.multi_teacher.mmkd import MMKD
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models._trace import evaluating
from stillroom.models.taps import Tapped
from stillroom.training.contracts import Teacher
from stillroom.training.loop import supervised_step
from stillroom.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Master", "MetaTask", "MultiTeacherTask", "build_method"]


@dataclass(frozen=True)
class Master:
    """One of several teachers: its name, what it says, and for some methods its head.

    Args:
        name: In a few words; different from the other teachers'.
        says: A live or cached teacher.
        head: Last feature map to logits in the data's class order, frozen, see
            :func:`~stillroom.distillation.multi_teacher.training.head_of`.
    """

    name: str
    says: Teacher
    head: nn.Module | None = None


class MultiTeacherTask(nn.Module):
    """Student, method and several teachers, each asked once per batch.

    The teachers are held beside the module tree, so that neither the optimiser, nor the checkpoint, nor ``train()``
    ever reaches them. Parameters of the student that the objective never reaches are frozen.

    Args:
        student: The student, tapped for the signals the method reads.
        masters: The teachers.
        method: A built method, see :func:`build_method`.
        sample: One training batch, of the size of all batches to come.
    """

    def __init__(self, student: Tapped, masters: Sequence[Master], method: ManyTeachers, sample: Batch) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.masters = tuple(masters)
        self.begun = False  # whether the optimiser was seen in this epoch
        # On a copy (that shares the teachers): the rehearsal must not move running statistics.
        shared = {id(part): part for master in self.masters for part in (master.says, master.head)}
        rehearsal = copy.deepcopy(self, shared)
        rehearsal.train()(sample)["loss"].backward()
        reached = {name for name, parameter in rehearsal.named_parameters() if parameter.grad is not None}
        for name, parameter in self.named_parameters():
            if name not in reached:
                parameter.requires_grad_(False)

    def start_epoch(self, epoch: int) -> None:
        """Turn cached teachers to the epoch's view and tell the method."""
        for master in self.masters:
            master.says.start_epoch(epoch)
        self.method.start_epoch(epoch)
        self.begun = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # The teachers first: what they compute on their way is freed before the student's graph is built.
        teachers = [master.says.signals(batch) for master in self.masters]
        student = self.student(batch.images)
        return {"output": student.logits.detach(), **self.method(student, teachers, batch.target)}

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images).logits
        return logits

    def step(
        self, model: nn.Module, optimizer: Optimizer, batch: Batch, fabric: Fabric, recipe: Recipe
    ) -> dict[str, Tensor]:
        """Do one ordinary update of the student."""
        if not self.begun:
            _begin_momentum(optimizer)
            self.begun = True
        return supervised_step(model, optimizer, batch, fabric, recipe)


def _begin_momentum(optimizer: Optimizer) -> None:
    """Let every parameter have a momentum, 0 at first: torch's fused SGD fails where some join the training later."""
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class MetaTask(MultiTeacherTask):
    """MMKD's task: :meth:`step` trains the student and, now and then, the networks that weigh the teachers.

    Hard samples, the meta optimiser's state and the place within the epoch are part of the task's state.

    Args:
        student: The student, tapped for its stages.
        masters: The teachers, all live.
        method: MMKD, built.
        sample: One training batch, of the size of all batches to come.
        steps_per_epoch: The last step of an epoch has a meta step.
    """

    method: MMKD

    def __init__(
        self, student: Tapped, masters: Sequence[Master], method: MMKD, sample: Batch, *, steps_per_epoch: int
    ) -> None:
        super().__init__(student, masters, method, sample)
        self.steps_per_epoch, self.done = steps_per_epoch, 0
        self.hard = HardBuffer(method.buffer_size, sample)
        matching = method.matching
        self.weighing = {
            f"{name}.{inner}": parameter
            for name in ("logit_weight", "feature_weight")
            for inner, parameter in matching.get_submodule(name).named_parameters()
        }
        self.meta_optimizer = torch.optim.Adam(
            list(self.weighing.values()), lr=method.meta_lr, weight_decay=method.meta_weight_decay
        )

    def start_epoch(self, epoch: int) -> None:
        """Count the steps of the epoch from 0."""
        super().start_epoch(epoch)
        self.done = 0

    def step(
        self, model: nn.Module, optimizer: Optimizer, batch: Batch, fabric: Fabric, recipe: Recipe
    ) -> dict[str, Tensor]:
        """Do one ordinary update of the student, remember what it got wrong, and do the meta step when it is due."""
        parts = super().step(model, optimizer, batch, fabric, recipe)
        self.hard.update(batch, parts["output"].argmax(1) != batch.target)
        self.done += 1
        if self.done % self.method.meta_freq == 0 or self.done == self.steps_per_epoch:
            with fabric.autocast():
                self.meta_step(self.hard.draw(len(batch.target)) if self.hard.full else batch, optimizer)
        return parts

    def meta_step(self, batch: Batch, optimizer: Optimizer) -> Tensor:
        """Move the weight networks so that the student would do better on a batch after a few updates with them.

        Student, aligners, their momentum and all statistics stay as they are.

        Args:
            batch: Of the size of the training batches.
            optimizer: The student's SGD; its learning rate, momentum and decay are those of the looked-ahead steps.

        Returns:
            The cross-entropy after the steps.
        """
        teachers = [master.says.signals(batch) for master in self.masters]
        # Clones: batch norm moves the statistics it is given.
        statistics = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        aligners = {name: buffer.clone() for name, buffer in self.method.matching.named_buffers()}
        parameters = {name: value for name, value in self.named_parameters() if value.requires_grad}
        group = optimizer.param_groups[0]
        momentum = (
            {name: optimizer.state[value]["momentum_buffer"] for name, value in parameters.items()}
            if group["momentum"]
            else {}
        )

        def student(values: Mapping[str, Tensor]) -> Any:
            return functional_call(self.student, {**_part(values, "student."), **statistics}, (batch.images,))

        def inner(values: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> Tensor:
            own = {**_part(values, "method.matching."), **phi, **aligners}
            return self.method.matching_loss(functional_call(self.method.matching, own, (student(values), teachers)))

        def outer(values: Mapping[str, Tensor]) -> Tensor:
            return F.cross_entropy(full_precision(student(values).logits), batch.target)

        ahead = look_ahead(
            inner,
            outer,
            parameters,
            momentum,
            self.weighing,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            inner_steps=self.method.inner_steps,
        )
        for name, parameter in self.weighing.items():
            parameter.grad = ahead.gradients[name]
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad(set_to_none=True)
        return ahead.outer_after

    def get_extra_state(self) -> dict[str, Any]:
        """Return the meta optimiser's state and the place within the epoch."""
        return {"meta_optimizer": self.meta_optimizer.state_dict(), "done": self.done}

    def set_extra_state(self, state: Any) -> None:
        """Take both up."""
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.done = state["done"]


def _part(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def build_method(
    student: Tapped, masters: Sequence[Master], method: ManyTeachers, sample: Batch, *, seed: int
) -> ManyTeachers:
    """Size a method's adapters by one dry run on ``sample`` and return it on that batch's device.

    The adapters' initial weights are a function of ``seed``; the global random state stays as it is.

    Args:
        student: The student, tapped for the signals the method reads.
        masters: The teachers.
        method: A fresh method; its adapters are created here.
        sample: One training batch, of the size of all batches to come.
        seed: Seed of the adapters.

    Raises:
        InputError: There is no teacher, one answers for other classes than the student, or the method cannot work for
            these networks.
    """
    name = method.card.name
    if not masters:
        raise InputError(f"{name} learns from several teachers; give at least one")
    names = [master.name for master in masters]
    if repeated := next((own for own in names if names.count(own) > 1), None):
        raise InputError(f"two teachers are named {repeated!r}; give them different names")
    with evaluating(student):
        student_says = student(sample.images)
        teachers_say = [master.says.signals(sample) for master in masters]
    for master, says in zip(masters, teachers_say, strict=True):
        if says.logits.shape != student_says.logits.shape:
            raise InputError(
                f"{master.name} answers for {says.logits.shape[1]} classes, the student for "
                f"{student_says.logits.shape[1]}; pass label_map=... or take a teacher with the student's classes"
            )
        if method.needs_heads and master.head is None:
            raise InputError(f"{name} judges features by the teachers' own heads, but {master.name} comes without one")
    device = sample.images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        heads = [master.head for master in masters]
        method.build(DryRun(student=student_says, teachers=teachers_say, heads=heads, batch_size=len(sample.target)))
    return method.to(device)
