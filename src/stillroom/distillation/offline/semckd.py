"""SemCKD: every student stage learns from all teacher stages, weighted per sample by learned attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pool_to, require_stages
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive
from stillroom.losses.pairwise import gram, product
from stillroom.models.signals import Signals

__all__ = ["CrossLayerRegressor", "SemCKD", "SemCKDLoss", "SimilarityEmbedding", "semckd_attention", "semckd_loss"]


def semckd_attention(query: Tensor, key: Tensor, *, soft: float = 1.0) -> Tensor:
    """Attention of student stages over teacher stages, per sample.

    D. Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021:
    ``a[b, i, ·] = softmax_j(Q_i(b) · K_j(b) / soft)``.

    Shapes:
        query: [B, S, d], one embedding per student stage.
        key: [B, N, d], one per teacher stage.

    Returns:
        [B, S, N]; rows sum to 1 over the teacher stages.

    Example:
        >>> semckd_attention(torch.ones(1, 1, 2), torch.ones(1, 2, 2))
        tensor([[[0.5000, 0.5000]]])
    """
    return torch.softmax(product(query, key.transpose(1, 2)) / soft, dim=2)


def semckd_loss(attention: Tensor, distance: Tensor) -> Tensor:
    """Attention-weighted sum of pair distances: ``1/(B·S) Σ_b Σ_i Σ_j a[b, i, j] · d[b, i, j]``.

    Shapes:
        attention, distance: [B, S, N].

    Example:
        >>> semckd_loss(torch.full((2, 3, 4), 0.25), torch.ones(2, 3, 4))
        tensor(1.)
    """
    return (attention * distance).sum(dim=2).mean()


class SimilarityEmbedding(nn.Module):
    """Embed each row of a batch's similarity matrix ``X Xᵀ``: ``l2(W2 · ReLU(W1 · A_b + b1) + b2)``.

    Args:
        batch_size: Rows of every batch, the width of the similarity matrix.
        embed_factor: The embedding has ``batch_size // embed_factor`` entries.

    Shapes:
        input [B, C, H, W], output [B, B // embed_factor].
    """

    def __init__(self, batch_size: int, *, embed_factor: int = 4) -> None:
        super().__init__()
        width = batch_size // embed_factor
        self.fc1 = nn.Linear(batch_size, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, feature_map: Tensor) -> Tensor:
        # The similarities are not normalised and grow with C·H·W: half precision would overflow.
        with torch.autocast(feature_map.device.type, enabled=False):
            embedded = self.fc2(F.relu(self.fc1(gram(feature_map))))
            # Deviation: the released code divides by the bare norm, NaN for an all-zero embedding.
            return F.normalize(embedded, dim=1, eps=1e-12)


class CrossLayerRegressor(nn.Module):
    """Map a student stage to a teacher stage's channels: conv1×1 – BN – ReLU – conv3×3 – BN – ReLU – conv1×1.

    Args:
        student_channels: Channels coming in.
        teacher_channels: Channels going out; the hidden width is twice that.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        width = 2 * teacher_channels
        self.conv1 = nn.Conv2d(student_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, teacher_channels, 1, bias=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(feature_map)), inplace=True)
        hidden = F.relu(self.bn2(self.conv2(hidden)), inplace=True)
        regressed: Tensor = self.conv3(hidden)
        return regressed


