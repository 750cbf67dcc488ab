"""Cross-validation against a loop written by hand, and the choice of options inside the training folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import auc as area
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.cross_validation import (
    MEASURES,
    Counting,
    choose_options,
    cross_validate,
    grid_points,
    new_screener,
    score_fold,
)
from stillroom.screening.interactions import Interactions
from stillroom.screening.methods import METHODS, method_class
from stillroom.screening.protocols import Setting, make_folds

SETTINGS: tuple[Setting, ...] = ("S1", "S2", "S3", "S4")
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def toy(seed: int = 0, *, positives: float = 0.3, shape: tuple[int, int] = (14, 10), **fields: Any) -> Interactions:
    """Labels that follow the similarities."""
    generator = np.random.default_rng(seed)
    features = [generator.normal(size=(size, 3)) for size in shape]
    drugs, targets = (np.exp(-((x[:, None] - x) ** 2).sum(-1) / 4) for x in features)
    smooth = drugs @ generator.normal(size=shape) @ targets
    return Interactions(
        name="toy",
        labels=fields.pop("labels", (smooth > np.quantile(smooth, 1 - positives)).astype(float)),
        drugs=[f"d{i}" for i in range(shape[0])],
        targets=[f"t{i}" for i in range(shape[1])],
        drug_similarity=drugs,
        target_similarity=targets,
        **fields,
    )


def with_labels_changed_in(mask: NDArray[np.bool_], data: Interactions, seed: int = 9) -> Interactions:
    drawn = np.random.default_rng(seed).random(data.shape) < 0.5
    return data.replace(labels=np.where(mask, drawn, data.labels))


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "seconds"}


def trapezoid(known: Array, scores: Array) -> float:
    precision, recall, _ = precision_recall_curve(known, scores)
    return float(area(recall, precision))


@every_setting
@pytest.mark.parametrize("method", ["blm_nii", "nearest_profile"])
def test_cross_validation_is_the_loop_one_would_write(method: str, setting: Setting) -> None:
    data = toy()
    options = {"alpha": 0.3} if method == "blm_nii" else {"combine": "max"}
    found = cross_validate(method, data, setting, 22, options=options, counting=Counting(num_folds=4))
    expected = []
    for fold in make_folds(data.shape, setting, seed=22, num_folds=4):
        known = data.labels[fold.test]
        if known.any() and not known.all():
            model = method_class(method)(data.drug_similarity, data.target_similarity, **options)
            scores = model.fit_matrix(data.labels * fold.train).score_pairs(np.argwhere(fold.test))
            expected.append(
                (roc_auc_score(known, scores), trapezoid(known, scores), average_precision_score(known, scores))
            )
    measured = [(each["auc"], each["aupr"], each["average_precision"]) for each in found["folds"]]
    np.testing.assert_allclose(measured, expected, atol=1e-12)
    assert found["skipped"] == len(make_folds(data.shape, setting, seed=22, num_folds=4)) - len(expected)
    assert found["chosen"] == []
    assert found["seconds"] > 0
    assert all(each.keys() == {*MEASURES, "constant"} for each in found["folds"])


def test_the_seed_decides_the_folds_and_the_draws() -> None:
    data = toy()
    first, again, other = (
        without_times(cross_validate("knn", data, "S1", seed, counting=Counting(num_folds=3), options={"repeats": 1}))
        for seed in (7771, 7771, 22)
    )
    assert first == again
    assert first["folds"] != other["folds"]


@pytest.mark.parametrize("method", ["knn", "svm", "forest", "boosting", "cmf", "kbmf", "nrlmf"])
def test_draws_take_the_seed_unless_the_options_name_one(method: str) -> None:
    assert new_screener(method, toy(), {}, 22).get_params()["random_state"] == 22
    assert new_screener(method, toy(), {"random_state": 5}, 22).get_params()["random_state"] == 5


@pytest.mark.parametrize("method", METHODS)
@every_setting
def test_what_is_tested_has_no_say_in_the_scores(method: str, setting: Setting) -> None:
    data = toy()
    fast = {"nrlmf": 5, "cmf": 3, "kbmf": 3}
    options = {"max_iter": fast[method]} if method in fast else {}
    options |= {"trees": 3} if method in ("forest", "boosting") else {}
    counting = Counting(num_folds=4)
    fold = next(fold for fold in counting.folds(data, setting, 1) if data.labels[fold.test].any())
    scores = []
    for seen in (data, with_labels_changed_in(~fold.train, data)):
        model = new_screener(method, seen, options, 1)
        assert score_fold(model, seen, fold, setting, 1, counting) is not None
        scores.append(model.score_pairs(np.argwhere(fold.test)))
    assert np.array_equal(scores[0], scores[1])


@every_setting
def test_options_are_chosen_without_the_labels_of_the_test_fold(setting: Setting) -> None:
    data = toy(shape=(18, 14))
    points = grid_points("rls_kron")
    counting, inner = Counting(num_folds=4), Counting(num_folds=3)
    fold = counting.folds(data, setting, 1)[2]
    chosen, again = (
        choose_options("rls_kron", seen, points, setting, 1, inner, within=fold)
        for seen in (data, with_labels_changed_in(~fold.train, data))
    )
    assert chosen == again
    assert len(set(chosen.scores)) > 1
    everything = choose_options("rls_kron", data, points, setting, 1, inner)
    assert everything.scores != chosen.scores


def test_the_point_with_the_highest_mean_of_the_inner_folds_is_chosen() -> None:
    data = toy()
    points = grid_points("rls_avg", {"alpha": [0.0, 0.5, 1.0], "sigma": [0.25, 4.0]})
    counting = Counting(num_folds=3)
    for by in ("auc", "average_precision", "bedroc"):
        choice = choose_options("rls_avg", data, points, "S2", 1, counting, options={"gamma": 0.5}, by=by)
        expected = []
        for point in points:
            found = cross_validate("rls_avg", data, "S2", 1, options={"gamma": 0.5, **point}, counting=counting)
            expected.append(np.mean([fold[by] for fold in found["folds"]]))
        np.testing.assert_allclose(choice.scores, expected)
        assert choice.options == {"gamma": 0.5, **points[int(np.argmax(expected))]}


def test_of_equal_points_the_first_is_chosen() -> None:
    points: list[dict[str, Any]] = [{"sigma": 1.0}, {"sigma": 1}]
    assert (
        choose_options("rls_avg", toy(), points, "S1", 1, Counting(num_folds=2)).options["sigma"] is points[0]["sigma"]
    )


def test_where_no_inner_fold_can_be_measured_the_first_point_is_taken() -> None:
    labels = np.zeros((14, 10))
    labels[0, 0] = 1
    choice = choose_options("rls_avg", toy(labels=labels), grid_points("rls_avg"), "S1", 1, Counting(num_folds=2))
    assert choice.options == grid_points("rls_avg")[0]
    assert np.isnan(choice.scores).all()


def test_a_tuned_cross_validation_measures_what_was_chosen_in_each_fold() -> None:
    data = toy(shape=(18, 12))
    points = grid_points("rls_avg", {"alpha": [0.0, 1.0], "sigma": [0.25, 4.0]})
    counting, inner = Counting(num_folds=3), Counting(num_folds=2)
    found = cross_validate(
        "rls_avg", data, "S2", 7, options={"gamma": 2.0}, counting=counting, tuned=points, inner=inner, by="auc"
    )
    for fold, measured, chosen in zip(counting.folds(data, "S2", 7), found["folds"], found["chosen"], strict=True):
        expected = choose_options(
            "rls_avg", data, points, "S2", 7, inner, options={"gamma": 2.0}, within=fold, by="auc"
        ).options
        assert chosen == expected
        assert measured == score_fold(new_screener("rls_avg", data, chosen, 7), data, fold, "S2", 7, counting)


def test_the_inner_folds_are_five_like_the_outer_ones_unless_given() -> None:
    data = measured_toy()
    points = grid_points("rls_kron")
    unsaid, *others = (
        cross_validate(
            "rls_kron", data, "S1", 5, counting=Counting(num_folds=2, decoys="measured"), tuned=points, inner=inner
        )
        for inner in (
            None,
            Counting(num_folds=5, decoys="measured"),
            Counting(num_folds=5),
            Counting(num_folds=2, decoys="measured"),
        )
    )
    assert [unsaid["chosen"] == other["chosen"] for other in others] == [True, False, False]


def test_ten_folds_of_all_unknown_pairs_are_the_rule() -> None:
    data = toy()
    plain = without_times(cross_validate("rls_avg", data))
    assert plain == without_times(cross_validate("rls_avg", data, "S1", 7771, counting=Counting(num_folds=10)))
    assert len(plain["folds"]) + plain["skipped"] == 10


def test_folds_without_an_interaction_are_skipped_and_counted() -> None:
    labels = np.zeros((14, 10))
    labels[[1, 4, 4], [0, 3, 5]] = 1
    data = toy(labels=labels)
    told: list[int] = []
    found = cross_validate("rls_avg", data, "S2", 5, counting=Counting(num_folds=7), tick=told.append)
    folds = make_folds(data.shape, "S2", seed=5, num_folds=7)
    without = sum(not labels[fold.test].any() for fold in folds)
    assert 5 <= without < 7
    assert (found["skipped"], len(found["folds"])) == (without, 7 - without)
    assert told == [1, 2, 3, 4, 5, 6, 7]


def test_folds_without_a_negative_and_those_with_nothing_to_learn_are_skipped() -> None:
    labels = np.zeros((14, 10))
    labels[3] = 1  # the fold of this drug has nothing to train on, all others nothing to find
    assert cross_validate("rls_avg", toy(labels=labels), "S2", counting=Counting(num_folds=14))["skipped"] == 14
    labels[5, 2] = 1
    found = cross_validate("rls_avg", toy(labels=labels), "S2", counting=Counting(num_folds=14))
    assert (found["skipped"], len(found["folds"])) == (13, 1)  # drug 3 has no negative, drug 5 has


def test_scores_that_are_all_the_same_are_counted() -> None:
    data = toy()
    alone = data.replace(drug_similarity=np.eye(14))
    options = {"side": "drug"}
    for seen, constant in ((alone, 1.0), (data, 0.0)):
        found = cross_validate("weighted_profile", seen, "S2", options=options, counting=Counting(num_folds=3))
        assert {fold["constant"] for fold in found["folds"]} == {constant}


def measured_toy() -> Interactions:
    data = toy()
    seen = (np.random.default_rng(3).random(data.shape) < 0.5) | (data.labels > 0)
    return data.replace(measured=seen)


def test_measured_decoys_are_the_only_negatives_and_the_only_zeros_learnt_from() -> None:
    data = measured_toy()
    assert data.measured is not None
    found = cross_validate("naive_bayes", data, "S1", 22, counting=Counting(num_folds=3, decoys="measured"))
    for fold, measured in zip(make_folds(data.shape, "S1", seed=22, num_folds=3), found["folds"], strict=True):
        model = method_class("naive_bayes")(data.drug_similarity, data.target_similarity)
        counted = fold.test & data.measured
        scores = model.fit_matrix(data.labels, fold.train & data.measured).score_pairs(np.argwhere(counted))
        assert measured["auc"] == pytest.approx(roc_auc_score(data.labels[counted], scores))
    plain = cross_validate("naive_bayes", data, "S1", 22, counting=Counting(num_folds=3))
    assert plain["folds"] != found["folds"]


def test_where_all_pairs_count_what_was_not_measured_is_learnt_from_too() -> None:
    data = measured_toy()
    fold = make_folds(data.shape, "S1", seed=22, num_folds=3)[0]
    assert data.measured is not None
    assert np.array_equal(Counting().observed(data, fold), fold.train)
    assert np.array_equal(Counting(decoys="measured").observed(data, fold), fold.train & data.measured)


def test_sampled_decoys_are_as_many_as_asked_for() -> None:
    data = toy(positives=0.1)
    found = cross_validate("rls_avg", data, "S1", 22, counting=Counting(num_folds=2, decoys="sampled", ratio=1))
    for fold in found["folds"]:
        # All pairs in the first percent, and as many negatives as interactions: at most twice random.
        assert fold["enrichment_1pct"] <= 2 + 1e-9
    every = cross_validate("rls_avg", data, "S1", 22, counting=Counting(num_folds=2))
    assert max(fold["enrichment_1pct"] for fold in every["folds"]) > 2


def test_groups_stay_in_one_fold() -> None:
    data = toy()
    groups = np.arange(14) // 2
    for fold in Counting(num_folds=3, drug_groups=groups).folds(data, "S2", 1):
        tested = np.asarray(fold.test.any(axis=1))
        assert np.array_equal(tested[::2], tested[1::2])
    for fold in Counting(num_folds=3, target_groups=np.arange(10) // 2).folds(data, "S3", 1):
        tested = np.asarray(fold.test.any(axis=0))
        assert np.array_equal(tested[::2], tested[1::2])


@pytest.mark.parametrize("method", METHODS)
def test_the_points_of_a_grid_are_all_combinations_the_last_option_fastest(method: str) -> None:
    grid = method_class(method).grid
    points = grid_points(method)
    assert len(points) == np.prod([len(values) for values in grid.values()])
    assert points[0] == {name: values[0] for name, values in grid.items()}
    assert points[-1] == {name: values[-1] for name, values in grid.items()}
    assert len({tuple(point.items()) for point in points}) == len(points)


def test_a_grid_of_ones_own_takes_the_place_of_the_methods() -> None:
    points = grid_points("rls_avg", {"alpha": (0.1, 0.2), "psd": ["none"]})
    assert points == [{"alpha": 0.1, "psd": "none"}, {"alpha": 0.2, "psd": "none"}]
    assert grid_points("rls_avg", {}) == [{}]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"alpa": [1]}, "unknown option of rls_avg in the grid 'alpa'; did you mean 'alpha'?"),
        ({"drug_similarity": [None]}, "unknown option of rls_avg in the grid 'drug_similarity'"),
        ({"psd": "clip"}, "grid of rls_avg: psd needs a list of values to try, not 'clip'"),
        ({"alpha": 0.5}, "grid of rls_avg: alpha needs a list of values to try, not 0.5"),
        ({"alpha": []}, "grid of rls_avg: alpha needs a list of values to try, not []"),
        ({"alpha": [0.5, 2]}, "alpha is 2; it must be a number at least 0 and at most 1"),
    ],
)
def test_a_bad_grid_is_one_line(grid: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        grid_points("rls_avg", grid)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "rls_avgg"}, "unknown method for screening 'rls_avgg'; did you mean 'rls_avg'?"),
        ({"options": {"alpa": 1}}, "unknown option of rls_avg 'alpa'; did you mean 'alpha'?"),
        ({"options": {"alpha": 3}}, "alpha is 3"),
        ({"setting": "S5"}, "unknown setting 'S5'"),
        ({"seed": -1}, "seed is -1"),
        ({"counting": {"num_folds": 1}}, "num_folds is 1"),
        ({"counting": {"num_folds": 1000}}, "140 pairs that differ cannot be split into 1000 parts"),
        ({"counting": {"decoys": "measured"}}, "decoys=measured needs data that says which pairs were measured"),
        ({"counting": {"decoys": "sampld"}}, "unknown decoys 'sampld'; did you mean 'sampled'?"),
        ({"counting": {"ratio": 0}}, "ratio is 0"),
        ({"tuned": [{}], "by": "roc"}, "unknown measure 'roc'"),
    ],
)
def test_bad_input_is_one_line(changed: dict[str, Any], said: str) -> None:
    def measured(*, counting: dict[str, Any], **options: Any) -> None:
        cross_validate(**{"name": "rls_avg", "data": toy(), "counting": Counting(**counting), **options})

    with pytest.raises(InputError) as caught:
        measured(**{"counting": {}, **changed})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
