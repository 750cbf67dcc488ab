"""Ranks the pairs not known to interact, with what supports each prediction, and says how far to trust the ranks."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.errors import InputError, nearest
from stillroom.files import plain, write_text_atomic
from stillroom.hyperparameters import method_options as options_of
from stillroom.reports.page import environment, write_page
from stillroom.reports.tables import Table
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening._job import prepared
from stillroom.screening.cross_validation import SEEDS, Counting, cross_validate, new_screener
from stillroom.screening.data.confirmed import read_confirmed
from stillroom.screening.data.sources import read_from
from stillroom.screening.interactions import Interactions
from stillroom.screening.leaks import Twins, identical
from stillroom.screening.metrics import auc
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Setting
from stillroom.screening.report import SETTINGS, fold_notes, prediction_page, prediction_tables
from stillroom.training.progress import counting as progress
from stillroom.training.run import RunDirectory

__all__ = ["Prediction", "Predictions", "predict", "ranked", "supported"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A pair that is not known to interact, and what speaks for it.

    Args:
        rank: From 1, among the pairs of its setting.
        drug: Its name.
        target: Its name.
        score: As the method gives it; comparable within one run only.
        setting: S1 for a drug and a target with known interactions, S2 for a new drug, S3 for a new target, S4 both.
        nearest_drug: The most similar drug known to interact with the target, where there is one.
        drug_similarity: How similar.
        nearest_target: The most similar target known to interact with the drug, where there is one.
        target_similarity: How similar.
        smiles: The drug's structure, where known.
        nearest_smiles: That of the nearest drug.
        confirmed: Whether the pair has become known since, where a file says.
    """

    rank: int
    drug: str
    target: str
    score: float
    setting: Setting
    nearest_drug: str | None
    drug_similarity: float | None
    nearest_target: str | None
    target_similarity: float | None
    smiles: str | None
    nearest_smiles: str | None
    confirmed: bool | None = None


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict` returns: a table a setting, and what is in ``result.json``."""

    tables: dict[str, Table]
    result: dict[str, Any]
    out: Path


def ranked(scores: Array, top: int) -> list[int]:
    """Return the places of the highest scores, best first; equal scores in the order in which they stand.

    Example:
        >>> ranked(np.array([0.1, 0.9, 0.5, 0.9]), 3)
        [1, 3, 2]
    """
    places = np.arange(len(scores))
    if len(scores) > top:  # a full sort of millions of pairs for the first few would be a waste
        places = np.flatnonzero(scores >= np.partition(scores, len(scores) - top)[len(scores) - top])
    best: list[int] = places[np.argsort(-scores[places], kind="stable")][:top].tolist()
    return best


def supported(labels: Array, similarity: Array, row: int, column: int) -> tuple[int, float] | None:
    """Return the most similar other row with a 1 in the column, and how similar; nothing where there is none.

    Example:
        >>> supported(np.array([[0.0], [1.0]]), np.array([[1.0, 0.3], [0.3, 1.0]]), 0, 0)
        (1, 0.3)
    """
    known = np.flatnonzero(labels[:, column] > 0)
    known = known[known != row]
    if len(known) == 0:
        return None
    nearest = int(known[np.argmax(similarity[row, known])])
    return nearest, float(similarity[row, nearest])


def predict(
    *,
    method: str = "blm_nii",
    data: str | ScreeningDataOptions = "generated",
    method_options: Mapping[str, Any] | None = None,
    top: int = 10,
    drug: Sequence[str] = (),
    target: Sequence[str] = (),
    check: bool = True,
    confirmed: Path | None = None,
    seed: int = SEEDS[0],
    out: str | Path = "runs/screening-predict",
    show_progress: bool = True,
    overwrite: bool = False,
) -> Predictions:
    """Fit a method on everything known and rank the pairs that are not known to interact.

    Where the data say which pairs are inactive, only measured pairs are observed, and only they count in the check;
    elsewhere all pairs of drugs and targets with a known interaction are.
    Pairs of known drugs and targets, of new drugs, of new targets and of both are ranked each among themselves: their
    scores do not compare.

    Args:
        method: Its name, see ``stillroom methods``.
        data: The data set and its options.
        method_options: The method's options, where they differ from the defaults.
        top: Predictions to list for each setting.
        drug: Rank pairs of these drugs only.
        target: Rank pairs of these targets only.
        check: Cross-validate the method on the same data, for every setting the listed pairs fall under.
        confirmed: File of interactions that have become known since, a drug and its targets each line: the ranking is
            held against it.
        seed: Of the method's draws and of the check's folds.
        out: The run directory.
        show_progress: Show progress on standard error.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: A result could not be written.
    """
    in_range("top", top, 1, whole=True)
    in_range("seed", seed, 0, 2**32 - 1, whole=True)
    options, interactions = prepared(data)
    screener = new_screener(method, interactions, method_options or {}, seed)
    candidates = _candidates(interactions, drug, target)
    since = None if confirmed is None else read_confirmed(Path(confirmed), interactions)
    twins = identical(interactions)
    config: dict[str, Any] = {
        # Draws are seeded by the run's seed.
        "method": {
            "name": method,
            **{key: value for key, value in options_of(screener).items() if key != "random_state"},
        },
        "data": plain(options),
        "top": top,
        "drug": list(drug),
        "target": list(target),
        "check": check,
        "confirmed": None if confirmed is None else str(confirmed),
        "seed": seed,
        "out": str(out),
    }
    keep = [*read_from(options), *([] if confirmed is None else [Path(confirmed)])]
    run = RunDirectory.create(out, config, overwrite=overwrite, keep=keep)
    screener.fit_matrix(interactions.labels, _observed(interactions))
    found: list[Prediction] = []
    notes = []
    for setting, pairs in _by_setting(interactions).items():
        asked = np.argwhere(candidates & pairs)
        if len(asked) == 0:
            continue
        scores = screener.score_pairs(asked)
        if len(asked) > 1 and scores.min() == scores.max():
            notes.append(f"{setting} ({SETTINGS[setting]}) is not ranked: {method} gives all its pairs the same score.")
            continue
        found += [
            _prediction(interactions, setting, rank, int(asked[place, 0]), int(asked[place, 1]), float(scores[place]))
            for rank, place in enumerate(ranked(scores, top), 1)
        ]
        if since is not None:
            notes.append(_confirmed_note(setting, since[tuple(asked.T)], scores, top, str(confirmed)))
    if since is not None:
        known = {(interactions.drugs[d], interactions.targets[t]) for d, t in np.argwhere(since).tolist()}
        found = [replace(each, confirmed=(each.drug, each.target) in known) for each in found]
    settings = list(dict.fromkeys(each.setting for each in found))
    checks: dict[str, Any] = {}
    if check:
        checks, told = _checks(method, interactions, method_options or {}, settings, seed, twins, show=show_progress)
        notes += told
    result: dict[str, Any] = {
        "data": interactions.describe(),
        "method": config["method"],
        "candidates": int(candidates.sum()),
        "predictions": [asdict(each) for each in found],
        "check": checks,
        "notes": notes,
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    write_text_atomic(run.path / "predictions.csv", _csv(found))
    command = shlex.join(["stillroom", "screening", "predict", "--config", str(run.config), "--out", "NEW_DIRECTORY"])
    write_page(run.report, prediction_page(result, config, command))
    return Predictions(prediction_tables(result["predictions"]), result, run.path)


def _confirmed_note(setting: Setting, hits: Mask, scores: Array, top: int, file: str) -> str:
    """Say how many of the pairs ranked first have become known since, and how many of all."""
    first = ranked(scores, top)
    note = (
        f"{setting}: {hits[first].sum()} of the first {len(first)} pairs stand in {file}, of all {len(hits):,} pairs "
        f"ranked {hits.sum():,} ({100 * hits.mean():.1f} %)"
    )
    if not 0 < hits.sum() < len(hits):
        return f"{note}."
    return f"{note}; AUC against the others {100 * auc(hits, scores):.1f} %."


def _by_setting(data: Interactions) -> dict[Setting, Mask]:
    """Return which pairs are of known drugs and targets, of new drugs, of new targets, of both."""
    new_drug: Mask = data.labels.sum(axis=1, keepdims=True) == 0
    new_target: Mask = data.labels.sum(axis=0, keepdims=True) == 0
    return {
        "S1": ~new_drug & ~new_target,
        "S2": new_drug & ~new_target,
        "S3": ~new_drug & new_target,
        "S4": new_drug & new_target,
    }


def _candidates(data: Interactions, drugs: Sequence[str], targets: Sequence[str]) -> Mask:
    """Return the pairs to rank: neither known to interact nor measured as inactive."""
    candidates = data.labels == 0
    if data.measured is not None:
        candidates &= ~data.measured
    for kind, names, wanted, axis in (("drug", data.drugs, drugs, 0), ("target", data.targets, targets, 1)):
        for name in wanted:
            if name not in names:
                hint = nearest(name, names) or f"; {data.name} has {len(names):,} others"
                raise InputError(f"unknown {kind} {name!r}{hint}")
        if wanted:
            chosen = np.isin(np.array(names), list(wanted))
            candidates &= chosen[:, None] if axis == 0 else chosen[None, :]
    if not candidates.any():
        raise InputError("there is no pair to rank: all of them have a label already")
    return np.asarray(candidates, dtype=bool)


def _prediction(data: Interactions, setting: Setting, rank: int, drug: int, target: int, score: float) -> Prediction:
    assert data.drug_similarity is not None
    assert data.target_similarity is not None
    by_drug = supported(data.labels, data.drug_similarity, drug, target)
    by_target = supported(data.labels.T, data.target_similarity, target, drug)
    return Prediction(
        rank=rank,
        drug=data.drugs[drug],
        target=data.targets[target],
        score=score,
        setting=setting,
        nearest_drug=None if by_drug is None else data.drugs[by_drug[0]],
        drug_similarity=None if by_drug is None else by_drug[1],
        nearest_target=None if by_target is None else data.targets[by_target[0]],
        target_similarity=None if by_target is None else by_target[1],
        smiles=None if data.smiles is None else data.smiles[drug],
        nearest_smiles=None if data.smiles is None or by_drug is None else data.smiles[by_drug[0]],
    )


def _checks(
    method: str,
    data: Interactions,
    options: Mapping[str, Any],
    settings: Sequence[Setting],
    seed: int,
    twins: Twins,
    *,
    show: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Cross-validate under the settings that occur, identical drugs and targets kept together; return notes as well."""
    folds = Counting(
        decoys="measured" if _measured_inactive(data) else "unknown",
        drug_groups=twins.drug_groups,
        target_groups=twins.target_groups,
    )
    found: dict[str, Any] = {}
    notes = []
    for setting in settings:
        try:
            total = len(folds.folds(data, setting, seed))
            with progress(f"check {setting}", total, show=show) as tell:
                checked = cross_validate(method, data, setting, seed, options=options, counting=folds, tick=tell)
        except InputError as error:
            notes.append(f"{setting} is not checked: {error}")
            continue
        found[setting] = checked
        notes += [f"{setting}, checked: {note}" for note in fold_notes({method: {str(seed): checked}})]
    return found, notes


def _observed(data: Interactions) -> Mask | None:
    """Return the measured pairs where the data say what is inactive, else those of known drugs and targets.

    Of a new drug nothing is known, as of one that a check holds out.
    """
    if _measured_inactive(data):
        return data.measured
    return _by_setting(data)["S1"]


def _measured_inactive(data: Interactions) -> bool:
    return data.measured is not None and bool((data.measured & (data.labels == 0)).any())


def _csv(found: Sequence[Prediction]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Prediction.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in found)
    return out.getvalue()
