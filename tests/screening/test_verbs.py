"""The verbs as functions: what they return is what the parts give, and nothing known is predicted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.files import plain
from stillroom.screening.cross_validation import (
    Counting,
    choose_options,
    cross_validate,
    grid_points,
    new_screener,
    score_fold,
)
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.evaluate import evaluate
from stillroom.screening.interactions import Interactions
from stillroom.screening.leaks import identical
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.predict import predict, ranked, supported
from stillroom.screening.protocols import Setting, make_folds, split_hash
from stillroom.screening.report import differences_table, evaluation_table, fold_notes, points_table
from stillroom.screening.similarities import with_similarities
from stillroom.screening.tune import tune

SMALL = ScreeningDataOptions(drugs=16, targets=8, target_kernel="spectrum")


def small(options: ScreeningDataOptions = SMALL) -> Interactions:
    return with_similarities(load_interactions(options), options)


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "seconds"}


def run(verb: Any, out: Path, **options: Any) -> Any:
    return verb(**{"data": SMALL, "out": out, "show_progress": False, **options})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ScreeningDataOptions:
    """A table of one's own: few pairs measured as inactive, two drugs and two targets the same under two names."""
    from rdkit import Chem

    data = load_interactions(SMALL)
    assert data.smiles is not None
    assert data.sequences is not None
    file = tmp_path_factory.mktemp("own") / "mine.csv"
    twin = Chem.MolToSmiles(Chem.MolFromSmiles(data.smiles[0]), rootedAtAtom=5, canonical=False)
    smiles = [data.smiles[0], twin, *data.smiles[2:]]
    sequences = [data.sequences[0], data.sequences[0], *data.sequences[2:]]
    drawn = np.random.default_rng(0).random(data.shape)
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["drug", "target", "smiles", "sequence", "label"])
        for d, t in np.argwhere(np.ones(data.shape, dtype=bool)):
            label = "1" if data.labels[d, t] else "0" if drawn[d, t] < 0.5 else ""
            rows.writerow([data.drugs[d], data.targets[t], smiles[d], sequences[t], label])
    return ScreeningDataOptions(name=str(file), target_kernel="spectrum")


def test_an_evaluation_is_the_cross_validation_of_each_method_setting_and_seed(tmp_path: Path) -> None:
    methods, seeds = ("rls_avg", "nearest_profile"), (7771, 22)
    settings: tuple[Setting, ...] = ("S1", "S2", "S4")
    own = {"rls_avg": {"alpha": 0.2}}
    done = run(
        evaluate, tmp_path / "run", methods=methods, settings=settings, seeds=seeds, num_folds=4, method_options=own
    )
    data = small()
    assert list(done.result["settings"]) == list(settings)
    for setting in settings:
        found = done.result["settings"][setting]
        assert found["folds"] == 4
        for seed in seeds:
            folds = make_folds(data.shape, setting, seed=seed, num_folds=4)
            assert found["hashes"][str(seed)] == split_hash(folds)
            for name in methods:
                expected = cross_validate(
                    name,
                    data,
                    setting,
                    seed,
                    options=own.get(name),
                    counting=Counting(num_folds=4),
                )
                assert timeless(found["methods"][name][str(seed)]) == plain(timeless(expected))
    assert done.result["options"]["rls_avg"]["alpha"] == 0.2
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == done.result
    text = (tmp_path / "run" / "tables.md").read_text()
    assert [line for line in text.splitlines() if line in settings] == list(settings)
    assert text.count("| rls_avg ") == 3


