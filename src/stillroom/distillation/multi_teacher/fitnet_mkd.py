"""FitNet-MKD: the plain average of all teachers' answers and of their hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers, squared_error
from stillroom.distillation.multi_teacher.weights import stack_logits, uniform_weights, weighted_kl
from stillroom.distillation.offline._align import pool_to, require_stages, side
from stillroom.distillation.offline._method import Signal
from stillroom.distillation.offline.fitnet import FitNetRegressor
from stillroom.models.signals import Signals

__all__ = ["FitNetMKD", "MultiHint"]

STAGE = 1  # the literature's index 2, where the stem is 0


class MultiHint(nn.Module):
    """Regress one student map to the maps of several teachers: ``L = (1/K) Σ_k mse(R_k(F_S), F_k)``.

    ``R_k`` is FitNet's regressor; a student map of a quarter of the teacher's side is interpolated first, and where
    no regressor meets the teacher's size the teacher's map is pooled.

    Args:
        student: A map of the student.
        teachers: A map of every teacher.

    Shapes:
        student: [B, C_S, h, h]; teachers[k]: [B, C_k, h_k, h_k].
    """

    def __init__(self, student: Tensor, teachers: Sequence[Tensor]) -> None:
        super().__init__()
        size = side(student, "student")
        self.sizes = tuple(side(teacher, "teacher") for teacher in teachers)
        self.regressor = nn.ModuleList(
            FitNetRegressor(student.shape[1], teacher.shape[1], size, own)
            for teacher, own in zip(teachers, self.sizes, strict=True)
        )

    def regress(self, student: Tensor) -> list[Tensor]:
        """Return ``R_k(F_S)`` for every teacher."""
        regressed = []
        for size, regressor in zip(self.sizes, self.regressor, strict=True):
            quarter = 4 * student.shape[-1] == size
            resized = F.interpolate(student, size=(size, size), mode="bilinear") if quarter else student
            regressed.append(regressor(resized))
        return regressed

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """Return the mean squared errors [B, K]; the hint loss is their mean."""
        regressed = self.regress(student)
        return squared_error(regressed, [pool_to(t, r.shape[-1]) for t, r in zip(teachers, regressed, strict=True)])


class FitNetMKD(ManyTeachers):
    """Average of the teachers' answers and hints: ``gamma · CE + alpha · AVER + beta · (1/K) Σ_k mse(R_k(F_S), F_k)``.

    A. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, with several teachers as the baseline of CA-MKD.
    The maps are those of the second stage.

    Args:
        temperature: T, softens all distributions.
        gamma: Weight of the cross-entropy.
        alpha: Weight of the distillation term.
        beta: Weight of the hint term.
    """

    card: ClassVar[Card] = Card(
        name="fitnet_mkd",
        summary="Every teacher counts the same, with its answers and with the map of its second stage.",
        papers=(
            Paper(
                title="FitNets: Hints for Thin Deep Nets",
                authors="A. Romero, N. Ballas, S. Ebrahimi Kahou, A. Chassang, C. Gatta, Y. Bengio",
                venue="ICLR",
                year=2015,
                identifier="arXiv:1412.6550",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The student learns from the hints.",
                code="Rebuilds the mean of the hint losses from plain numbers: no gradient reaches the student.",
                default="paper",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})

    hint: MultiHint

    def __init__(
        self, *, temperature: float = 4.0, gamma: float = 1.0, alpha: float = 1.0, beta: float = 100.0
    ) -> None:
        super().__init__(temperature=temperature, gamma=gamma, alpha=alpha, beta=beta)
        self.shallow: tuple[str, ...] = ()

    def build(self, dry_run: DryRun) -> None:
        """Create a regressor for every teacher."""
        owners = ["student", *(f"teacher {k}" for k in range(1, len(dry_run.teachers) + 1))]
        for owner, signals in zip(owners, (dry_run.student, *dry_run.teachers), strict=True):
            if len(require_stages(signals, owner, "fitnet_mkd")) <= STAGE:
                self.shallow = (*self.shallow, owner)
        self.hint = MultiHint(_map(dry_run.student), [_map(teacher) for teacher in dry_run.teachers])

    def notes(self, epochs: int) -> tuple[str, ...]:
        """Name the networks without a second stage."""
        if not self.shallow:
            return ()
        return (f"No second stage in {', '.join(self.shallow)}: the hint is taken from the only one there.",)

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return 1/K everywhere."""
        return uniform_weights(teachers)

    def forward(self, student: Signals, teachers: Sequence[Signals], target: Tensor) -> dict[str, Tensor]:
        """Return the objective and its parts."""
        logits = stack_logits([teacher.logits for teacher in teachers])
        weights = self.weigh(student.logits, logits, target)
        kd = weighted_kl(student.logits, logits, weights, temperature=self.temperature)
        hints = self.hint(_map(student), [_map(teacher) for teacher in teachers])
        return self.objective(student, target, kd, weights, hints.mean())


def _map(signals: Signals) -> Tensor:
    return signals.stages[min(STAGE, len(signals.stages) - 1)]
