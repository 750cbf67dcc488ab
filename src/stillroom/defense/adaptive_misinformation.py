"""Adaptive misinformation: the less sure the model is, the more a second network answers that was taught to be wrong.

S. Kariyappa, M. K. Qureshi, "Defending Against Model Stealing Attacks with Adaptive Misinformation", CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense._perturbed import perturbed
from stillroom.defense.contracts import Answers, Floats, Images, Queries, softmax
from stillroom.defense.outliers import Training, train_with_outliers
from stillroom.errors import InputError
from stillroom.losses.checks import check_target, full_precision, not_negative
from stillroom.training.contracts import Loader

__all__ = [
    "AdaptiveMisinformation",
    "adaptive_misinformation",
    "hellinger_distance",
    "misinformation_loss",
    "outlier_exposure_loss",
    "train_exposed",
    "train_misinformation",
]


def adaptive_misinformation(
    probabilities: Floats, misinformation: Floats, *, tau: float, nu: float = 10000.0
) -> tuple[Floats, Floats]:
    """Return ``y' = (1 - alpha) y + alpha ŷ`` and ``alpha = sigmoid(nu (tau - max_k y_k))``.

    Args:
        probabilities: The model's own, y.
        misinformation: Probabilities of the network that was taught to be wrong, ŷ.
        tau: Confidence below which that network answers.
        nu: Steepness of the change from one to the other.

    Shapes:
        probabilities, misinformation: [B, K]. Returns [B, K] and [B].

    Example:
        >>> answered, alpha = adaptive_misinformation(
        ...     np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([[0.0, 1.0], [0.0, 1.0]]), tau=0.7)
        >>> answered.tolist(), alpha.tolist()
        ([[0.9, 0.1], [0.0, 1.0]], [0.0, 1.0])
    """
    steep = nu * (tau - probabilities.max(1))
    alpha = 0.5 * (1 + np.tanh(0.5 * steep))  # the sigmoid, without an exponential that could overflow
    return (1 - alpha[:, None]) * probabilities + alpha[:, None] * misinformation, alpha


def hellinger_distance(p: Floats, q: Floats) -> Floats:
    """Return ``sqrt(1/2 Σ_k (√p_k - √q_k)²)`` of the rows: how far the answers were bent, 0..1.

    Shapes:
        p, q: [B, K]. Returns [B].

    Example:
        >>> hellinger_distance(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).tolist()
        [1.0]
    """
    return np.asarray(np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(1) / 2))


def outlier_exposure_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy to the uniform distribution, less a constant: ``mean(log Σ_k exp(o_k) - mean_k o_k)``.

    Added, for outliers, to the cross-entropy the guarded model is trained with, it keeps the model unsure where it has
    seen nothing. D. Hendrycks, M. Mazeika, T. Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019.

    Shapes:
        logits: [B, K], of outliers; the loss is a scalar.

    Example:
        >>> import torch
        >>> print(f"{outlier_exposure_loss(torch.tensor([[0.0, 0.0]])):.4f}")
        0.6931
    """
    logits = full_precision(logits)
    return (logits.logsumexp(1) - logits.mean(1)).mean()


