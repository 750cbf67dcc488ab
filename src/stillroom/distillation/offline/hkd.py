"""HKD: holistic knowledge distillation with graph neural networks (Zhou et al., ICCV 2021)."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pooled_pair
from stillroom.distillation.offline._graph import GraphLayer, prediction_neighbours
from stillroom.distillation.offline._memory import (
    Negatives,
    UnitLinear,
    check_contrast,
    initial_memory,
    memory_scores,
    update_memory,
)
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import positive, share
from stillroom.losses.pairwise import check_rows
from stillroom.models.signals import Signals

__all__ = ["HKD", "HKDLoss", "HKDTerms", "hkd_loss"]

Source = Literal["own", "cross"]


class HKDTerms(NamedTuple):
    """The two parts of :func:`hkd_loss`, each the sum of the student's and the teacher's cross-entropy."""

    individual: Tensor
    graph: Tensor


def _smooth(memory: Tensor, index: Tensor, graph: Tensor, momentum: float) -> Tensor:
    return F.normalize(momentum * memory.index_select(0, index) + (1.0 - momentum) * graph.detach(), dim=1)


def _info_nce(anchors: Tensor, positives: Tensor, memory: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the positive of A anchors a sample, mean over B; anchors and positives [A, B, D] -> [A]."""
    right = (anchors * positives).sum(dim=2, keepdim=True)
    scores = torch.cat((right, memory_scores(anchors, memory, negatives)), dim=2) / temperature
    return (scores.logsumexp(dim=2) - scores[..., 0]).mean(dim=1)


def hkd_loss(
    embed_student: Tensor,
    embed_teacher: Tensor,
    graph_student: Tensor | None,
    graph_teacher: Tensor | None,
    memory_student: Tensor,
    memory_teacher: Tensor,
    index: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.07,
    smooth_momentum: float = 0.75,
    source: Source = "own",
) -> HKDTerms:
    """Return the InfoNCE terms of individual and graph embeddings; the loss is ``individual + graph``.

    S. Zhou, Y. Wang, D. Chen, J. Chen, X. Wang, C. Wang, J. Bu, "Distilling Holistic Knowledge with Graph Neural
    Networks", ICCV 2021, as released. Each term is a cross-entropy of ``[positive, negatives] / τ`` to the positive,
    averaged over the batch and summed over two anchors::

        individual   e_S·M_T[idx]  against  e_S·M_S[neg]      e_T·M_S[idx]  against  e_T·M_T[neg]
        graph        g_S·m_T       against  g_S·M_S[neg]      g_T·m_S       against  g_T·M_T[neg]

    with ``m = l2(s · M[idx] + (1 − s) · g)`` held constant. ``source="cross"`` takes the negatives of the student's
    anchors from M_T and those of the teacher's from M_S.

    Args:
        embed_student: e_S, rows of length 1.
        embed_teacher: e_T, rows of length 1; its layer is trained as well.
        graph_student: g_S, rows of length 1; ``None`` leaves the graph term at 0.
        graph_teacher: g_T, likewise.
        memory_student: M_S, one row for each of the N training samples, before this batch's update.
        memory_teacher: M_T, likewise.
        index: Positions of the batch's samples in the memories.
        negatives: Positions of each sample's negatives, without the sample itself.
        temperature: τ.
        smooth_momentum: s.
        source: Which memory an anchor's negatives come from: its own network's, or the other's.

    Shapes:
        embed_student, embed_teacher, graph_student, graph_teacher: [B, D]; memory_student, memory_teacher: [N, D];
        index: [B], int64; negatives: [B, K], int64.

    Returns:
        The two terms.

    Raises:
        InputError: The shapes do not fit each other.

    Example:
        >>> memory, index = torch.eye(3), torch.tensor([0])
        >>> e, negatives = memory[:1], torch.tensor([[1, 2]])
        >>> terms = hkd_loss(e, e, None, None, memory, memory, index, negatives, temperature=1.0)
        >>> print(f"{terms.individual:.4f}")
        1.1029
    """
    check_rows(embed_student, embed_teacher)
    check_contrast(embed_student, memory_student, index, negatives)
    check_contrast(embed_teacher, memory_teacher, index, negatives)
    student, teacher = [embed_student], [embed_teacher]
    for_student, for_teacher = [memory_teacher.index_select(0, index)], [memory_student.index_select(0, index)]
    if graph_student is not None and graph_teacher is not None:
        student.append(graph_student)
        teacher.append(graph_teacher)
        for_student.append(_smooth(memory_teacher, index, graph_teacher, smooth_momentum))
        for_teacher.append(_smooth(memory_student, index, graph_student, smooth_momentum))
    if source == "cross":
        memory_student, memory_teacher = memory_teacher, memory_student
    terms = _info_nce(torch.stack(student), torch.stack(for_student), memory_student, negatives, temperature)
    terms = terms + _info_nce(torch.stack(teacher), torch.stack(for_teacher), memory_teacher, negatives, temperature)
    return HKDTerms(terms[0], terms[1] if len(terms) > 1 else torch.zeros_like(terms[0]))


