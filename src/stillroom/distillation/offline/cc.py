"""CC: correlation congruence (Peng et al., ICCV 2019), as the distillation benchmarks run it."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pooled_pair
from stillroom.distillation.offline._method import DryRun, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive
from stillroom.losses.pairwise import check_rows
from stillroom.models.signals import Signals

__all__ = ["CC", "CCLoss", "cc_loss"]


def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how much the errors of consecutive samples' embeddings correlate.

    B. Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, in the benchmarks' form:
    ``L = 1/(B−1) Σ_b Σ_c δ[b,c] · δ[b+1,c]`` with ``δ = |e_S − e_T|``. It depends on the order of the batch.

    Args:
        student: Embeddings of the network that learns.
        teacher: Embeddings of the network that is imitated. They are trained as well, so gradient flows to them.

    Shapes:
        student, teacher: [B, D].

    Returns:
        A scalar, in at least float32; 0 for a batch of one.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> import torch
        >>> cc_loss(torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.zeros(2, 2)).item()
        5.0
    """
    check_rows(student, teacher)
    if student.shape != teacher.shape or student.ndim != 2:
        raise InputError(
            f"embeddings to correlate must be [B, D] of one width, not {list(student.shape)} and {list(teacher.shape)}"
        )
    error = (full_precision(student) - full_precision(teacher)).abs()
    return (error[:-1] * error[1:]).sum() / max(len(error) - 1, 1)


class CCLoss(nn.Module):
    """Trainable linear embeddings of both networks' features, compared by :func:`cc_loss`.

    Args:
        student_dim: Width of the student's features.
        teacher_dim: Width of the teacher's features.
        feature_dim: Width of the embeddings.

    Shapes:
        student: [B, student_dim]; teacher: [B, teacher_dim]; the loss is a scalar.

    Raises:
        InputError: A width is not above 0.

    Example:
        >>> import torch
        >>> CCLoss(4, 6, feature_dim=3)(torch.ones(2, 4), torch.ones(2, 6)).shape
        torch.Size([])
    """

    def __init__(self, student_dim: int, teacher_dim: int, *, feature_dim: int = 128) -> None:
        super().__init__()
        positive("feature_dim", feature_dim)
        self.embed_student = nn.Linear(student_dim, feature_dim)
        self.embed_teacher = nn.Linear(teacher_dim, feature_dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the embedded features; no gradient flows to the teacher's features."""
        dtype = self.embed_student.weight.dtype
        return cc_loss(self.embed_student(student.to(dtype)), self.embed_teacher(teacher.detach().to(dtype)))


class CC(Method):
    """Correlation congruence on embeddings of the pooled features, :class:`CCLoss`.

    B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang, "Correlation Congruence for Knowledge
    Distillation", ICCV 2019. Under data-parallel training the pairs are those of each process's own batch.

    Args:
        feature_dim: Width of the embeddings.
    """

    card = Card(
        name="cc",
        summary="The errors of the student's embeddings are made uncorrelated between consecutive samples.",
        papers=(
            Paper(
                title="Correlation Congruence for Knowledge Distillation",
                authors="B. Peng, X. Jin, J. Liu, S. Zhou, Y. Wu, Y. Liu, D. Li, Z. Zhang",
                venue="IEEE/CVF International Conference on Computer Vision (ICCV)",
                year=2019,
                identifier="arXiv:1904.01802",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The squared difference of the two networks' correlation matrices over all pairs of the batch.",
                code="The benchmarks multiply the absolute errors of consecutive samples: the batch's order matters.",
                default="code",
            ),
        ),
    )
    signals = frozenset({"pooled"})
    presets = {"simkd": Weights(ce=1.0, kd=1.0, method=0.02), "crd": Weights(ce=1.0, kd=0.0, method=0.02)}  # noqa: RUF012

    def __init__(self, *, feature_dim: int = 128) -> None:
        super().__init__()
        self.feature_dim = int(positive("feature_dim", feature_dim))
        self.criterion: CCLoss

    def build(self, dry_run: DryRun) -> None:
        """Create the two embeddings.

        Raises:
            InputError: One of the networks has no pooled features.
        """
        student, teacher = pooled_pair(dry_run.student, dry_run.teacher, "cc")
        self.criterion = CCLoss(student.shape[1], teacher.shape[1], feature_dim=self.feature_dim).to(student.device)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the two networks' pooled features."""
        return {"loss": self.criterion(*pooled_pair(student, teacher, "cc"))}

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"feature_dim={self.feature_dim}"
