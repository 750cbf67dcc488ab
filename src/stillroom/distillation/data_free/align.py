"""What the student minimises on synthetic images: soft targets, the labels of the synthesis, the teacher's last map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.distillation.offline._align import pool_to
from stillroom.losses.checks import full_precision
from stillroom.losses.kl import kd_loss

__all__ = ["AlignHead", "student_loss"]


class AlignHead(nn.Module):
    """Shapes the student's last map like the teacher's: conv1×1 – BN – ReLU – conv3×3 – BN – ReLU – conv1×1.

    S. Luo, D. Chen, C. Wang, "Customizing Synthetic Data for Data-Free Student Learning", ICME 2023; the hidden maps
    are twice as wide as the teacher's. It is the projector of SimKD wider and without its last BN and ReLU.

    Args:
        student_channels: Channels coming in.
        teacher_channels: Channels going out.

    Shapes:
        ``forward(feature_map, size)`` takes [B, C_S, h, h] and returns [B, C_T, size, size].
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        hidden = 2 * teacher_channels
        self.conv1 = nn.Conv2d(student_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, teacher_channels, 1, bias=False)

    def forward(self, feature_map: Tensor, size: int) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pool_to(feature_map, size))))
        aligned: Tensor = self.conv3(F.relu(self.bn2(self.conv2(x))))
        return aligned


def student_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    aligned: Tensor | None = None,
    teacher_map: Tensor | None = None,
    *,
    temperature: float = 20.0,
    feature_weight: float = 30.0,
) -> Tensor:
    """Return the student's objective ``KL_T(z_S ‖ z_T) + CE(z_S, y) + fea · mse(A(F_S), F_T)``.

    S. Luo, D. Chen, C. Wang, "Customizing Synthetic Data for Data-Free Student Learning", ICME 2023. The labels are
    those the images were made for, not the teacher's answers. Nothing flows into the teacher. The other data-free
    methods have the first term alone.

    Args:
        student: z_S, the student's logits.
        teacher: z_T, the teacher's.
        target: y, the labels of the synthesis; None leaves the second term out.
        aligned: A(F_S), the student's last map behind :class:`AlignHead`; None leaves the third term out.
        teacher_map: F_T, the teacher's last map.
        temperature: T.
        feature_weight: fea.

    Shapes:
        student, teacher: [B, K]. target: [B], int64. aligned, teacher_map: [B, C, h, h].

    Returns:
        A scalar.
    """
    loss = kd_loss(student, teacher, temperature=temperature)
    if target is not None:
        loss = loss + F.cross_entropy(full_precision(student), target)
    if aligned is not None and teacher_map is not None:
        loss = loss + feature_weight * F.mse_loss(full_precision(aligned), full_precision(teacher_map.detach()))
    return loss
