"""The tables and pages of screening: evaluation, tuning, predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.reports.page import Figure, Gallery, Page, Section
from stillroom.reports.plots import seed_strip
from stillroom.reports.tables import Cell, Column, Table, interval_text, mean_ci, paired_difference

__all__ = [
    "LEGEND",
    "SETTINGS",
    "SUPPORT",
    "check_table",
    "evaluation_page",
    "evaluation_table",
    "fold_notes",
    "notes_of",
    "points_table",
    "prediction_page",
    "prediction_tables",
    "tuning_page",
    "tuning_table",
]

SETTINGS = {
    "S1": "new pairs of known drugs and targets",
    "S2": "new drugs",
    "S3": "new targets",
    "S4": "new drugs and new targets at once",
}
SUPPORT = (
    "Like drug: the most similar drug known to interact with the target. Like target: the most similar target known to "
    "interact with the drug. In brackets the similarity. Scores order the pairs of one setting; they are no "
    "chances, even where they lie between 0 and 1."
)
LEGEND = (
    "Means over folds in percent with 95 % confidence intervals by Student's t (folds share training data, so they are "
    "rather too narrow). AUC: area under the ROC curve. AUPR: area under the precision-recall curve by trapezoids, as "
    "the literature gives it; AP: average precision of the same curve. P@10: share of interactions among the ten pairs "
    "ranked first. EF1%: how many times more interactions the first 1 % of the pairs hold than a random 1 %."
)
SHOWN = (
    ("auc", "AUC [%]", 100.0),
    ("aupr", "AUPR [%]", 100.0),
    ("average_precision", "AP [%]", 100.0),
    ("precision_at_10", "P@10 [%]", 100.0),
    ("enrichment_1pct", "EF1% [x]", 1.0),
)

Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]  # method -> seed -> what cross-validation found


def interval(values: Sequence[float]) -> str | None:
    """Return the mean with its confidence interval, nothing for no value."""
    return interval_text(*mean_ci(values), digits=1) if values else None


def folds_of(cells: Mapping[str, Mapping[str, Any]], measure: str, scale: float = 1.0) -> list[float]:
    """Return a measure of all folds of all seeds."""
    return [scale * float(fold[measure]) for cell in cells.values() for fold in cell["folds"]]


def evaluation_table(methods: Cells) -> Table:
    """Give each method's measures, mean over the folds of all seeds with a 95 % confidence interval."""
    columns = [Column("method"), *(Column(title, ".1f") for _, title, _ in SHOWN)]
    rows: list[list[Cell]] = [
        [name, *(_shown(folds_of(cells, measure, scale), measure) for measure, _, scale in SHOWN)]
        for name, cells in methods.items()
    ]
    return Table(columns, rows)


def _shown(values: Sequence[float], measure: str) -> Cell:
    if values and measure == "average_precision":  # beside the AUPR's interval another one says nothing new
        return sum(values) / len(values)
    return interval(values)


def differences_table(methods: Cells) -> Table:
    """Give each method's difference to the first one, paired fold by fold."""
    base = next(iter(methods))
    columns = [Column(f"against {base}"), *(Column(f"{said} [points]", "+.1f") for said in ("AUC", "AUPR", "AP"))]
    rows: list[list[Cell]] = []
    for name, cells in methods.items():
        if name != base:
            row: list[Cell] = [name]
            for measure in ("auc", "aupr", "average_precision"):
                a, b = folds_of(cells, measure, 100), folds_of(methods[base], measure, 100)
                mean, half_width = paired_difference(a, b) if a and len(a) == len(b) else (math.nan, math.nan)
                row.append(None if math.isnan(mean) else interval_text(mean, half_width, digits=1, sign="+"))
            rows.append(row)
    return Table(columns, rows)


def data_table(about: Mapping[str, Any]) -> Table:
    """Return the counts of a data set as a table."""
    rows: list[list[Cell]] = [
        ["drugs", about["drugs"]],
        ["targets", about["targets"]],
        ["known interactions", about["interactions"]],
        ["drugs without any", about["new_drugs"]],
        ["targets without any", about["new_targets"]],
    ]
    if about["measured"] is not None:
        rows.append(["pairs with a measurement", about["measured"]])
    return Table([Column("what"), Column("count", ",d")], rows)


def data_section(about: Mapping[str, Any]) -> Section:
    """Return what is to be known of the data."""
    return Section(title="Data", parts=[data_table(about)], note=" ".join(about["notes"]))


