"""The checks of labels, pairs, similarities and options, each a line that names the row or the value it is about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError, unknown_name

__all__ = [
    "Array",
    "Mask",
    "checked_labels",
    "checked_mask",
    "checked_numbers",
    "checked_pairs",
    "checked_similarity",
    "in_range",
    "one_of",
]

LARGEST = 1e15  # similarity; squares of larger ones leave no digits of anything else
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def in_range(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False, whole: bool = False
) -> None:
    """Refuse an option outside its range.

    Args:
        name: What messages call it.
        value: What was given.
        least: The smallest value allowed.
        most: The largest one.
        above: Whether the smallest value itself is refused.
        whole: Whether it must be an integer.

    Raises:
        InputError: It is no number, or outside.
    """
    number = isinstance(value, int | np.integer if whole else int | float | np.integer | np.floating)
    fits = number and not isinstance(value, bool) and math.isfinite(value)
    if fits and (least < value if above else least <= value) and value <= most:
        return
    kind = "a whole number" if whole else "a number"
    bounds = [f"{'above' if above else 'at least'} {least:g}"] if math.isfinite(least) else []
    bounds += [f"at most {most:g}"] if math.isfinite(most) else []
    raise InputError(f"{name} is {value!r}; it must be {kind}{' ' if bounds else ''}{' and '.join(bounds)}")


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of its choices.

    Raises:
        InputError: It is another one; the nearest is suggested.
    """
    if value not in choices:
        raise unknown_name(name, str(value), choices)


def checked_similarity(matrix: object, size: int | None, name: str) -> Array:
    """Return a similarity matrix as float64 [size, size], made symmetric as ``(S + S^T) / 2``.

    Raises:
        InputError: It is missing, not square, of another size, or holds NaN, infinity or huge values.
    """
    if matrix is None:
        raise InputError(f"{name} is missing; give the matrix of similarities [{size or 'N'}, {size or 'N'}]")
    values = checked_numbers(matrix, name)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape[0] == 0:
        raise InputError(f"{name} has shape {list(values.shape)}; it must be square, one row and column each")
    if size is not None and len(values) != size:
        raise InputError(f"{name} has {len(values)} rows, but the labels have {size} {name.partition('_')[0]}s")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise InputError(f"{name} is {values[row, column]} in row {row}, column {column} (counted from 0); replace it")
    if np.abs(values).max() > LARGEST:
        raise InputError(f"{name} holds values up to {np.abs(values).max():.3g}; bring similarities to 0..1")
    symmetric: Array = (values + values.T) / 2
    return symmetric


def checked_labels(labels: object) -> Array:
    """Return the labels as float64 [drugs, targets] of zeros and ones.

    Raises:
        InputError: They are no matrix, hold something else, or no pair is labelled 1.
    """
    values = checked_numbers(labels, "labels")
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"labels have shape {list(values.shape)}; they must be [drugs, targets]")
    odd = np.argwhere((values != 0) & (values != 1))  # NaN is odd too
    if len(odd):
        row, column = odd[0]
        raise InputError(
            f"the label of drug {row} and target {column} (counted from 0) is {values[row, column]:g}; labels are 0 "
            "or 1, set a threshold for affinities"
        )
    if not values.any():
        raise InputError("no pair is labelled 1; at least one known interaction is needed")
    return values


def checked_mask(observed: object, shape: tuple[int, int], name: str = "observed") -> Mask:
    """Return which pairs are observed, all if nothing is said, as booleans [drugs, targets].

    Raises:
        InputError: It is of another shape or no mask.
    """
    if observed is None:
        return np.ones(shape, dtype=bool)
    mask = np.asarray(observed)
    if mask.shape != shape:
        raise InputError(f"{name} has shape {list(mask.shape)}; it must be {list(shape)}, [drugs, targets]")
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"{name} holds something else than true and false")
    return mask.astype(bool)


def checked_pairs(pairs: object, shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return pairs of positions as integers [P, 2]: drug, target.

    Raises:
        InputError: They are no pairs of integers, or point outside the similarities.
    """
    values = np.asarray(pairs)
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(
            f"pairs have shape {list(values.shape)}; each is the position of a drug and of a target, [P, 2]"
        )
    numbers = checked_numbers(values, "pairs")
    fits = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < shape)  # NaN and infinity are neither
    bad = np.flatnonzero(~fits.all(axis=1))
    if len(bad):
        drug, target = values[bad[0]]
        raise InputError(
            f"pair {bad[0]} (counted from 0) is drug {drug}, target {target}; positions are whole numbers, drugs "
            f"0..{shape[0] - 1}, targets 0..{shape[1] - 1}"
        )
    return numbers.astype(np.intp)


def checked_numbers(values: object, name: str) -> Array:
    """Return values as float64.

    Raises:
        InputError: One is no number.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} holds something that is no number") from None