def misinformation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the logits ``log(1 - softmax(o) + 1e-7)``: small where the right class has no mass.

    Args:
        logits: Of the network that is taught to be wrong.
        target: True classes, or what the guarded model says of outliers.

    Shapes:
        logits: [B, K]. target: [B], int64. The loss is a scalar.

    Raises:
        InputError: The target is not one class index a sample.

    Example:
        >>> import torch
        >>> wrong, right = torch.tensor([[-20.0, 20.0]]), torch.tensor([[20.0, -20.0]])
        >>> label = torch.tensor([0])
        >>> print(f"{misinformation_loss(wrong, label):.3f} {misinformation_loss(right, label):.3f}")
        0.000 16.118
    """
    check_target(logits, target)
    return F.cross_entropy((1 - full_precision(logits).softmax(1) + 1e-7).log(), target)


def train_exposed(
    model: nn.Module, clean: Loader, outliers: Tensor, training: Training, *, weight_outliers: float = 1.0
) -> list[dict[str, Any]]:
    """Train the model to be guarded, with outlier exposure: ``CE + weight_outliers · outlier_exposure_loss``.

    Args:
        model: Trained in place.
        clean: Labelled images.
        outliers: Images of other things.
        training: Recipe, normalisation, seed and run.
        weight_outliers: Weight of the outliers' term.

    Shapes:
        outliers: [N, C, H, W], uint8.

    Returns:
        One record an epoch.
    """
    not_negative("weight_outliers", weight_outliers)

    def objective(logits: Tensor, target: Tensor, outlier_logits: Tensor, _: Tensor) -> dict[str, Tensor]:
        return {
            "ce": F.cross_entropy(full_precision(logits), target),
            "outlier_exposure": weight_outliers * outlier_exposure_loss(outlier_logits),
        }

    return train_with_outliers(model, clean, outliers, objective, training, label="outlier exposure")


def train_misinformation(
    model: nn.Module, clean: Loader, outliers: Tensor, outlier_classes: Tensor, training: Training
) -> list[dict[str, Any]]:
    """Train the network that is wrong: :func:`misinformation_loss` on labelled images and on outliers.

    Args:
        model: Trained in place.
        clean: Labelled images.
        outliers: Images of other things.
        outlier_classes: What the guarded model takes each of them for.
        training: Recipe, normalisation, seed and run.

    Shapes:
        outliers: [N, C, H, W], uint8. outlier_classes: [N], int64.

    Returns:
        One record an epoch.

    Raises:
        InputError: There is not one class for each outlier.
    """
    if outlier_classes.shape != outliers.shape[:1]:
        raise InputError(f"{len(outlier_classes)} classes for {len(outliers)} outliers; give one for each")

    def objective(logits: Tensor, target: Tensor, outlier_logits: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        said = outlier_classes.to(drawn.device)[drawn]
        return {
            "misinformation": misinformation_loss(logits, target),
            "outlier_misinformation": misinformation_loss(outlier_logits, said),
        }

    return train_with_outliers(model, clean, outliers, objective, training, label="misinformation")


class AdaptiveMisinformation:
    """Answers with a network that is wrong where the model is unsure.

    Args:
        misinform: Logits [B, K] of the network that was taught to be wrong, see :func:`train_misinformation`.
        tau: Confidence below which that network answers; it belongs to one model, take a low quantile of the confidence
            on held-out images.
        nu: Steepness of the change from one to the other.

    Raises:
        InputError: ``tau`` is outside 0..1, or ``nu`` is not above 0 or not finite.
    """

    card: ClassVar[Card] = Card(
        name="adaptive_misinformation",
        summary="Answers with a network taught to be wrong where the model is unsure.",
        papers=(
            Paper(
                title="Defending Against Model Stealing Attacks with Adaptive Misinformation",
                authors="S. Kariyappa, M. K. Qureshi",
                venue="CVPR",
                year=2020,
                identifier="arXiv:1911.07100",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the gate is a sigmoid",
                code="1 / (1 + exp(.)) in float32, which overflows with a warning at nu = 10000",
                default="paper",
            ),
        ),
    )

    def __init__(
        self, misinform: Callable[[Images], NDArray[np.floating]], *, tau: float = 0.5, nu: float = 10000.0
    ) -> None:
        if not 0 <= tau <= 1:
            raise InputError(f"tau is {tau}; a confidence lies in 0..1")
        if not 0 < nu < np.inf:
            raise InputError(f"nu is {nu}; it must be finite and above 0")
        self.misinform, self.tau, self.nu = misinform, tau, nu

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        wrong = softmax(self.misinform(queries.images))
        return perturbed(clean, adaptive_misinformation(clean, wrong, tau=self.tau, nu=self.nu)[0])
