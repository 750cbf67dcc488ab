"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.pairwise import check_rows, gram
from stillroom.models.signals import Signals

__all__ = ["SP", "SPLoss", "sp_loss"]


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of the two networks' row-normalised similarity matrices.

    F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019:
    ``L = ‖Ĝ_T − Ĝ_S‖²_F / B²`` with ``G = X Xᵀ`` of the flattened maps X and every row of Ĝ scaled to length 1.

    Args:
        student: Features of the network that learns.
        teacher: Features of the network that is imitated; no gradient flows to it.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the shapes behind B may differ.

    Returns:
        A scalar, in at least float32.

    Raises:
        InputError: The two do not hold the same number of samples.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> print(f"{sp_loss(student, torch.ones(2, 3)):.4f}")
        0.2929
    """
    check_rows(student, teacher)
    similar_student = F.normalize(gram(student), dim=1, eps=1e-12)
    similar_teacher = F.normalize(gram(teacher.detach()), dim=1, eps=1e-12)
    return (similar_teacher - similar_student).square().mean()


class SPLoss(nn.Module):
    """The loss :func:`sp_loss` as a module.

    Shapes:
        student: [B, ...]; teacher: [B, ...]; the loss is a scalar.

    Example:
        >>> import torch
        >>> SPLoss()(torch.eye(2), 3 * torch.eye(2)).item()
        0.0
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's features against the teacher's."""
        return sp_loss(student, teacher)


class SP(Method):
    """Similarity-preserving distillation on the last feature map, :func:`sp_loss`.

    F. Tung, G. Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019. The maps may differ in width and size.
    Under data-parallel training the similarities are those within each process's own batch.
    """

    card = Card(
        name="sp",
        summary="Samples that the teacher's last feature map finds similar become similar in the student's.",
        papers=(
            Paper(
                title="Similarity-Preserving Knowledge Distillation",
                authors="F. Tung, G. Mori",
                venue="IEEE/CVF International Conference on Computer Vision (ICCV), 1365-1374",
                year=2019,
                identifier="arXiv:1907.09682",
            ),
        ),
        standing="verified",
    )
    signals = frozenset({"stages"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=3000.0), "crd": Weights(ce=1.0, kd=0.0, method=3000.0)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.criterion = SPLoss()

    def build(self, dry_run: DryRun) -> None:
        """Check that both networks have a feature map.

        Raises:
            InputError: One of them has none.
        """
        for role, signals in (("student", dry_run.student), ("teacher", dry_run.teacher)):
            if not signals.stages:
                raise InputError(f"sp compares the last feature maps, but the {role} has none; name its stage taps")

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the two last maps."""
        return {"loss": self.criterion(student.stages[-1], teacher.stages[-1])}