def test_an_evaluation_may_choose_options_inside_the_training_folds(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"num_folds": 3, "tuned": True, "inner_folds": 2, "by": "bedroc"}
    done = run(evaluate, tmp_path / "run", methods=["rls_kron"], settings=["S2"], **asked)
    said: tuple[dict[str, Any], ...] = ({"by": "bedroc"}, {})
    expected, by_default = (
        cross_validate(
            "rls_kron",
            small(),
            "S2",
            counting=Counting(num_folds=3),
            tuned=grid_points("rls_kron"),
            inner=Counting(num_folds=2),
            **by,
        )
        for by in said
    )
    found = done.result["settings"]["S2"]["methods"]["rls_kron"]["7771"]
    assert timeless(found) == plain(timeless(expected))
    assert found["chosen"] != by_default["chosen"]
    assert len(found["chosen"]) == len(found["folds"]) > 0
    assert done.result["notes"] == [
        "Options were chosen inside the training pairs of every fold; no test pair had a say."
    ]
    assert "options chosen inside the training folds" in (tmp_path / "run" / "report.html").read_text()


def test_an_evaluation_counts_negatives_and_keeps_twins_together_as_asked(
    tmp_path: Path, table: ScreeningDataOptions
) -> None:
    asked: dict[str, Any] = {"num_folds": 3, "decoys": "measured", "group_twins": True}
    done = run(evaluate, tmp_path / "run", methods=["naive_bayes"], settings=["S1"], data=table, **asked)
    data = small(table)
    assert data.measured is not None
    assert not data.measured.all()
    twins = identical(data)
    assert (twins.drug_groups.max(), twins.target_groups.max()) == (14, 6)  # of 16 and 8: one is twice on each side
    counting = Counting(
        num_folds=3, decoys="measured", drug_groups=twins.drug_groups, target_groups=twins.target_groups
    )
    expected = cross_validate("naive_bayes", data, "S1", counting=counting)
    assert timeless(done.result["settings"]["S1"]["methods"]["naive_bayes"]["7771"]) == plain(timeless(expected))
    assert done.result["decoys"] == "Only pairs measured as inactive count as negative."


def test_a_prediction_ranks_what_is_neither_known_nor_measured(tmp_path: Path, table: ScreeningDataOptions) -> None:
    done = run(predict, tmp_path / "run", method="rls_kron", data=table, top=40, check=False)
    data = small(table)
    assert data.measured is not None
    scores = new_screener("rls_kron", data, {}, 7771).fit_matrix(data.labels).scores_
    open_pairs = (data.labels == 0) & ~data.measured
    assert done.result["candidates"] == open_pairs.sum()
    new_drug, new_target = data.labels.sum(1) == 0, data.labels.sum(0) == 0
    seen = {}
    for setting, drugs, targets in (
        ("S1", ~new_drug, ~new_target), ("S2", new_drug, ~new_target),
        ("S3", ~new_drug, new_target), ("S4", new_drug, new_target),
    ):  # fmt: skip
        pairs = [(d, t) for d, t in np.argwhere(open_pairs) if drugs[d] and targets[t]]
        seen[setting] = sorted(pairs, key=lambda pair: -scores[pair])[:40]
    expected = [
        (setting, rank, data.drugs[d], data.targets[t], pytest.approx(scores[d, t]))
        for setting, pairs in seen.items()
        for rank, (d, t) in enumerate(pairs, 1)
    ]
    names = ("setting", "rank", "drug", "target", "score")
    assert [tuple(each[name] for name in names) for each in done.result["predictions"]] == expected
    assert all(pairs for pairs in seen.values())
    assert list(done.tables) == ["S1", "S2", "S3", "S4"]


