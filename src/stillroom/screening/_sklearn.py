"""What is taken from scikit-learn, or the line that says how to install it."""

from __future__ import annotations

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as error:
    from stillroom.errors import MissingExtraError

    if error.name != "sklearn":
        raise
    raise MissingExtraError("scikit-learn", "screening") from None

__all__ = ["BaseEstimator", "ClassifierMixin", "TransformerMixin", "check_is_fitted"]
