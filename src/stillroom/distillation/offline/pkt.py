"""PKT: probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pooled_pair
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.losses.checks import full_precision
from stillroom.losses.pairwise import check_rows, gram
from stillroom.models.signals import Signals

__all__ = ["PKT", "PKTLoss", "pkt_loss"]


def _neighbour_probabilities(features: Tensor, eps: float) -> Tensor:
    """Return ``(cos(x_a, x_b) + 1) / 2`` with every row scaled to sum 1, [B, B]."""
    flat = full_precision(features.flatten(1))
    similar = (gram(flat / (flat.norm(dim=1, keepdim=True) + eps)) + 1.0) / 2.0
    similar = similar.clamp_min(0.0)  # rounding puts the cosine of opposite vectors below -1, whose logarithm is NaN
    return similar / similar.sum(dim=1, keepdim=True)


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Return the divergence of the two networks' distributions over the batch's other samples.

    N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, with the
    cosine kernel: ``L = mean_ab P_T[a,b] · log((P_T[a,b] + eps) / (P_S[a,b] + eps))``, where
    ``P[a,·] ∝ (x_a·x_b + 1) / 2`` sums to 1 and ``x ← x / (‖x‖ + eps)``.

    Args:
        student: Features of the network that learns.
        teacher: Features of the network that is imitated; no gradient flows to it.
        eps: Keeps zero vectors and the logarithm finite.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the shapes behind B may differ.

    Returns:
        A scalar, in at least float32.

    Raises:
        InputError: The two do not hold the same number of samples.

    Example:
        >>> student, teacher = torch.eye(3), torch.ones(3, 5)
        >>> print(f"{pkt_loss(student, teacher):.4f}")
        0.0189
    """
    check_rows(student, teacher)
    with torch.no_grad():
        p_teacher = _neighbour_probabilities(teacher, eps)
    p_student = _neighbour_probabilities(student, eps)
    return (p_teacher * ((p_teacher + eps) / (p_student + eps)).log()).mean()


class PKTLoss(nn.Module):
    """The loss :func:`pkt_loss` as a module.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the loss is a scalar.

    Example:
        >>> abs(PKTLoss()(torch.eye(3), torch.eye(3)).item()) < 1e-6
        True
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's features against the teacher's."""
        return pkt_loss(student, teacher)


class PKT(Method):
    """Probabilistic knowledge transfer on the pooled features, :func:`pkt_loss`.

    N. Passalis, A. Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018. Under
    data-parallel training the distributions are those over each process's own batch.
    """

    card = Card(
        name="pkt",
        summary="The student matches, for every sample, the teacher's distribution over its neighbours in the batch.",
        papers=(
            Paper(
                title="Learning Deep Representations with Probabilistic Knowledge Transfer",
                authors="N. Passalis, A. Tefas",
                venue="European Conference on Computer Vision (ECCV)",
                year=2018,
                identifier="arXiv:1803.10837",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The divergence sums over the pairs of samples.",
                code="It is the mean over all B² pairs, which is why the benchmark's weight is as large as 30000.",
                default="code",
                option="the own term's weight, multiplied by B²",
            ),
        ),
    )
    signals = frozenset({"pooled"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=30000.0), "crd": Weights(ce=1.0, kd=0.0, method=30000.0)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.criterion = PKTLoss()

    def build(self, dry_run: DryRun) -> None:
        """Check that both networks have pooled features.

        Raises:
            InputError: One of them has none.
        """
        pooled_pair(dry_run.student, dry_run.teacher, "pkt")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the two networks' pooled features."""
        return {"loss": self.criterion(*pooled_pair(student, teacher, "pkt"))}
