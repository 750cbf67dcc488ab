"""Tables and page of ``stillroom defense bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.reports.page import Page, Section, environment, write_page
from stillroom.reports.tables import Cell, Column, Table, mean_ci
from stillroom.training.run import RunDirectory

__all__ = ["detection_table", "honest_table", "theft_table", "write_bench_report"]

Records = Sequence[Mapping[str, Any]]


def detection_table(records: Records) -> Table:
    """Return how well each detector tells thieves from honest accounts, means over the seeds."""
    columns = [
        *(Column("detector"), Column("queries"), Column("AUROC", ".4f"), Column("FPR at 95 % TPR [%]", ".1f")),
        *(Column("detected [%]", ".1f"), Column("FPR [%]", ".2f"), Column("caught [%]", ".0f")),
        *(Column("first at", ".0f"), Column("honest flagged [%]", ".0f")),
    ]
    rows: list[list[Cell]] = []
    for (detector, queries), own in _groups(records, "detection", "defence", "queries"):
        first = [record["median_first"] for record in own if record["median_first"] is not None]
        rows.append(
            [
                detector,
                queries,
                _mean(own, "auroc"),
                100 * _mean(own, "fpr_at_95_tpr"),
                100 * _mean(own, "detected"),
                100 * _mean(own, "fpr"),
                100 * _mean(own, "accounts_caught"),
                float(np.mean(first)) if first else None,
                100 * _mean(own, "honest_accounts_flagged"),
            ]
        )
    return Table(columns, rows)


def honest_table(records: Records) -> Table:
    """Return what honest accounts get, by kind of traffic, means over the seeds."""
    columns = [
        *(Column("defence"), Column("honest traffic"), Column("accuracy without [%]", ".2f")),
        *(Column("with [%]", ".2f"), Column("answers altered [%]", ".2f"), Column("accounts affected [%]", ".0f")),
    ]
    rows: list[list[Cell]] = []
    for (defence,), own in _groups(records, "honest", "defence"):
        for kind in own[0]["rows"]:
            found = [record["rows"][kind] for record in own]
            means = [100 * _mean(found, name) for name in ("without", "accuracy", "altered", "flagged_accounts")]
            rows.append([defence, kind, *means])
    return Table(columns, rows)


def theft_table(records: Records) -> Table:
    """Return what clones are worth, with 95 % intervals over the seeds."""
    columns = [
        *(Column("attack"), Column("queries"), Column("labels"), Column("defence"), Column("clone [%]", ".2f")),
        *(Column("±", ".2f"), Column("of victim [%]", ".1f"), Column("agreement [%]", ".1f")),
        *(Column("altered [%]", ".1f"), Column("first at", ".0f"), Column("asked", ".0f")),
    ]
    rows: list[list[Cell]] = []
    for key, own in _groups(records, "theft", "attack", "queries", "labels", "defence"):
        mean, half = mean_ci([record["clone_accuracy"] for record in own])
        first = [record["first_detected"] for record in own if record["first_detected"] is not None]
        rows.append(
            [
                *key,
                mean,
                half,
                100 * mean / _mean(own, "victim_accuracy"),
                _mean(own, "agreement"),
                100 * _mean(own, "altered"),
                float(np.median(first)) if first else None,
                _mean(own, "spent"),
            ]
        )
    return Table(columns, rows)


def _groups(records: Records, kind: str, *names: str) -> list[tuple[tuple[str, ...], list[Mapping[str, Any]]]]:
    """Return the records of a kind, those that differ in their seed only together, in the order they came."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == kind:
            groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return list(groups.items())


def _mean(records: Records, name: str) -> float:
    return float(np.mean([record[name] for record in records]))


def write_bench_report(
    run: RunDirectory, tables: Mapping[str, Table], result: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Write ``report.html``."""
    notes = {
        "Telling accounts apart": "Scores of accounts, query by query; positives are the thieves'. Thresholds are "
        "chosen on other honest accounts. Caught, honest flagged: accounts ever above the threshold.",
        "What honest users notice": "Accuracy counts poisoned answers as what they return.",
        "What clones are worth": "Accuracy on held-out images the thief never asked about; ± is the half width of the "
        "95 % interval over the seeds.",
    }
    seeds = sorted({record["seed"] for record in result["records"]})
    page = Page(
        kind="defence bench",
        title=f"Defences of {result['architecture']} on {result['data']['name']}",
        headline=f"Victim {result['victim_accuracy']:.2f} %; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}.",
        sections=[
            Section(title=title, parts=[table], note=notes[title]) for title, table in tables.items() if table.rows
        ],
        config=config,
        environment=environment(),
    )
    write_page(run.report, page)