def evaluation_page(result: Mapping[str, Any], config: Mapping[str, Any], command: str) -> Page:
    """Return the page of an evaluation."""
    sections = []
    best = []
    for setting, found in result["settings"].items():
        methods: Cells = found["methods"]
        means = {
            name: sum(values) / len(values)
            for name, cells in methods.items()
            if (values := folds_of(cells, "average_precision", 100))
        }
        if means:
            leader = max(means, key=means.__getitem__)
            best.append(f"{leader} for {SETTINGS[setting]} ({means[leader]:.1f} %)")
        parts: list[Any] = [evaluation_table(methods)]
        if len(methods) > 1:
            parts.append(differences_table(methods))
        strips = {name: folds_of(cells, "average_precision", 100) for name, cells in methods.items()}
        strips = {name: values for name, values in strips.items() if values}
        if strips:
            parts.append(Figure(seed_strip(strips, unit="average precision [%]"), "Each dot is a fold."))
        if result["tuned"]:
            parts.append(chosen_table(methods))
        sections.append(
            Section(
                title=f"{setting}: {SETTINGS[setting]}",
                text=" ".join([f"{found['folds']} folds a seed.", *found["notes"]]),
                parts=parts,
            )
        )
    sections.append(Section(title="How to read it", text=f"{LEGEND} {result['decoys']}"))
    sections.append(data_section(result["data"]))
    count, seeds = len(result["options"]), len(result["seeds"])
    return Page(
        kind="screening evaluation",
        title=f"{count} method{'s' if count > 1 else ''} on {result['data']['name']}, {seeds} "
        f"seed{'s' if seeds > 1 else ''}",
        headline=f"Highest average precision: {'; '.join(best)}." if best else "No fold could be measured.",
        sections=sections,
        config=config,
        environment=result["environment"],
        command=command,
        notes=result["notes"],
    )


def fold_notes(methods: Cells) -> list[str]:
    """Say which folds could not be measured, and where methods had nothing to say: an AUPR by trapezoids hides it."""
    skipped = max(sum(int(cell["skipped"]) for cell in cells.values()) for cells in methods.values())
    notes = [f"Folds left out, with no interaction or no negative to test: {skipped}."] if skipped else []
    for name, cells in methods.items():
        constant = folds_of(cells, "constant")
        if sum(constant):
            notes.append(
                f"{name} gave all test pairs the same score in {sum(constant):.0f} of {len(constant)} folds: it knows "
                "nothing there, and an AUPR by trapezoids is then one half and more."
            )
    return notes


def chosen_table(methods: Cells) -> Table:
    """Say which options the inner cross-validation chose, and in how many folds."""
    rows: list[list[Cell]] = []
    for name, cells in methods.items():
        counts: dict[str, int] = {}
        for cell in cells.values():
            for chosen in cell["chosen"]:
                said = ", ".join(f"{option} {value}" for option, value in chosen.items())
                counts[said] = counts.get(said, 0) + 1
        rows += [[name, said, count] for said, count in sorted(counts.items(), key=lambda item: -item[1])]
    return Table([Column("method"), Column("options chosen inside the training folds"), Column("folds", "d")], rows)


def notes_of(*, tuned: bool) -> list[str]:
    """Return the sentences a reader of an evaluation must know, also on the terminal."""
    if tuned:
        return ["Options were chosen inside the training pairs of every fold; no test pair had a say."]
    return ["Options are the methods' defaults unless given; none was chosen by a look at the test pairs."]