def test_each_prediction_names_the_known_interactions_nearest_to_it(tmp_path: Path) -> None:
    done = run(predict, tmp_path / "run", top=30, check=False)
    data = small()
    drugs, targets = list(data.drugs), list(data.targets)
    assert data.drug_similarity is not None
    assert data.target_similarity is not None
    for each in done.result["predictions"]:
        d, t = drugs.index(each["drug"]), targets.index(each["target"])
        assert data.smiles is not None
        assert each["smiles"] == data.smiles[d]
        with_target = [j for j in range(len(drugs)) if data.labels[j, t] and j != d]
        with_drug = [j for j in range(len(targets)) if data.labels[d, j] and j != t]
        near = max((data.drug_similarity[d, j] for j in with_target), default=None)
        assert each["drug_similarity"] == near
        if near is not None:
            assert data.drug_similarity[d, drugs.index(each["nearest_drug"])] == near
            assert each["nearest_smiles"] == data.smiles[drugs.index(each["nearest_drug"])]
        near = max((data.target_similarity[t, j] for j in with_drug), default=None)
        assert each["target_similarity"] == near
        assert (each["nearest_target"] is None) == (near is None)
        assert near is None or data.target_similarity[t, targets.index(each["nearest_target"])] == near


def test_the_ranking_is_a_table_of_its_own(tmp_path: Path) -> None:
    done = run(predict, tmp_path / "run", top=3, check=False)
    with (tmp_path / "run" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    said = [{name: "" if value is None else str(value) for name, value in each.items()}
            for each in done.result["predictions"]]  # fmt: skip
    assert rows == said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stillroom screening predict --config" in page
    assert "<svg" in page


def test_only_the_drugs_and_targets_asked_for_are_ranked(tmp_path: Path) -> None:
    data = small()
    asked, wanted = [data.drugs[0], data.drugs[5]], [data.targets[1], data.targets[2]]
    done = run(predict, tmp_path / "run", drug=asked, target=wanted, check=False)
    found = {(each["drug"], each["target"]) for each in done.result["predictions"]}
    assert found
    assert {drug for drug, _ in found} <= set(asked)
    assert {target for _, target in found} <= set(wanted)
    assert done.result["candidates"] == (data.labels[np.ix_([0, 5], [1, 2])] == 0).sum()


def test_the_check_is_a_cross_validation_under_the_settings_of_the_listed_pairs(tmp_path: Path) -> None:
    options = ScreeningDataOptions(drugs=20, targets=12, target_kernel="spectrum")
    done = run(
        predict, tmp_path / "run", method="rls_kron", data=options, top=2, method_options={"alpha": 0.3}, seed=22
    )
    data = small(options)
    listed = {each["setting"] for each in done.result["predictions"]}
    assert set(done.result["check"]) == listed == {"S1", "S2", "S3", "S4"}
    for setting, found in done.result["check"].items():
        assert timeless(found) == timeless(cross_validate("rls_kron", data, setting, 22, options={"alpha": 0.3}))


def test_the_check_counts_what_was_measured_as_inactive(tmp_path: Path, table: ScreeningDataOptions) -> None:
    done = run(predict, tmp_path / "run", method="naive_bayes", data=table, top=2)
    twins = identical(small(table))
    counting = Counting(decoys="measured", drug_groups=twins.drug_groups, target_groups=twins.target_groups)
    for setting, found in done.result["check"].items():
        assert timeless(found) == timeless(cross_validate("naive_bayes", small(table), setting, counting=counting))


def test_a_ranking_learns_from_the_measured_pairs_where_some_are_inactive(
    tmp_path: Path, table: ScreeningDataOptions
) -> None:
    done = run(predict, tmp_path / "run", method="naive_bayes", data=table, top=3, check=False)
    data = small(table)
    model = new_screener("naive_bayes", data, {}, 7771).fit_matrix(data.labels, data.measured)
    for each in done.result["predictions"]:
        pair = data.drugs.index(each["drug"]), data.targets.index(each["target"])
        assert each["score"] == model.score_pairs([pair])[0]


def test_a_setting_that_cannot_be_checked_is_said_not_left_out(tmp_path: Path) -> None:
    done = run(predict, tmp_path / "run", method="rls_kron", top=2)
    unchecked = {each["setting"] for each in done.result["predictions"]} - set(done.result["check"])
    assert "S3" in unchecked  # 8 targets make no ten folds
    assert [note for note in done.result["notes"] if note.startswith("S3 is not checked: ")]


def test_pairs_that_all_score_the_same_are_not_ranked(tmp_path: Path) -> None:
    options = ScreeningDataOptions(drugs=14, targets=8, target_kernel="spectrum")
    done = run(predict, tmp_path / "run", data=options, check=False)
    assert done.result["notes"] == [
        "S4 (new drugs and new targets at once) is not ranked: blm_nii gives all its pairs the same score."
    ]
    assert "S4" not in done.tables


def test_a_method_that_draws_takes_the_seed(tmp_path: Path) -> None:
    first, again, other = (
        run(
            predict, tmp_path / str(number), method="knn", seed=seed, check=False, top=20, method_options={"repeats": 1}
        )
        for number, seed in enumerate((5, 5, 6))
    )
    assert first.result["predictions"] == again.result["predictions"]
    assert first.result["predictions"] != other.result["predictions"]
    assert "random_state" not in first.result["method"]


@pytest.mark.parametrize("verb", ["evaluate", "tune"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "roc"}, "unknown measure 'roc'"),
        ({"ratio": 0}, "ratio is 0; it must be a whole number at least 1"),
        ({"decoys": "measured"}, "decoys=measured needs data that says which pairs were measured"),
        ({"inner_folds": 1}, "inner_folds is 1; it must be a whole number at least 2"),
        ({"inner_folds": 10_000}, "inner_folds"),
        ({"num_folds": 1}, "num_folds is 1; it must be a whole number at least 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tmp_path: Path, verb: str, options: dict[str, Any], said: str
) -> None:
    few = {"num_folds": 2, **options}
    function: Any = evaluate
    if verb == "evaluate":
        few |= {"methods": ["rls_avg"], "settings": ["S1"], "tuned": "inner_folds" in options}
    else:
        function, few["method"] = tune, "rls_avg"
    with pytest.raises(InputError) as caught:
        run(function, tmp_path / "run", **few)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top": 0}, "top is 0; it must be a whole number at least 1"),
        ({"top": 2.5}, "top is 2.5; it must be a whole number at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"drug": ["quinazolin-1"]}, "unknown drug 'quinazolin-1'; did you mean 'quinazoline-1'?"),
        ({"target": ["famly1-1"]}, "unknown target 'famly1-1'; did you mean 'family1-1'?"),
        ({"method": "blmnii"}, "unknown method for screening 'blmnii'; did you mean 'blm_nii'?"),
        ({"method_options": {"alpha": 2}}, "alpha is 2"),
        ({"data": "genrated"}, "unknown screening data set 'genrated'; did you mean 'generated'?"),
    ],
)
def test_a_bad_prediction_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(predict, tmp_path / "run", **options)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", [evaluate, predict, tune])
def test_a_run_that_holds_its_own_data_is_not_emptied(tmp_path: Path, table: ScreeningDataOptions, verb: Any) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("# A run of stillroom.\n")
    inside = out / "mine.csv"
    inside.write_bytes(Path(table.name).read_bytes())
    few: dict[str, Any] = {} if verb is predict else {"num_folds": 2}
    options = ScreeningDataOptions(name=str(inside), target_kernel="spectrum")
    with pytest.raises(InputError, match=r"mine\.csv lies in .*, which would be emptied; name another folder"):
        run(verb, out, data=options, overwrite=True, **few)
    assert inside.is_file()


