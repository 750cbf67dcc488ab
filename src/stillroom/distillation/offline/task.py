"""The training task of every offline method: two forward passes, three weighted terms."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive
from stillroom.losses.kl import kd_loss
from stillroom.models._trace import evaluating
from stillroom.models.taps import Tapped
from stillroom.training.contracts import Teacher
from stillroom.training.recipe import warmup_weight

__all__ = ["OfflineTask"]


class OfflineTask(nn.Module):
    """Student, method and their objective ``L = ce · CE + kd · KD + method · w(epoch) · own term``.

    The teacher is a source of signals held beside the module tree, so that neither DDP, nor the optimiser, nor the
    checkpoint, nor ``train()`` ever reaches it. ``w(epoch) = min(epoch / warmup_epochs, 1)`` for the methods that
    ask for a warm-up, else 1. A weight of 0 leaves its term out.

    Args:
        student: The student, tapped for the signals the method reads.
        teacher: A live or cached teacher.
        method: A built method, see :meth:`Method.build`.
        weights: The three weights.
        temperature: Temperature of the classical KD term.
    """

    def __init__(
        self, student: Tapped, teacher: Teacher, method: Method, weights: Weights, *, temperature: float = 4.0
    ) -> None:
        super().__init__()
        given = (weights.ce, weights.kd, weights.method)
        if not all(0 <= weight < math.inf for weight in given) or not any(given):
            raise InputError(f"weights must be finite, at least 0 and not all 0, got {weights}")
        self.student = student
        self.teacher = teacher
        self.method = method
        self.weights = weights
        self.temperature = positive("temperature", temperature)
        self.register_buffer("method_weight", torch.tensor(float(weights.method)), persistent=False)
        self.method_weight: Tensor

    def start_epoch(self, epoch: int) -> None:
        """Turn a cached teacher to the epoch's view and set the warm-up weight."""
        self.teacher.start_epoch(epoch)
        self.method_weight.fill_(self.weights.method * warmup_weight(epoch, self.method.warmup_epochs))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # The teacher first: what it computes on its way is freed before the student's graph is built, so the two never
        # stand in memory together.
        teacher = self.teacher.signals(batch)
        student = self.student(batch.images)
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        output = student.logits
        if self.weights.method:
            own = self.method(student, teacher, batch)
            terms.append(self.method_weight * own.pop("loss"))
            output = own.pop("output", output)
            parts.update(own)
        if self.weights.ce:
            cross_entropy = F.cross_entropy(full_precision(student.logits), batch.target)
            terms.append(self.weights.ce * cross_entropy)
            parts["cross_entropy"] = cross_entropy.detach()
        if self.weights.kd:
            kd = kd_loss(student.logits, teacher.logits, temperature=self.temperature)
            terms.append(self.weights.kd * kd)
            parts["kd"] = kd.detach()
        loss = sum(terms[1:], start=terms[0])
        return {"loss": loss, "output": output.detach(), **parts}

    def predict(self, images: Tensor) -> Tensor:
        return self.method.predict(self.student(images))

    @classmethod
    def build(
        cls,
        student: Tapped,
        teacher: Teacher,
        method: Method,
        weights: Weights,
        sample: Batch,
        *,
        teacher_classifier: nn.Linear | None,
        train_target: Tensor,
        num_classes: int,
        seed: int,
        temperature: float = 4.0,
    ) -> OfflineTask:
        """Size the method's adapters by one dry run on ``sample`` and return the task, ready to train.

        Parameters that the objective never reaches (the student's own head under SimKD) are frozen, so that weight
        decay does not shrink them and data-parallel training does not wait for their gradients. The adapters' initial
        weights are a function of ``seed``; the global random state and the student stay as they are.

        Args:
            student: The student, tapped for the signals the method reads.
            teacher: A live or cached teacher.
            method: A fresh method; its adapters are created here.
            weights: The three weights.
            sample: One training batch on the training device, of the size of all batches to come.
            teacher_classifier: The teacher's last linear layer, for methods that reuse it.
            train_target: Classes [N] of all training samples.
            num_classes: K.
            seed: Seed of the adapters, and of the memories and negatives of contrastive methods.
            temperature: Temperature of the classical KD term.

        Raises:
            InputError: The method cannot work for this pair, or teacher and student answer for different classes.
        """
        with evaluating(student):
            teacher_says, student_says = teacher.signals(sample), student(sample.images)
        if teacher_says.logits.shape != student_says.logits.shape:
            raise InputError(
                f"teacher and student answer for different numbers of classes ({teacher_says.logits.shape[1]} and "
                f"{student_says.logits.shape[1]}); pass label_map=... or a student with the teacher's classes"
            )
        device = sample.images.device
        # Adapters start alike whatever was drawn before, and the rehearsal draws nothing from the training's numbers.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            method.build(
                DryRun(
                    student=student_says,
                    teacher=teacher_says,
                    teacher_classifier=teacher_classifier,
                    train_target=train_target,
                    num_classes=num_classes,
                    batch_size=len(sample.target),
                    seed=seed,
                )
            )
            task = cls(student, teacher, method.to(device), weights, temperature=temperature)
            task._freeze_unreached(sample)
        return task

    def _freeze_unreached(self, sample: Batch) -> None:
        # On a copy (that shares the teacher): the rehearsal must move neither running statistics nor memories.
        rehearsal = copy.deepcopy(self, {id(self.teacher): self.teacher})
        rehearsal.train()(sample)["loss"].backward()
        reached = {name for name, parameter in rehearsal.named_parameters() if parameter.grad is not None}
        for name, parameter in self.named_parameters():
            if name not in reached:
                parameter.requires_grad_(False)
