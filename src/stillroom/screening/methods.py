"""The one table of methods for screening: name -> where its class lives, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stillroom.errors import unknown_name

if TYPE_CHECKING:
    from stillroom.screening.estimators._screener import Screener

__all__ = ["METHODS", "method_class"]

METHODS: dict[str, str] = {
    "nearest_profile": "nearest_profile:NearestProfile",
    "weighted_profile": "weighted_profile:WeightedProfile",
    "naive_bayes": "naive_bayes:KernelNaiveBayes",
    "knn": "knn:KernelKNN",
    "svm": "svm:PairwiseSVM",
    "forest": "forest:PairwiseForest",
    "boosting": "boosting:PairwiseBoosting",
    "rls_avg": "rls_avg:RLSAvg",
    "rls_kron": "rls_kron:RLSKron",
    "blm": "blm:BLM",
    "blm_nii": "blm_nii:BLMNII",
    "wnn_gip": "wnn_gip:WNNGIP",
    "net_lap_rls": "net_lap_rls:NetLapRLS",
    "cmf": "cmf:CMF",
    "kbmf": "kbmf:KBMF",
    "nrlmf": "nrlmf:NRLMF",
}


def method_class(name: str) -> type[Screener]:
    """Return the class behind a method's short name.

    Raises:
        InputError: The name is not in the table; the nearest known name is suggested.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> method_class("blm_nii").card.papers[0].year
        2013
    """
    if name not in METHODS:
        raise unknown_name("method for screening", name, METHODS)
    module, attribute = METHODS[name].split(":")
    found: type[Screener] = getattr(import_module(f"stillroom.screening.estimators.{module}"), attribute)
    return found