def test_an_unknown_name_among_many_is_one_short_line(tmp_path: Path) -> None:
    options = ScreeningDataOptions(drugs=600, targets=6, target_kernel="spectrum")
    with pytest.raises(InputError) as caught:
        run(predict, tmp_path / "run", data=options, drug=["zzz"])
    assert str(caught.value).startswith("unknown drug 'zzz'")
    assert len(str(caught.value)) < 500


def test_data_in_which_every_pair_has_a_label_leave_nothing_to_rank(tmp_path: Path) -> None:
    data = load_interactions(SMALL)
    assert data.smiles is not None
    assert data.sequences is not None
    file = tmp_path / "full.csv"
    rows = [
        f"{data.smiles[d]},{data.sequences[t]},{int(data.labels[d, t])}"
        for d, t in np.argwhere(np.ones(data.shape, dtype=bool))
    ]
    file.write_text("\n".join(["smiles,sequence,label", *rows]) + "\n")
    with pytest.raises(InputError, match=r"^there is no pair to rank: all of them have a label already$"):
        run(predict, tmp_path / "run", data=ScreeningDataOptions(name=str(file), target_kernel="spectrum"))
    assert not (tmp_path / "run").exists()


def test_a_search_measures_what_was_chosen_without_the_test_pairs(tmp_path: Path) -> None:
    grid = {"alpha": [0.0, 1.0], "sigma": [0.25, 4.0]}
    fixed: dict[str, Any] = {
        "method_options": {"gamma": 2.0},
        "num_folds": 3,
        "inner_folds": 2,
        "seed": 22,
        "by": "auc",
    }
    done = run(tune, tmp_path / "run", method="rls_avg", setting="S2", grid=grid, **fixed)
    data, points = small(), grid_points("rls_avg", grid)
    outer, inner = Counting(num_folds=3), Counting(num_folds=2)
    asked: dict[str, Any] = {"options": {"gamma": 2.0}, "by": "auc"}
    whole = choose_options("rls_avg", data, points, "S2", 22, inner, **asked)
    assert (done.result["chosen"], done.result["scores"]) == (whole.options, whole.scores)
    assert done.result["points"] == points
    for fold, found in zip(outer.folds(data, "S2", 22), done.result["folds"], strict=True):
        chosen = choose_options("rls_avg", data, points, "S2", 22, inner, within=fold, **asked).options
        assert found["options"] == chosen

        def measured(options: dict[str, Any], fold: Any = fold) -> Any:
            method = new_screener("rls_avg", data, {"gamma": 2.0, **options}, 22)
            return score_fold(method, data, fold, "S2", 22, outer)

        assert found["chosen"] == measured(chosen)
        assert found["defaults"] == measured({})
        assert found["points"] == [measured(point) for point in points]
    # Nothing chosen without the test pairs beats the best point on them.
    rows = {str(row[0]): row for row in done.table.rows}
    means = [np.mean([fold["points"][i]["auc"] for fold in done.result["folds"]]) for i in range(len(points))]
    best = str(rows["best on the test folds (not to be reported)"][1])
    assert best.startswith(f"{100 * max(means):.1f}")
    assert sum(int(str(row[2])) for row in done.points.rows) == 3
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == done.result


