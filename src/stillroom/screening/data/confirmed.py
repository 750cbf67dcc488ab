"""Interactions that became known after the data were made: what a ranking can be held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Mask
from stillroom.screening.data._files import needed_file, read_lines
from stillroom.screening.interactions import Interactions

__all__ = ["read_confirmed"]


def read_confirmed(file: Path, data: Interactions) -> Mask:
    """Return which pairs stand in a file of interactions, [drugs, targets].

    Args:
        file: A drug and one or more targets each line, separated by commas, or by blanks or tabs; gzipped or not. Drugs
            and targets that are not in the data are passed over.
        data: The data whose names are looked for.

    Raises:
        InputError: The file is missing or no text, or no pair of it is in the data.
    """
    drugs = {name: place for place, name in enumerate(data.drugs)}
    targets = {name: place for place, name in enumerate(data.targets)}
    confirmed = np.zeros(data.shape, dtype=bool)
    for _, line in read_lines(needed_file(file)):
        words = [word.strip() for word in (line.split(",") if "," in line else line.split())]
        drug, *bound = [word for word in words if word] or [""]
        if drug in drugs:
            confirmed[drugs[drug], [targets[target] for target in bound if target in targets]] = True
    if not confirmed.any():
        raise InputError(f"{file} holds no pair of {data.name}; use the names of its drugs and targets")
    return confirmed
