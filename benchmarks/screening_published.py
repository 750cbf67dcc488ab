"""Drug-target screening by the protocol of the published comparison, beside its figures.

    python benchmarks/screening_published.py --sets nr,gpcr,ic --settings S1,S2,S3
    python benchmarks/screening_published.py --search --settings S1 --methods net_lap_rls,blm_nii,wnn_gip,kbmf,cmf,nrlmf

Ten folds, five repetitions with the published seeds; AUC and AUPR (trapezoids), means over the 50 folds. "as released"
repeats what the public code (PyDTI) does: its driver's options, indefinite kernels of new drugs and targets, and for
WNN-GIP eigenvalues of the Kronecker product laid out across the labels' axes; "repaired" are the same options without
these errors; "default" is what stillroom does out of the box. The published figures are those of Liu et al. (2016) for
new pairs, as far as known. They were made with options chosen on the test folds themselves; ``--search`` does that too,
one option after the other over the ranges of the public driver, twice, on the folds of the first seed, by AUC (CMF by
AUPR, as there). Such figures say how far a method can be bent and not what it will do: ``stillroom screening evaluate
--tuned`` chooses inside the training folds. The sets are read from ``STILLROOM_DATA``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stillroom.reports.tables import Cell, Column, Table, markdown, mean_ci
from stillroom.screening._checks import Array, Mask
from stillroom.screening.cross_validation import SEEDS, Counting, new_screener, score_fold
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.estimators._screener import Screener
from stillroom.screening.estimators.wnn_gip import WNNGIP, wnn_gip
from stillroom.screening.interactions import Interactions
from stillroom.screening.methods import METHODS
from stillroom.screening.options import ScreeningDataOptions

# Liu et al. 2016, table of new pairs: AUC, AUPR.
PUBLISHED = {
    "net_lap_rls": {"nr": (0.850, 0.465), "gpcr": (0.915, 0.616), "ic": (0.969, 0.837)},
    "blm_nii": {"nr": (0.905, 0.659), "gpcr": (0.950, 0.524), "ic": (0.981, 0.821)},
    "wnn_gip": {"nr": (0.901, 0.589), "gpcr": (0.944, 0.520), "ic": (0.959, 0.717)},
    "kbmf": {"nr": (0.877, 0.534), "gpcr": (0.926, 0.578), "ic": (0.961, 0.771)},
    "cmf": {"nr": (0.864, 0.584), "gpcr": (0.940, 0.745), "ic": (0.981, 0.923)},
    "nrlmf": {"nr": (0.950, 0.728), "gpcr": (0.969, 0.749), "ic": (0.989, 0.906)},
}
NET = {"gamma_drug": 10, "gamma_target": 10, "beta_drug": 1e-5, "beta_target": 1e-5}
# The driver's options, with and without the released errors.
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "net_lap_rls": {"as released": NET},
    "blm_nii": {"as released": {"alpha": 0.7, "psd": "none"}, "repaired": {"alpha": 0.7}},
    "wnn_gip": {"as released": {"alpha": 0.8, "decay": 0.8, "psd": "none"}, "repaired": {"alpha": 0.8, "decay": 0.8}},
}

POWERS = {"ridge": [2.0**power for power in range(-5, 2)], "side": [2.0**power for power in range(-5, 3)]}
# The public driver's ranges; options in one line move together, as they do there.
RANGES: dict[str, list[tuple[tuple[str, ...], list[Any]]]] = {
    "net_lap_rls": [
        (("gamma_drug", "gamma_target"), [10.0**power for power in range(-6, 3)]),
        (("beta_drug", "beta_target"), [10.0**power for power in range(-6, 3)]),
    ],
    "blm_nii": [(("alpha",), [step / 10 for step in range(11)])],
    "wnn_gip": [
        (("decay",), [step / 10 for step in range(1, 11)]),
        (("alpha",), [step / 10 for step in range(11)]),
    ],
    "kbmf": [(("rank",), [10, 20, 50])],
    "cmf": [
        (("weight_factors",), [0.25, 0.5, 1.0, 2.0]),
        (("weight_drug",), [2.0**power for power in range(-3, 6)]),
        (("weight_target",), [2.0**power for power in range(-3, 6)]),
    ],
    "nrlmf": [
        (("lambda_drug", "lambda_target"), POWERS["ridge"]),
        (("alpha",), POWERS["side"]),
        (("beta",), POWERS["side"]),
        (("learning_rate",), [0.125, 0.25, 0.5, 1.0]),
    ],
}


class ReleasedWNNGIP(WNNGIP):
    """WNN-GIP with the released solution of the Kronecker system: wrong wherever the two spectra differ."""

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        found = wnn_gip(labels, drugs, targets, decay=self.decay, alpha=self.alpha, psd="none")
        drug_values, drug_vectors = np.linalg.eig(found["drug_kernel"])
        target_values, target_vectors = np.linalg.eig(found["target_kernel"])
        products = np.outer(drug_values, target_values).reshape(-1)  # drug by drug
        projected = (target_vectors.T @ found["completed"].T @ drug_vectors).reshape(-1)  # target by target
        shrunk = (products / (products + self.sigma) * projected).reshape(len(targets), len(drugs))
        scores: Array = np.real(drug_vectors @ shrunk.T @ target_vectors.T)
        return scores


def screener(name: str, variant: str, options: Mapping[str, Any], data: Interactions, seed: int) -> Screener:
    """Return a method as a row of the table says."""
    if name == "wnn_gip" and variant.startswith("as released"):
        return ReleasedWNNGIP(data.drug_similarity, data.target_similarity, **options)
    return new_screener(name, data, options, seed)


def measured(
    name: str, variant: str, options: Mapping[str, Any], data: Interactions, setting: Any, seeds: Sequence[int] = SEEDS
) -> tuple[list[float], list[float], int, float]:
    """Return AUC and AUPR of all folds, the folds that could not be measured, and the seconds."""
    started, found, skipped = time.perf_counter(), [], 0
    counting = Counting()
    for seed in seeds:
        for fold in counting.folds(data, setting, seed):
            one = score_fold(screener(name, variant, options, data, seed), data, fold, setting, seed, counting)
            if one is None:
                skipped += 1
            else:
                found.append(one)
    return [f["auc"] for f in found], [f["aupr"] for f in found], skipped, time.perf_counter() - started


def searched(name: str, variant: str, start: Mapping[str, Any], data: Interactions, setting: Any) -> dict[str, Any]:
    """Choose options on the test folds, one after the other: what a published figure may rest on."""
    best, best_score = dict(start), -1.0
    for _ in range(2):
        for options, values in RANGES[name]:
            for value in values:
                tried = {**best, **dict.fromkeys(options, value)}
                auc, aupr, _, _ = measured(name, variant, tried, data, setting, seeds=SEEDS[:1])
                score = float(np.mean(aupr if name == "cmf" else auc))
                if score > best_score:
                    best, best_score = tried, score
    return best


def shown(values: list[float]) -> str:
    mean, half_width = mean_ci(values)
    return f"{mean:.3f} ± {half_width:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default="nr,gpcr,ic")
    parser.add_argument("--settings", default="S1,S2,S3")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--search", action="store_true", help="choose options on the test folds, as the published ones")
    asked = parser.parse_args()
    for setting in asked.settings.split(","):
        columns = [Column("set"), Column("method"), Column("variant"), Column("AUC", ".3f"), Column("AUPR", ".3f")]
        published = [Column("published AUC", ".3f"), Column("AUPR", ".3f")] if setting == "S1" else []
        rows: list[list[Cell]] = []
        for name_of_set in asked.sets.split(","):
            data = load_interactions(ScreeningDataOptions(name=name_of_set))
            for name in asked.methods.split(","):
                variants = {**RELEASED.get(name, {}), "default": {}}
                if asked.search:
                    starts = {
                        "as released, " * (variant == "as released"): start for variant, start in variants.items()
                    }
                    variants = {
                        f"{said}chosen on test folds": searched(name, f"{said}chosen", start, data, setting)
                        for said, start in starts.items()
                    }
                    print(f"{name_of_set} {name}: {variants}", flush=True)
                for variant, options in variants.items():
                    auc, aupr, skipped, seconds = measured(name, variant, options, data, setting)
                    row: list[Cell] = [name_of_set, name, variant, shown(auc), shown(aupr)]
                    if published:
                        row += PUBLISHED.get(name, {}).get(name_of_set, (None, None))
                    rows.append([*row, skipped or None, seconds])
                    print(*rows[-1], flush=True)
        table = Table([*columns, *published, Column("skipped folds", "d"), Column("seconds", ".1f")], rows)
        print(f"\n{setting}\n\n{markdown(table)}\n", flush=True)


if __name__ == "__main__":
    main()