def test_a_search_counts_the_decoys_that_the_seed_draws(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"grid": {"alpha": [0.0, 1.0]}, "num_folds": 2, "inner_folds": 2, "decoys": "sampled"}
    done = run(tune, tmp_path / "run", method="rls_avg", ratio=1, seed=22, **asked)
    data, counting = small(), Counting(num_folds=2, decoys="sampled", ratio=1)
    for fold, found in zip(counting.folds(data, "S1", 22), done.result["folds"], strict=True):
        assert found["defaults"] == score_fold(new_screener("rls_avg", data, {}, 22), data, fold, "S1", 22, counting)
    assert done.result["decoys"].startswith("Negatives are sampled from the test pairs not known to interact, 1 for")


def test_an_option_is_in_the_grid_or_fixed_not_both(tmp_path: Path) -> None:
    fixed = {"alpha": 0.5}
    with pytest.raises(InputError, match="alpha is in the grid and in method_options; name it once"):
        run(tune, tmp_path / "run", method="rls_avg", method_options=fixed, grid={"alpha": [0.1]})
    assert not (tmp_path / "run").exists()
    done = run(tune, tmp_path / "run", method="rls_avg", method_options=fixed, num_folds=2, inner_folds=2)
    assert {tuple(point) for point in done.result["points"]} == {("sigma",)}  # the rest of the method's own grid
    assert done.result["chosen"]["alpha"] == 0.5


