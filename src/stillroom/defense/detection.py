"""How well accounts are told apart: window scores of honest and stealing accounts, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.defense.contracts import Floats
from stillroom.errors import InputError, MissingExtraError

__all__ = ["Separation", "separate"]


@dataclass(frozen=True)
class Separation:
    """Window scores of two kinds of accounts, compared; positives are the attack's."""

    auroc: float
    fpr_at_95_tpr: float  # share of honest windows above the threshold that catches 95 % of the attack's
    detected: float  # share of the attack's windows above the threshold in force
    fpr: float  # share of honest windows above it


def separate(honest: Floats, attack: Floats, threshold: float) -> Separation:
    """Compare the window scores of honest and attacking accounts.

    Shapes:
        honest: [n]. attack: [m].

    Raises:
        InputError: One of them is empty or holds a number that is not finite.

    Example:
        >>> separate(np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0, 5.0, 6.0]), 3.5)
        Separation(auroc=0.9166666666666667, fpr_at_95_tpr=0.3333333333333333, detected=0.75, fpr=0.0)
    """
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "vision") from error
    scores = np.concatenate([honest, attack])
    if not len(honest) or not len(attack) or not np.isfinite(scores).all():
        raise InputError("a comparison needs finite scores of honest and of attacking accounts")
    malicious = np.concatenate([np.zeros(len(honest)), np.ones(len(attack))])
    # The largest threshold that still catches 95 %: as many as ceil(0.95 m) scores are at or above it.
    caught = np.sort(attack)[::-1][int(np.ceil(0.95 * len(attack) - 1e-9)) - 1]
    return Separation(
        auroc=float(roc_auc_score(malicious, scores)),
        fpr_at_95_tpr=float((honest >= caught).mean()),
        detected=float((attack > threshold).mean()),
        fpr=float((honest > threshold).mean()),
    )
