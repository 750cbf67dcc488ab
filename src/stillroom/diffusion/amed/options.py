"""How AMED is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from stillroom.diffusion.amed.sampler import USES
from stillroom.errors import InputError

__all__ = ["AMEDOptions"]

OBJECTIVES = ("steps", "final")
DECAYS = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class AMEDOptions:
    """How AMED is trained; the defaults are the paper's (section 5.1 and its scripts for CIFAR-10).

    Args:
        trajectories: Noise samples in all.
        batch_size: Noise samples per batch; each batch makes one update per step of the student.
        lr: Learning rate of Adam.
        decay: How the learning rates fall: not, or as a ``cosine`` to 0 (not in the paper).
        intermediate: Points the teacher puts between two of the student's.
        afs: Analytical first step of the student.
        scale_dir: Largest deviation of the direction's factor from 1.
        scale_time: Largest deviation of the factor of the noise level that the model is told from 1.
        hidden: Width of the predictor.
        uses: What the predictor sees, see :class:`AMEDSampler`; by default the bottleneck where the model has one
            hooked, else nothing.
        objective: ``steps``: every step ends close to the teacher's, which starts from the same point; ``final``: the
            last state does, gradients flow through all steps, and the predictor starts at the student's plain solver
            (not in the paper; takes more memory).
        lr_levels: Also learn the student's noise levels between first and last, with this learning rate; needs the
            objective ``final`` (not in the paper).

    Raises:
        InputError: A value is out of its range.
    """

    trajectories: int = 10_000
    batch_size: int = 128
    lr: float = 5e-3
    decay: Literal["constant", "cosine"] = "constant"
    intermediate: int = 1
    afs: bool = True
    scale_dir: float = 0.01
    scale_time: float = 0.0
    hidden: int = 128
    uses: Literal["auto", "bottleneck", "denoised", "nothing"] = "auto"
    objective: Literal["steps", "final"] = "steps"
    lr_levels: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("trajectories", 1), ("batch_size", 1), ("intermediate", 0)):
            if getattr(self, name) < least:
                raise InputError(f"amed.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "lr_levels"):
            if (rate := getattr(self, name)) is not None and not 0 < rate < math.inf:
                raise InputError(f"amed.{name} is {rate}; it must be positive and finite")
        for name, known in (("uses", ("auto", *USES)), ("objective", OBJECTIVES), ("decay", DECAYS)):
            if getattr(self, name) not in known:
                raise InputError(f"amed.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.lr_levels is not None and self.objective != "final":
            raise InputError("amed.lr_levels needs amed.objective final: step by step there is nothing to learn from")