def test_points_stand_in_the_order_of_their_scores_and_unmeasured_ones_last() -> None:
    points = [{"alpha": alpha} for alpha in (0.1, 0.2, 0.3, 0.4)]
    result = {"points": points, "scores": [None, 0.0, 0.7, 0.3], "by": "auc", "folds": [{"options": {"alpha": 0.3}}]}
    rows = points_table(result).rows
    assert [row[0] for row in rows] == ["alpha 0.3", "alpha 0.4", "alpha 0.2", "alpha 0.1"]
    assert [row[2] for row in rows] == [1, 0, 0, 0]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=1, max_size=30), st.integers(1, 12))
def test_the_first_places_are_those_of_a_stable_sort(scores: list[float], top: int) -> None:
    expected = sorted(range(len(scores)), key=lambda place: -scores[place])[:top]
    assert ranked(np.array(scores), top) == expected


def test_a_pair_does_not_support_itself() -> None:
    labels, similarity = np.array([[1.0], [1.0], [0.0]]), np.array([[1, 0.2, 0.9], [0.2, 1, 0.1], [0.9, 0.1, 1]])
    assert supported(labels, similarity, 0, 0) == (1, 0.2)
    assert supported(labels, similarity, 2, 0) == (0, 0.9)
    assert supported(np.array([[1.0], [0.0]]), np.eye(2), 0, 0) is None


def cell(values: list[float], **fields: Any) -> dict[str, Any]:
    names = ("auc", "aupr", "average_precision", "precision_at_10", "enrichment_1pct", "bedroc")
    folds = [{**dict.fromkeys(names, value), "constant": 0.0} for value in values]
    return {"folds": folds, "skipped": 0, "chosen": [], **fields}


def test_a_row_of_the_table_is_the_mean_over_the_folds_of_all_seeds() -> None:
    table = evaluation_table({"one": {"1": cell([0.2, 0.4]), "2": cell([0.6])}, "none": {"1": cell([])}})
    first, second = table.rows
    # Student's t with two degrees of freedom, 4.303, times 0.2 / sqrt(3).
    assert first[:3] == ["one", "40.0 ± 49.7", "40.0 ± 49.7"]
    assert first[3] == pytest.approx(40.0)
    assert first[5] == "0.4 ± 0.5"
    assert second == ["none", None, None, None, None, None]


def test_differences_are_paired_fold_by_fold() -> None:
    table = differences_table({"base": {"1": cell([0.2, 0.6])}, "more": {"1": cell([0.3, 0.7])}})
    assert table.rows == [["more", *["+10.0 ± 0.0"] * 3]]


def test_methods_that_know_nothing_are_named_and_folds_left_out_counted() -> None:
    one = cell([0.5, 0.5], skipped=3)
    one["folds"][0]["constant"] = 1.0
    skipped, quiet = fold_notes({"quiet": {"1": one, "2": cell([0.5], skipped=1)}, "fine": {"1": cell([0.5])}})
    assert skipped == "Folds left out, with no interaction or no negative to test: 4."
    assert quiet.startswith("quiet gave all test pairs the same score in 1 of 3 folds")
    assert fold_notes({"fine": {"1": cell([0.5])}}) == []


def test_folds_left_out_and_scores_all_the_same_are_said_with_the_result(tmp_path: Path) -> None:
    done = run(evaluate, tmp_path / "run", methods=["blm_nii"], settings=["S4"], num_folds=9)
    found = done.result["settings"]["S4"]["methods"]["blm_nii"]["7771"]
    assert found["skipped"] > 0
    assert sum(fold["constant"] for fold in found["folds"]) == len(found["folds"]) > 0
    said = fold_notes({"blm_nii": {"7771": found}})
    assert len(said) == 2
    assert set(said) <= set(done.result["settings"]["S4"]["notes"])
