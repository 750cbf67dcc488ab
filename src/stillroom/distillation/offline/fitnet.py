"""FitNet: one student stage is regressed to the teacher's, the hint."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import pool_to, require_stages, side
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models.signals import Signals

__all__ = ["FitNet", "FitNetRegressor", "fitnet_loss"]


def fitnet_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the regressed student stage and the teacher's hint.

    A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, as a mean:
    ``L = MSE(r(F_S), F_T)``, the hint average-pooled where it is larger.

    Shapes:
        regressed: [B, C, h, h].
        teacher: [B, C, h', h'], h' >= h; no gradient flows into it.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> fitnet_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 8, 8))
        tensor(1.)
    """
    return F.mse_loss(full_precision(regressed), full_precision(pool_to(teacher.detach(), regressed.shape[-1])))


class FitNetRegressor(nn.Module):
    """Regress a student stage to the shape of the teacher's: one convolution chosen by the sizes, BN, ReLU.

    Twice as large: 3×3, stride 2. Half as large: transposed 4×4, stride 2. Otherwise not smaller: an unpadded
    convolution with kernel ``1 + h_S − h_T``. Otherwise smaller: 3×3, and the teacher's map is pooled.

    Args:
        student_channels: Channels coming in.
        teacher_channels: Channels going out.
        student_size: ``h_S``.
        teacher_size: ``h_T``.

    Example:
        >>> import torch
        >>> FitNetRegressor(4, 8, 16, 8)(torch.ones(2, 4, 16, 16)).shape
        torch.Size([2, 8, 8, 8])
    """

    def __init__(self, student_channels: int, teacher_channels: int, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.conv: nn.Module
        if student_size == 2 * teacher_size:
            self.conv = nn.Conv2d(student_channels, teacher_channels, 3, stride=2, padding=1)
        elif 2 * student_size == teacher_size:
            self.conv = nn.ConvTranspose2d(student_channels, teacher_channels, 4, stride=2, padding=1)
        elif student_size >= teacher_size:
            self.conv = nn.Conv2d(student_channels, teacher_channels, 1 + student_size - teacher_size)
        else:
            self.conv = nn.Conv2d(student_channels, teacher_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(teacher_channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return the regressed map [B, C_T, h, h]: ``h = h_T``, or ``h_S`` where the teacher's map is to be pooled."""
        return F.relu(self.bn(self.conv(feature_map)))


class FitNet(Method):
    """Hint training on one pair of stages, together with the other terms.

    Args:
        stage: Which stage, counted from 1 (the stem is not counted): 1 in the SimKD and SemCKD repositories, 2 in the
            CRD benchmark, mdistiller and HKD repositories.
    """

    card: ClassVar[Card] = Card(
        name="fitnet",
        summary="Regresses one intermediate stage of the student to the teacher's.",
        papers=(
            Paper(
                title="FitNets: Hints for Thin Deep Nets",
                authors="A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio",
                venue="ICLR",
                year=2015,
                identifier="arXiv:1412.6550",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The layers up to the hint are trained first, then the whole student with KD.",
                code="The hint is one more term in a single stage of training.",
                default="code",
            ),
            Quirk(
                paper="The guided layer is the middle one.",
                code="The first stage in the SimKD and SemCKD repositories, the second in the CRD-benchmark ones.",
                default="code",
                option="stage=2",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=1.0, method=100.0),
        "crd": Weights(ce=1.0, kd=0.0, method=100.0),
    }

    regressor: FitNetRegressor

    def __init__(self, *, stage: int = 1) -> None:
        super().__init__()
        if stage < 1:
            raise InputError(f"stage counts from 1, got {stage}")
        self.stage = stage

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"stage={self.stage}"

    def build(self, dry_run: DryRun) -> None:
        """Create the regressor for the sizes of the chosen stage."""
        chosen = []
        for owner, signals in (("student", dry_run.student), ("teacher", dry_run.teacher)):
            stages = require_stages(signals, owner, "fitnet")
            if self.stage > len(stages):
                raise InputError(f"fitnet was asked for stage {self.stage}, but the {owner} has {len(stages)}")
            chosen.append(stages[self.stage - 1])
        student, teacher = chosen
        self.regressor = FitNetRegressor(
            student.shape[1], teacher.shape[1], side(student, "student"), side(teacher, "teacher")
        )

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the chosen stage."""
        regressed = self.regressor(student.stages[self.stage - 1])
        return {"loss": fitnet_loss(regressed, teacher.stages[self.stage - 1])}
