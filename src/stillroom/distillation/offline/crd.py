"""CRD: contrastive representation distillation (Tian, Krishnan and Isola, ICLR 2020)."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pooled_pair
from stillroom.distillation.offline._memory import (
    Negatives,
    UnitLinear,
    check_contrast,
    initial_memory,
    memory_scores,
    update_memory,
)
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.losses.checks import positive, share
from stillroom.losses.pairwise import check_rows
from stillroom.models.signals import Signals

__all__ = ["CRD", "CRDLoss", "CRDTerms", "crd_loss"]


class CRDTerms(NamedTuple):
    """The two terms of :func:`crd_loss`, with graph, and the normalising constants to keep for the next call."""

    student: Tensor
    teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor


def _check_options(*, feature_dim: int, num_negatives: int, temperature: float, momentum: float) -> None:
    positive("feature_dim", feature_dim)
    positive("num_negatives", num_negatives)
    positive("temperature", temperature)
    share("momentum", momentum)


def _noise_contrast(
    anchor: Tensor, memory: Tensor, contrast: Tensor, z: Tensor, temperature: float, eps: float
) -> tuple[Tensor, Tensor]:
    score = memory_scores(anchor[None], memory, contrast)[0] / temperature  # [B, K + 1]
    with torch.no_grad():
        first = (score.logsumexp(dim=(0, 1)) - math.log(score.numel())).exp() * len(memory)
        z = torch.where(z < 0, first.to(z.dtype), z)
    noise = (contrast.shape[1] - 1) / len(memory)  # m
    # log(o / (o + m + eps)) and log(m / (o + m + eps)) in log space, o = exp(score) / Z.
    against = score - z.log() - math.log(noise + eps)
    right = F.logsigmoid(against[:, 0])
    wrong = F.logsigmoid(-against[:, 1:]) + (math.log(noise) - math.log(noise + eps))
    return -(right + wrong.sum(dim=1)).mean(), z


def crd_loss(
    student: Tensor,
    teacher: Tensor,
    memory_student: Tensor,
    memory_teacher: Tensor,
    contrast: Tensor,
    z_student: Tensor,
    z_teacher: Tensor,
    *,
    temperature: float = 0.07,
    eps: float = 1e-7,
) -> CRDTerms:
    """Return the noise-contrastive terms of both networks' embeddings; the loss is ``student + teacher``.

    Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, as released: with
    ``o_S[b,k] = exp(M_T[c_bk]·e_S[b] / τ) / Z_S``, ``o_T[b,k] = exp(M_S[c_bk]·e_T[b] / τ) / Z_T`` and ``m = K / N``,
    ``L(o) = −(1/B) Σ_b [log(o_b0 / (o_b0 + m + eps)) + Σ_{k≥1} log(m / (o_bk + m + eps))]``.

    Args:
        student: Embeddings e_S of the network that learns, rows of length 1.
        teacher: Embeddings e_T of the network that is imitated, rows of length 1; their layer is trained as well.
        memory_student: M_S, the embeddings of all N training samples, before this batch's update.
        memory_teacher: M_T, likewise.
        contrast: c, positions in the memories; column 0 is the sample itself, the others are its negatives.
        z_student: Z_S; negative when not set yet, then it becomes N times the mean of exp(·) over this batch.
        z_teacher: Z_T, likewise.
        temperature: τ.
        eps: Keeps the logarithms finite.

    Shapes:
        student, teacher: [B, D]; memory_student, memory_teacher: [N, D]; contrast: [B, K + 1], int64; z_student,
        z_teacher: scalars.

    Returns:
        The two terms and the constants Z to keep.

    Raises:
        InputError: The shapes do not fit each other or there is no negative.

    Example:
        >>> memory, unset = torch.eye(3), torch.tensor(-1.0)
        >>> terms = crd_loss(memory[:1], memory[:1], memory, memory, torch.tensor([[0, 1, 2]]), unset, unset)
        >>> print(f"{terms.student + terms.teacher:.4f}")
        1.0217
    """
    check_rows(student, teacher)
    for embedding, memory in ((student, memory_student), (teacher, memory_teacher)):
        check_contrast(embedding, memory, contrast[:, 0], contrast[:, 1:])
    term_student, z_student = _noise_contrast(student, memory_teacher, contrast, z_student, temperature, eps)
    term_teacher, z_teacher = _noise_contrast(teacher, memory_student, contrast, z_teacher, temperature, eps)
    return CRDTerms(term_student, term_teacher, z_student, z_teacher)


class CRDLoss(nn.Module):
    """Contrastive representation distillation with its embeddings, memories and negatives.

    The state (both memories, the constants Z and the number of draws) is in the state dict, so training resumes
    exactly. It moves in training mode only. Under data-parallel training the memories of all processes take all
    processes' batches, which must be of one size.

    Args:
        student_dim: Width of the student's features.
        teacher_dim: Width of the teacher's features.
        train_target: Classes of all training samples; a sample's index is its position in it.
        feature_dim: Width of the embeddings.
        num_negatives: Negatives a sample, at most as many as there are samples outside the smallest class.
        temperature: τ, divides the scores.
        momentum: How much of a memory row stays at an update.
        seed: Seed of the initial memories and of the negatives.

    Shapes:
        student: [B, student_dim]; teacher: [B, teacher_dim]; index: [B], int64; train_target: [N], int64; the loss is
        a scalar.

    Raises:
        InputError: An option is out of range, or fewer than two classes are present.

    Example:
        >>> criterion = CRDLoss(4, 6, torch.arange(20) % 5, feature_dim=3)
        >>> criterion(torch.randn(2, 4), torch.randn(2, 6), torch.tensor([7, 1])).shape
        torch.Size([])
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        train_target: Tensor,
        *,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_options(feature_dim=feature_dim, num_negatives=num_negatives, temperature=temperature, momentum=momentum)
        self.temperature = temperature
        self.momentum = momentum
        self.embed_student = UnitLinear(student_dim, feature_dim)
        self.embed_teacher = UnitLinear(teacher_dim, feature_dim)
        self.negatives = Negatives(train_target, count=num_negatives, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("memory_student", initial_memory(len(train_target), feature_dim, generator))
        self.register_buffer("memory_teacher", initial_memory(len(train_target), feature_dim, generator))
        self.register_buffer("z_student", torch.tensor(-1.0))
        self.register_buffer("z_teacher", torch.tensor(-1.0))
        self.memory_student: Tensor
        self.memory_teacher: Tensor
        self.z_student: Tensor
        self.z_teacher: Tensor

    def terms(self, student: Tensor, teacher: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms ``student`` and ``teacher`` and move the state."""
        embed_student, embed_teacher = self.embed_student(student), self.embed_teacher(teacher.detach())
        check_rows(embed_student, embed_teacher)
        terms = crd_loss(
            embed_student,
            embed_teacher,
            self.memory_student,
            self.memory_teacher,
            torch.cat((index[:, None], self.negatives(index)), dim=1),
            self.z_student,
            self.z_teacher,
            temperature=self.temperature,
        )
        if self.training:
            self.z_student.copy_(terms.z_student)
            self.z_teacher.copy_(terms.z_teacher)
            update_memory(self.memory_student, index, embed_student, momentum=self.momentum)
            update_memory(self.memory_teacher, index, embed_teacher, momentum=self.momentum)
        return {"student": terms.student, "teacher": terms.teacher}

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Return the loss and move the state; no gradient flows to the teacher's features."""
        terms = self.terms(student, teacher, index)
        return terms["student"] + terms["teacher"]

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}, momentum={self.momentum}"


class CRD(Method):
    """Contrastive representation distillation on the pooled features, :class:`CRDLoss`.

    Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020. The positive is the sample
    itself (the release's ``exact`` mode). Its memories belong to one training set: every batch must carry positions in
    it. Under data-parallel training the memories of all processes take all processes' batches, which must be of one
    size.

    Args:
        feature_dim: Width of the embeddings.
        num_negatives: Negatives a sample, at most as many as there are samples outside the smallest class.
        temperature: τ, divides the scores.
        momentum: How much of a memory row stays at an update.
    """

    card = Card(
        name="crd",
        summary="The student's embedding of a sample is told apart from the teacher's embeddings of other samples.",
        papers=(
            Paper(
                title="Contrastive Representation Distillation",
                authors="Y. Tian, D. Krishnan, P. Isola",
                venue="International Conference on Learning Representations (ICLR)",
                year=2020,
                identifier="arXiv:1910.10699",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The critic is exp(e_T·e_S / τ) against the constant N / M.",
                code="The critic is divided by constants Z, estimated on the first batch and then frozen; here the "
                "checkpoint keeps them.",
                default="code",
            ),
            Quirk(
                paper="A fixed number of negatives is drawn from the other classes.",
                code="They are drawn with replacement where the training set is smaller; here their number is lowered "
                "to the samples outside the smallest class.",
                default="neither",
            ),
        ),
    )
    signals = frozenset({"pooled"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=0.8), "crd": Weights(ce=1.0, kd=0.0, method=0.8)}  # noqa: RUF012

    def __init__(
        self,
        *,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.feature_dim, self.num_negatives = feature_dim, num_negatives
        self.temperature, self.momentum = temperature, momentum
        self.make_criterion = partial(
            CRDLoss,
            feature_dim=feature_dim,
            num_negatives=num_negatives,
            temperature=temperature,
            momentum=momentum,
        )
        _check_options(**self.make_criterion.keywords)
        self.criterion: CRDLoss

    def build(self, dry_run: DryRun) -> None:
        """Create embeddings, memories and the source of negatives.

        Raises:
            InputError: A network has no pooled features, or all training samples are of one class.
        """
        student, teacher = pooled_pair(dry_run.student, dry_run.teacher, "crd")
        self.criterion = self.make_criterion(
            student.shape[1], teacher.shape[1], dry_run.train_target.cpu(), seed=dry_run.seed
        ).to(student.device)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its terms, one with the student and one with the teacher as anchor."""
        terms = self.criterion.terms(*pooled_pair(student, teacher, "crd"), batch.index)
        return {
            "loss": terms["student"] + terms["teacher"],
            "student_anchor": terms["student"].detach(),
            "teacher_anchor": terms["teacher"].detach(),
        }

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self.make_criterion.keywords.items())
