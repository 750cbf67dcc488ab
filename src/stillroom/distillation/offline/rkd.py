"""RKD: relational knowledge distillation by distances and angles (Park et al., CVPR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pooled_pair
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, not_negative
from stillroom.losses.pairwise import check_rows, product
from stillroom.models.signals import Signals

__all__ = ["RKD", "RKDLoss", "rkd_angle_loss", "rkd_distance_loss"]


def _differences(features: Tensor) -> Tensor:
    """Return ``x_j − x_i`` of all pairs, [B, B, D]; exactly 0 for equal samples, unlike the expanded square."""
    flat = full_precision(features.flatten(1))
    return flat[None, :, :] - flat[:, None, :]


def _relative_distances(features: Tensor, eps: float, squared: bool) -> Tensor:
    distance = _differences(features).square().sum(dim=2).clamp_min(eps)
    if not squared:
        distance = distance.sqrt()
    size = len(distance)
    distance = distance.masked_fill(torch.eye(size, dtype=torch.bool, device=distance.device), 0.0)
    # The entries above 0 are exactly those off the diagonal; one sample has none, and all its relations are 0.
    mean = distance.sum() / max(size * (size - 1), 1)
    return distance / mean if size > 1 else distance


def rkd_distance_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12, squared: bool = False) -> Tensor:
    """Return the smooth-L1 distance of the two networks' relative distances between samples.

    W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019: distances
    ``ψ[a,b] = ‖x_a − x_b‖ / mean``, the mean taken over the pairs of different samples; mean over all B² entries.

    Args:
        student: Features of the network that learns.
        teacher: Features of the network that is imitated; no gradient flows to it.
        eps: Lower bound of a squared distance.
        squared: Compare squared distances.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the shapes behind B may differ.

    Returns:
        A scalar, in at least float32; 0 for a batch of one.

    Raises:
        InputError: The two do not hold the same number of samples.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [5.0]])
        >>> print(f"{rkd_distance_loss(student, teacher):.4f}")
        0.0450
    """
    check_rows(student, teacher)
    with torch.no_grad():
        target = _relative_distances(teacher, eps, squared)
    return F.smooth_l1_loss(_relative_distances(student, eps, squared), target)


def _angles(features: Tensor, eps: float) -> Tensor:
    """Return the cosine of the angle at sample i between samples j and k, [B, B, B]."""
    difference = _differences(features)
    square = difference.square().sum(dim=2, keepdim=True)
    # Equal samples have no direction: the zero vector, with a zero gradient where 1/eps would drown all others.
    equal = square <= eps**2
    direction = difference * torch.where(equal, 0.0, torch.where(equal, 1.0, square).rsqrt())
    return product(direction, direction.transpose(1, 2))


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Return the smooth-L1 distance of the two networks' angles in all triples of samples.

    W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019:
    ``u_ij = (x_j − x_i) / ‖x_j − x_i‖``, cosines ``u_ij · u_ik``; mean over all B³ entries. Memory grows with B³.

    Args:
        student: Features of the network that learns.
        teacher: Features of the network that is imitated; no gradient flows to it.
        eps: Samples closer than this have no direction.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the shapes behind B may differ.

    Returns:
        A scalar, in at least float32; 0 for a batch of one.

    Raises:
        InputError: The two do not hold the same number of samples.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [9.0], [5.0]])
        >>> print(f"{rkd_angle_loss(student, teacher):.4f}")
        0.2222
    """
    check_rows(student, teacher)
    with torch.no_grad():
        target = _angles(teacher, eps)
    return F.smooth_l1_loss(_angles(student, eps), target)


class RKDLoss(nn.Module):
    """The weighted sum of :func:`rkd_distance_loss` and :func:`rkd_angle_loss`.

    Args:
        distance_weight: Weight of the distances; 0 leaves them out.
        angle_weight: Weight of the angles; 0 leaves them out.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the loss is a scalar.

    Raises:
        InputError: A weight is negative, or both are 0.

    Example:
        >>> RKDLoss()(torch.eye(3), 2 * torch.eye(3)).item()
        0.0
    """

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight = not_negative("distance_weight", distance_weight)
        self.angle_weight = not_negative("angle_weight", angle_weight)
        if distance_weight == angle_weight == 0:
            raise InputError("distance_weight and angle_weight are both 0, which leaves nothing to learn")

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms ``distance`` and ``angle``, those of weight 0 left out."""
        terms = {}
        if self.distance_weight:
            terms["distance"] = self.distance_weight * rkd_distance_loss(student, teacher)
        if self.angle_weight:
            terms["angle"] = self.angle_weight * rkd_angle_loss(student, teacher)
        return terms

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's features against the teacher's."""
        return torch.stack(tuple(self.terms(student, teacher).values())).sum()

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"


class RKD(Method):
    """Relational knowledge distillation on the pooled features, :class:`RKDLoss`.

    W. Park, D. Kim, Y. Lu, M. Cho, "Relational Knowledge Distillation", CVPR 2019. Under data-parallel training the
    relations are those within each process's own batch.

    Args:
        distance_weight: Weight of the distances; 0 leaves them out.
        angle_weight: Weight of the angles, whose cost grows with B³; 0 leaves them out.
    """

    card = Card(
        name="rkd",
        summary="The student keeps the teacher's relative distances and angles between the samples of a batch.",
        papers=(
            Paper(
                title="Relational Knowledge Distillation",
                authors="W. Park, D. Kim, Y. Lu, M. Cho",
                venue="IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
                year=2019,
                identifier="arXiv:1904.05068",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Distances are divided by their mean; a batch without two different samples is not considered.",
                code="A batch of one sample divides by the mean of no entries and gives NaN; here it gives 0.",
                default="neither",
            ),
        ),
    )
    signals = frozenset({"pooled"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=1.0), "crd": Weights(ce=1.0, kd=0.0, method=1.0)}  # noqa: RUF012

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.criterion = RKDLoss(distance_weight=distance_weight, angle_weight=angle_weight)

    def build(self, dry_run: DryRun) -> None:
        """Check that both networks have pooled features.

        Raises:
            InputError: One of them has none.
        """
        pooled_pair(dry_run.student, dry_run.teacher, "rkd")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum and its terms ``distance`` and ``angle``."""
        terms = self.criterion.terms(*pooled_pair(student, teacher, "rkd"))
        parts = {name: term.detach() for name, term in terms.items()}
        return {"loss": torch.stack(tuple(terms.values())).sum(), **parts}
