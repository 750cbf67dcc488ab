"""From measured affinities to labels: bounds, repeated and contradictory measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping
from statistics import median
from typing import TypeVar

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask

__all__ = ["label_matrices", "labels_of", "parse_affinity"]

Pair = TypeVar("Pair", bound=Hashable)

MOST_PAIRS = 50_000_000  # their labels alone take 400 MB
AFFINITY = re.compile(r"(>=|<=|>>|<<|>|<|=|~)?\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)")
RELATIONS = {"": "=", "~": "=", ">>": ">", "<<": "<"}


def parse_affinity(text: str) -> tuple[str, float] | None:
    """Return the relation (``=``, ``>``, ``>=``, ``<``, ``<=``) and the number of a text, None if it is none.

    Example:
        >>> parse_affinity(">10000"), parse_affinity(" 2.5e1"), parse_affinity("n.d.")
        (('>', 10000.0), ('=', 25.0), None)
    """
    found = AFFINITY.fullmatch(text.strip())
    if found is None or not math.isfinite(float(found[2])):
        return None
    relation = found[1] or ""
    return RELATIONS.get(relation, relation), float(found[2])


def labels_of(
    measurements: Iterable[tuple[Pair, str, float]], *, threshold: float, at_least: bool = False
) -> tuple[dict[Pair, bool], list[str]]:
    """Return which pairs interact, for all whose measurements tell.

    Concentrations (``at_least`` false: the lower the tighter) are compared as logarithms, so that the median of several
    is the geometric one; values that rise with the affinity (pKd, KIBA scores) are compared as they are. A bound, such
    as ``> 10000``, counts where it lies on the right side of the threshold, and says nothing elsewhere.

    Args:
        measurements: Pair, relation and value; concentrations are above 0.
        threshold: Value at which a pair interacts.
        at_least: Whether values above it interact, not those below.

    Returns:
        Whether each pair interacts, and sentences about what was decided.
    """
    sign = -1 if at_least else 1

    def level(value: float) -> float:  # falls as the affinity rises
        return -value if at_least else math.log10(value)

    limit = level(threshold)
    levels: dict[Pair, list[float]] = {}
    silent = 0
    for pair, relation, value in measurements:
        here = level(value)
        side = sign * (1 if ">" in relation else -1 if "<" in relation else 0)
        if side > 0 and "=" not in relation:
            here = math.nextafter(here, math.inf)  # above the threshold even where the bound is the threshold
        if side * (here - limit) < 0 or (side > 0 and here == limit):
            silent += 1
            continue
        levels.setdefault(pair, []).append(here)
    several = [values for values in levels.values() if len(values) > 1]
    torn = sum(min(values) <= limit < max(values) for values in several)
    notes = [f"pairs interact at {threshold:g} or {'more' if at_least else 'less'}"]
    if silent:
        notes.append(f"left out: {_count(silent, 'bound')} that may lie on either side of the threshold")
    if several:
        notes.append(f"{_count(len(several), 'pair')} measured several times; the median counts")
    if torn:
        notes.append(f"{_count(torn, 'pair')} of these measured on both sides of the threshold")
    return {pair: median(values) <= limit for pair, values in levels.items()}, notes


def label_matrices(
    labels: Mapping[tuple[int, int], bool], shape: tuple[int, int], origin: str, *, by_threshold: bool
) -> tuple[Array, Mask]:
    """Return labels and which pairs are measured, [drugs, targets].

    Raises:
        InputError: There are too many pairs for a matrix, or none interacts.
    """
    if math.prod(shape) > MOST_PAIRS:
        raise InputError(
            f"{origin} has {shape[0]} drugs and {shape[1]} targets, {math.prod(shape):,} pairs; at most "
            f"{MOST_PAIRS:,} fit, so take fewer of either"
        )
    if not any(labels.values()):
        mend = "change data.threshold" if by_threshold else "label known interactions 1"
        raise InputError(f"{origin}: none of the {len(labels)} measured pairs interacts; {mend}")
    values, measured = np.zeros(shape), np.zeros(shape, dtype=bool)
    for pair, interacts in labels.items():
        values[pair], measured[pair] = interacts, True
    return values, measured


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