def prediction_tables(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
    """Return the ranked pairs of each setting, each with the known interactions that are nearest to it."""
    tables = {}
    for setting in SETTINGS:
        found = [each for each in predictions if each["setting"] == setting]
        sides = [side for side in ("drug", "target") if any(each[f"nearest_{side}"] for each in found)]
        columns = [Column("rank", "d"), Column("drug"), Column("target"), Column("score", ".3f")]
        columns += [Column(f"like {side}") for side in sides]
        told = any(each["confirmed"] is not None for each in found)
        columns += [Column("since")] if told else []
        rows: list[list[Cell]] = [
            [each["rank"], each["drug"], each["target"], each["score"], *(_like(each, side) for side in sides)]
            + ([("known" if each["confirmed"] else None)] if told else [])
            for each in found
        ]
        if rows:
            tables[setting] = Table(columns, rows)
    return tables


def _like(prediction: Mapping[str, Any], side: str) -> str | None:
    if prediction[f"nearest_{side}"] is None:
        return None
    return f"{prediction[f'nearest_{side}']} ({prediction[f'{side}_similarity']:.2f})"


def check_table(checks: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return how the method does on the same data, under each setting the predictions fall under."""
    table = evaluation_table({setting: {"": found} for setting, found in checks.items()})
    return Table([Column("setting"), *table.columns[1:]], table.rows)


def prediction_page(result: Mapping[str, Any], config: Mapping[str, Any], command: str) -> Page:
    """Return the page of a ranking."""
    found = result["predictions"]
    sections = [Section(title="Predictions", text=SUPPORT)]
    for setting, table in prediction_tables(found).items():
        pictures = _structures([each for each in found if each["setting"] == setting])
        sections.append(Section(title=f"{setting}: {SETTINGS[setting]}", parts=[table, *pictures]))
    if result["check"]:
        sections.append(
            Section(
                title="How far to trust the ranks",
                text="The same method with the same options, cross-validated on the same data, for each setting the "
                f"predictions fall under. {LEGEND}",
                parts=[check_table(result["check"])],
                note="Identical drugs and identical targets stay in one fold. Pairs not known to interact count as "
                "negative, or only those measured as inactive where the data have any.",
            )
        )
    sections.append(data_section(result["data"]))
    first = "; ".join(
        f"{each['drug']} with {each['target']} ({SETTINGS[each['setting']]})" for each in found if each["rank"] == 1
    )
    return Page(
        kind="screening",
        title=f"Likely interactions of {result['data']['name']} by {result['method']['name']}",
        headline=f"{result['candidates']:,} pairs have no label. Ranked first: {first or 'none'}.",
        sections=sections,
        config=config,
        environment=result["environment"],
        command=command,
        notes=["A prediction is a reason to measure, not a finding.", *result["notes"]],
    )


def _structures(predictions: Sequence[Mapping[str, Any]], most: int = 6) -> list[Gallery]:
    """Draw the drugs ranked first, each beside the known drug that speaks for it."""
    from stillroom.screening.structures import structure_svg

    pairs = []
    for each in predictions[:most]:
        if each["smiles"]:
            caption = f"{each['rank']}. {each['drug']} for {each['target']}, score {each['score']:.3f}"
            figures = [Figure(structure_svg(each["smiles"]), caption)]
            if each["nearest_smiles"]:
                known = f"{each['nearest_drug']}, known for {each['target']}; similarity {each['drug_similarity']:.2f}"
                figures.append(Figure(structure_svg(each["nearest_smiles"]), known))
            pairs.append(Gallery(figures))
    return pairs


def tuning_table(result: Mapping[str, Any]) -> Table:
    """Say what the choice is worth beside the defaults, and what a choice by the test folds would claim."""
    folds = result["folds"]
    values = {
        "chosen inside the training folds": [fold["chosen"] for fold in folds],
        "defaults": [fold["defaults"] for fold in folds],
        "best on the test folds (not to be reported)": _best_on_test(result),
    }
    columns = [Column("options"), *(Column(title, ".1f") for _, title, _ in SHOWN[:3])]
    rows: list[list[Cell]] = [
        [said, *(_shown([scale * float(f[measure]) for f in found if f], measure) for measure, _, scale in SHOWN[:3])]
        for said, found in values.items()
    ]
    return Table(columns, rows)


def _best_on_test(result: Mapping[str, Any]) -> list[Mapping[str, float] | None]:
    by, folds = result["by"], result["folds"]

    def mean(point: int) -> float:
        values = [float(fold["points"][point][by]) for fold in folds if fold["points"][point]]
        return sum(values) / len(values) if values else -math.inf

    best = max(range(len(result["points"])), key=mean)
    return [fold["points"][best] for fold in folds]


def points_table(result: Mapping[str, Any], most: int = 12) -> Table:
    """Return the points of the grid, best first, by the cross-validation on all pairs that chose."""
    order = sorted(range(len(result["points"])), key=lambda point: _or_last(result["scores"][point]), reverse=True)
    columns = [Column("options"), Column(f"inner {result['by']}", ".4f"), Column("chosen in folds", "d")]
    rows: list[list[Cell]] = []
    for point in order[:most]:
        options = result["points"][point]
        times = sum(options.items() <= fold["options"].items() for fold in result["folds"])
        rows.append([", ".join(f"{name} {value}" for name, value in options.items()), result["scores"][point], times])
    return Table(columns, rows)


def _or_last(score: float | None) -> float:
    return -math.inf if score is None else score


def tuning_page(result: Mapping[str, Any], config: Mapping[str, Any], command: str) -> Page:
    """Return the page of a search."""
    said = ", ".join(f"{name} {value}" for name, value in result["chosen"].items())
    sections = [
        Section(
            title="What the choice is worth",
            text="In every outer fold the options were chosen by inner folds of its training pairs and measured once "
            f"on its test pairs. {LEGEND} {' '.join([result['decoys'], *result['notes']])}",
            parts=[tuning_table(result)],
        ),
        Section(
            title="The grid",
            text="Each point by the cross-validation on all pairs that chose the options to use, and in how many outer "
            "folds it was chosen.",
            parts=[points_table(result)],
        ),
        data_section(result["data"]),
    ]
    return Page(
        kind="screening search",
        title=f"Options of {result['method']} for {SETTINGS[result['setting']]} of {result['data']['name']}",
        headline=f"Chosen: {said}.",
        sections=sections,
        config=config,
        environment=result["environment"],
        command=command,
    )