class SemCKDLoss(nn.Module):
    """Cross-layer distillation with semantic calibration.

    The loss of :func:`semckd_loss` over all pairs of stages, with attention from the similarity matrices of both
    networks and ``d[b, i, j]`` the mean squared error between regressed student and teacher map, the larger of the
    two pooled to the smaller. Gradients reach the student through the regression and through the attention.

    Args:
        student_channels: Channels of the student's stages (stem left out).
        teacher_channels: Channels of the teacher's stages.
        batch_size: Rows of every batch, per process; the embeddings are as wide as it.
        soft: Divisor of the attention scores.
        embed_factor: The embeddings have ``batch_size // embed_factor`` entries.

    Raises:
        InputError: The batch size is below ``embed_factor``, or a batch comes with another size.

    Example:
        >>> loss = SemCKDLoss([4, 8], [8], batch_size=4)
        >>> loss([torch.ones(4, 4, 8, 8), torch.ones(4, 8, 4, 4)], [torch.ones(4, 8, 4, 4)]).shape
        torch.Size([])
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        batch_size: int,
        *,
        soft: float = 1.0,
        embed_factor: int = 4,
    ) -> None:
        super().__init__()
        if batch_size < embed_factor:
            raise InputError(f"semckd needs batches of at least {embed_factor} samples per process, got {batch_size}")
        self.batch_size = batch_size
        self.soft = positive("soft", soft)
        self.query = nn.ModuleList(SimilarityEmbedding(batch_size, embed_factor=embed_factor) for _ in student_channels)
        self.key = nn.ModuleList(SimilarityEmbedding(batch_size, embed_factor=embed_factor) for _ in teacher_channels)
        self.regressor = nn.ModuleList(
            CrossLayerRegressor(incoming, outgoing) for incoming in student_channels for outgoing in teacher_channels
        )

    def attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the attention [B, S, N] of student stages over teacher stages."""
        query = torch.stack([embed(x) for embed, x in zip(self.query, student, strict=True)], dim=1)
        key = torch.stack([embed(x.detach()) for embed, x in zip(self.key, teacher, strict=True)], dim=1)
        return semckd_attention(query, key, soft=self.soft)

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the mean squared errors [B, S, N] of all pairs."""
        pooled: dict[tuple[int, int], Tensor] = {}  # (teacher stage, size) -> target, shared by the student stages
        rows = []
        for i, x in enumerate(student):
            aligned: dict[int, Tensor] = {}  # size -> this student map, shared by the teacher stages
            row = []
            for j, y in enumerate(teacher):
                size = min(x.shape[-1], y.shape[-1])
                if size not in aligned:
                    aligned[size] = pool_to(x, size)
                if (j, size) not in pooled:
                    pooled[j, size] = full_precision(pool_to(y.detach(), size))
                regressed = self.regressor[i * len(teacher) + j](aligned[size])
                error = full_precision(regressed) - pooled[j, size]
                row.append(error.square().mean((1, 2, 3)))
            rows.append(torch.stack(row, dim=1))
        return torch.stack(rows, dim=1)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        if student[0].shape[0] != self.batch_size:
            raise InputError(
                f"semckd was built for batches of {self.batch_size} and got one of {student[0].shape[0]}; "
                "drop the incomplete last batch (drop_last=True) and keep the batch size"
            )
        return semckd_loss(self.attention(student, teacher), self.distance(student, teacher))


class SemCKD(Method):
    """Cross-layer distillation with semantic calibration, see :class:`SemCKDLoss`.

    Args:
        soft: Divisor of the attention scores (1 reproduces the first release).
    """

    card: ClassVar[Card] = Card(
        name="semckd",
        summary="Supervises each student stage by all teacher stages with learned per-sample attention.",
        papers=(
            Paper(
                title="Cross-Layer Distillation with Semantic Calibration",
                authors="D. Chen, J.-P. Mei, Y. Zhang, C. Wang, Z. Wang, Y. Feng, C. Chen",
                venue="AAAI, 7028–7036",
                year=2021,
                identifier="arXiv:2012.03236",
            ),
            Paper(
                title="SemCKD: Semantic Calibration for Cross-Layer Knowledge Distillation",
                authors="C. Wang, D. Chen, J.-P. Mei, Y. Zhang, Y. Feng, C. Chen",
                venue="IEEE Transactions on Knowledge and Data Engineering",
                year=2023,
                identifier="35(6):6305–6319",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The loss is defined on every batch.",
                code="Silently skips batches of another size than the first.",
                default="neither",
            ),
            Quirk(
                paper="Embeddings are divided by their norm.",
                code="No guard: an all-zero embedding gives NaN.",
                default="neither",
            ),
            Quirk(
                paper="Reports a student accuracy.",
                code="Reports the best test accuracy over epochs.",
                default="neither",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=400.0),
        "crd": Weights(ce=1.0, kd=1.0, method=400.0),
    }

    criterion: SemCKDLoss

    def __init__(self, *, soft: float = 1.0) -> None:
        super().__init__()
        self.soft = positive("soft", soft)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"soft={self.soft}"

    def build(self, dry_run: DryRun) -> None:
        """Create embeddings for the per-process batch size, and one regressor per pair of stages."""
        student = require_stages(dry_run.student, "student", "semckd")
        teacher = require_stages(dry_run.teacher, "teacher", "semckd")
        self.criterion = SemCKDLoss(
            [x.shape[1] for x in student], [x.shape[1] for x in teacher], dry_run.batch_size, soft=self.soft
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the batch, which must have the size seen at :meth:`build`."""
        return {"loss": self.criterion(student.stages, teacher.stages)}