def _check_options(
    *,
    knn: int,
    feature_dim: int,
    num_negatives: int,
    temperature: float,
    memory_momentum: float,
    smooth_momentum: float,
    negatives: str,
) -> None:
    positive("knn", knn)
    positive("feature_dim", feature_dim)
    positive("num_negatives", num_negatives)
    positive("temperature", temperature)
    share("memory_momentum", memory_momentum)
    share("smooth_momentum", smooth_momentum)
    if negatives not in get_args(Source):
        raise unknown_name("source of negatives", negatives, get_args(Source))


class HKDLoss(nn.Module):
    """Holistic knowledge distillation with its embeddings, graph layers, memories and negatives.

    A batch of fewer than ``knn`` samples has no graph: the individual term alone is returned and the memories stay.
    The state (memories and number of draws) is in the state dict, so training resumes exactly; it moves in training
    mode only. Under data-parallel training the graph is that of each process's own batch; the memories of all processes
    take all processes' batches, which must be of one size.

    Args:
        student_dim: Width of the student's features.
        teacher_dim: Width of the teacher's features.
        train_target: Classes of all training samples; a sample's index is its position in it.
        knn: Neighbours in the graph, the sample itself included.
        feature_dim: Width of the embeddings.
        num_negatives: Negatives a sample, at most as many as there are samples outside the smallest class.
        temperature: τ, divides the scores.
        memory_momentum: How much of a memory row stays at an update.
        smooth_momentum: Share of the memory row in the graph term's positives.
        negatives: Which memory an anchor's negatives come from: its own network's, or the other's.
        seed: Seed of the initial memories and of the negatives.

    Shapes:
        student: [B, student_dim]; teacher: [B, teacher_dim]; student_logits, teacher_logits: [B, K]; index: [B],
        int64; train_target: [N], int64; the loss is a scalar.

    Raises:
        InputError: An option is out of range, or fewer than two classes are present.

    Example:
        >>> criterion = HKDLoss(4, 6, torch.arange(20) % 5, knn=2, feature_dim=3)
        >>> logits, index = torch.randn(2, 5), torch.tensor([7, 1])
        >>> criterion(torch.randn(2, 4), torch.randn(2, 6), logits, logits, index).shape
        torch.Size([])
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        train_target: Tensor,
        *,
        knn: int = 8,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        memory_momentum: float = 0.9,
        smooth_momentum: float = 0.75,
        negatives: Source = "own",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_options(
            knn=knn,
            feature_dim=feature_dim,
            num_negatives=num_negatives,
            temperature=temperature,
            memory_momentum=memory_momentum,
            smooth_momentum=smooth_momentum,
            negatives=negatives,
        )
        self.knn = knn
        self.temperature = temperature
        self.memory_momentum = memory_momentum
        self.smooth_momentum = smooth_momentum
        self.source: Source = negatives
        self.embed_student = UnitLinear(student_dim, feature_dim)
        self.embed_teacher = UnitLinear(teacher_dim, feature_dim)
        self.graph_student = GraphLayer(feature_dim)
        self.graph_teacher = GraphLayer(feature_dim)
        self.negatives = Negatives(train_target, count=num_negatives, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("memory_student", initial_memory(len(train_target), feature_dim, generator))
        self.register_buffer("memory_teacher", initial_memory(len(train_target), feature_dim, generator))
        self.memory_student: Tensor
        self.memory_teacher: Tensor

    def terms(
        self, student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor, index: Tensor
    ) -> HKDTerms:
        """Return the two terms and move the state."""
        embed_student, embed_teacher = self.embed_student(student), self.embed_teacher(teacher.detach())
        check_rows(embed_student, embed_teacher)
        graph_student = graph_teacher = None
        if len(student) >= self.knn:
            graph_student = self.graph_student(embed_student, prediction_neighbours(student_logits, knn=self.knn))
            graph_teacher = self.graph_teacher(embed_teacher, prediction_neighbours(teacher_logits, knn=self.knn))
        terms = hkd_loss(
            embed_student,
            embed_teacher,
            graph_student,
            graph_teacher,
            self.memory_student,
            self.memory_teacher,
            index,
            self.negatives(index),
            temperature=self.temperature,
            smooth_momentum=self.smooth_momentum,
            source=self.source,
        )
        if self.training and graph_student is not None:
            update_memory(self.memory_student, index, embed_student, momentum=self.memory_momentum)
            update_memory(self.memory_teacher, index, embed_teacher, momentum=self.memory_momentum)
        return terms

    def forward(
        self, student: Tensor, teacher: Tensor, student_logits: Tensor, teacher_logits: Tensor, index: Tensor
    ) -> Tensor:
        """Return the loss and move the state; no gradient flows to the teacher's features or through the logits."""
        terms = self.terms(student, teacher, student_logits, teacher_logits, index)
        return terms.individual + terms.graph

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"knn={self.knn}, temperature={self.temperature}, negatives={self.source!r}"


