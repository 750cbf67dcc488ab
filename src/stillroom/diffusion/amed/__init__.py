"""AMED: a tiny network chooses the second evaluation of every step (Zhou et al., CVPR 2024)."""

from __future__ import annotations

from stillroom.diffusion.amed.feature import Bottleneck, bottleneck
from stillroom.diffusion.amed.options import AMEDOptions
from stillroom.diffusion.amed.predictor import Prediction, Predictor
from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.amed.steps import Student
from stillroom.diffusion.amed.sweep import sweep, update
from stillroom.diffusion.amed.training import train_amed

__all__ = [
    "AMEDOptions",
    "AMEDSampler",
    "Bottleneck",
    "Prediction",
    "Predictor",
    "Student",
    "bottleneck",
    "sweep",
    "train_amed",
    "update",
]
