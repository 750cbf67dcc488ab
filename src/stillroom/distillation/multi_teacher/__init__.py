"""Distillation from several teachers at once."""

from stillroom.distillation.multi_teacher.weights import (
    combine,
    confidence_weights,
    entropy_weights,
    gradient_weights,
    least_norm_weights,
    uniform_weights,
    weighted_kl,
)

__all__ = [
    "combine",
    "confidence_weights",
    "entropy_weights",
    "gradient_weights",
    "least_norm_weights",
    "uniform_weights",
    "weighted_kl",
]