class HKD(Method):
    """Holistic knowledge distillation on pooled features and class predictions, :class:`HKDLoss`.

    S. Zhou, Y. Wang, D. Chen, J. Chen, X. Wang, C. Wang, J. Bu, "Distilling Holistic Knowledge with Graph Neural
    Networks", ICCV 2021. Not to be confused with heterogeneous knowledge distillation (Passalis et al., CVPR 2020),
    which some tables call HKD too. The ``simkd`` preset is the paper's "HKD+KD", the ``crd`` preset its "HKD". Under
    data-parallel training the graph is that of each process's own batch; the memories of all processes take all
    processes' batches, which must be of one size.

    Args:
        knn: Neighbours in the graph, the sample itself included; no batch may be smaller for the graph to take part.
        feature_dim: Width of the embeddings.
        num_negatives: Negatives a sample, at most as many as there are samples outside the smallest class.
        temperature: τ, divides the scores.
        memory_momentum: How much of a memory row stays at an update.
        smooth_momentum: Share of the memory row in the graph term's positives.
        negatives: Which memory an anchor's negatives come from: its own network's, or the other's.
    """

    card = Card(
        name="hkd",
        summary="The student's embeddings, alone and averaged over a graph of similar predictions, match the teacher's "
        "by contrast.",
        papers=(
            Paper(
                title="Distilling Holistic Knowledge with Graph Neural Networks",
                authors="S. Zhou, Y. Wang, D. Chen, J. Chen, X. Wang, C. Wang, J. Bu",
                venue="IEEE/CVF International Conference on Computer Vision (ICCV), 10387-10396",
                year=2021,
                identifier="arXiv:2108.05507",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The student is contrasted with the teacher (the formula could not be confirmed; the release's "
                "variable names suggest negatives from the other network's memory).",
                code="An anchor's positive comes from the other network's memory, its negatives from its own.",
                default="code",
                option='negatives="cross"',
            ),
            Quirk(
                paper="Every batch is aggregated over its graph.",
                code="A batch smaller than knn gives the individual term only and leaves the memories as they are.",
                default="code",
            ),
            Quirk(
                paper="Nothing in the method asks for several samples or several negatives.",
                code="One sample a batch or one negative a sample fails on squeezed dimensions; here both work.",
                default="neither",
            ),
            Quirk(
                paper="Negatives are drawn from the other classes.",
                code="They are drawn with replacement where the training set is smaller; here their number is lowered "
                "to the samples outside the smallest class.",
                default="neither",
            ),
        ),
    )
    signals = frozenset({"pooled"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=3.0), "crd": Weights(ce=1.0, kd=0.0, method=3.0)}  # noqa: RUF012

    def __init__(
        self,
        *,
        knn: int = 8,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        memory_momentum: float = 0.9,
        smooth_momentum: float = 0.75,
        negatives: Source = "own",
    ) -> None:
        super().__init__()
        self.knn, self.feature_dim, self.num_negatives = knn, feature_dim, num_negatives
        self.temperature, self.negatives = temperature, negatives
        self.memory_momentum, self.smooth_momentum = memory_momentum, smooth_momentum
        self.make_criterion = partial(
            HKDLoss,
            knn=knn,
            feature_dim=feature_dim,
            num_negatives=num_negatives,
            temperature=temperature,
            memory_momentum=memory_momentum,
            smooth_momentum=smooth_momentum,
            negatives=negatives,
        )
        _check_options(**self.make_criterion.keywords)
        self.criterion: HKDLoss

    def build(self, dry_run: DryRun) -> None:
        """Create embeddings, graph layers, memories and the source of negatives.

        Raises:
            InputError: A network has no pooled features, batches are too small for the graph, or all training samples
                are of one class.
        """
        student, teacher = pooled_pair(dry_run.student, dry_run.teacher, "hkd")
        if dry_run.batch_size < self.knn:
            raise InputError(
                f"hkd needs batches of at least knn={self.knn} samples, got {dry_run.batch_size}; "
                "raise the batch size or lower knn"
            )
        self.criterion = self.make_criterion(
            student.shape[1], teacher.shape[1], dry_run.train_target.cpu(), seed=dry_run.seed
        ).to(student.device)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its terms ``individual`` and ``graph``."""
        terms = self.criterion.terms(*pooled_pair(student, teacher, "hkd"), student.logits, teacher.logits, batch.index)
        return {
            "loss": terms.individual + terms.graph,
            "individual": terms.individual.detach(),
            "graph": terms.graph.detach(),
        }

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self.make_criterion.keywords.items())
