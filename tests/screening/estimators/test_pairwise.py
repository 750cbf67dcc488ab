"""Classifiers of pairs, and what every simple classifier of the room promises."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators import _pair_features, knn
from stillroom.screening.estimators._pair_features import kernel_coordinates, pair_features
from stillroom.screening.estimators._sampling import sampled_pairs
from stillroom.screening.estimators.knn import kernel_knn
from stillroom.screening.estimators.naive_bayes import naive_bayes_log_odds
from stillroom.screening.estimators.svm import pairwise_svm
from stillroom.screening.kernels.algebra import kron_apply, pairwise_kernel, psd_repaired
from stillroom.screening.methods import METHODS, method_class

SHAPE = (14, 10)
ALL = 1000.0  # more negatives than there are: no chance is left

# Method -> options that keep the tests fast.
SIMPLE: dict[str, dict[str, Any]] = {
    "nearest_profile": {},
    "weighted_profile": {},
    "naive_bayes": {},
    "knn": {"repeats": 2},
    "svm": {"repeats": 2},
    "forest": {"trees": 5},
    "boosting": {"trees": 5},
    "blm": {},
    "blm svm": {"local": "svm"},
}
DRAWN = ["knn", "svm", "forest", "boosting"]
every_method = pytest.mark.parametrize("method", SIMPLE)


def similarities(seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    features = [generator.normal(size=(size, 3)) for size in SHAPE]
    drugs, targets = (np.exp(-((x[:, None] - x) ** 2).sum(-1) / 4) for x in features)
    return drugs, targets


def interactions(seed: int = 0) -> tuple[Array, Mask]:
    """Labels that follow the similarities, and which may be seen."""
    generator = np.random.default_rng(seed + 100)
    drugs, targets = similarities(seed)
    smooth = drugs @ generator.normal(size=SHAPE) @ targets
    return (smooth > np.quantile(smooth, 0.75)).astype(float), generator.random(SHAPE) < 0.8


def build(method: str, drugs: Any, targets: Any, **options: Any) -> Any:
    return method_class(method.split()[0])(drugs, targets, **{**SIMPLE[method], **options})


def every_pair() -> NDArray[np.intp]:
    return np.argwhere(np.ones(SHAPE, dtype=bool))


@every_method
def test_held_out_labels_change_nothing(method: str) -> None:
    labels, observed = interactions()
    flipped = np.where(observed, labels, 1 - labels)
    first, second = (build(method, *similarities()).fit_matrix(values, observed) for values in (labels, flipped))
    assert np.array_equal(first.score_pairs(every_pair()), second.score_pairs(every_pair()))


@every_method
def test_a_fitted_estimator_survives_clone_and_pickle(method: str) -> None:
    model = build(method, *similarities()).fit_matrix(*interactions())
    scores = model.score_pairs(every_pair())
    # Our own bytes; what a user hands over is never unpickled.
    assert np.array_equal(pickle.loads(pickle.dumps(model)).score_pairs(every_pair()), scores)
    copy = clone(model)
    assert not hasattr(copy, "shape_")
    assert np.array_equal(copy.fit_matrix(*interactions()).score_pairs(every_pair()), scores)


@every_method
def test_pairs_and_matrix_fit_alike(method: str) -> None:
    labels, observed = interactions()
    pairs = np.argwhere(observed)
    by_pairs = build(method, *similarities()).fit(pairs, labels[observed])
    by_matrix = build(method, *similarities()).fit_matrix(labels, observed)
    assert np.array_equal(by_pairs.score_pairs(every_pair()), by_matrix.score_pairs(every_pair()))


@every_method
def test_new_drugs_and_rows_similar_to_nothing_have_finite_scores(method: str) -> None:
    (drugs, targets), (labels, observed) = similarities(), interactions()
    drugs[4], drugs[:, 4] = 0, 0
    targets[2], targets[:, 2] = 0, 0
    labels[[4, 5]], labels[:, [2, 3]] = 0, 0
    model = build(method, drugs, targets).fit_matrix(labels, observed)
    assert np.isfinite(model.score_pairs(every_pair())).all()
    assert set(model.predict(every_pair())) <= {0, 1}


@pytest.mark.parametrize(
    "method", ["nearest_profile", "weighted_profile", "naive_bayes", "knn", "svm", "blm", "blm svm"]
)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_scores_follow_the_order_of_drugs(method: str, seed: int) -> None:
    (drugs, targets), (labels, observed) = similarities(seed), interactions(seed)
    order = np.random.default_rng(seed).permutation(SHAPE[0])
    options = {"negatives": ALL} if method in DRAWN else {}
    straight = build(method, drugs, targets, **options).fit_matrix(labels, observed)
    moved = build(method, drugs[np.ix_(order, order)], targets, **options).fit_matrix(labels[order], observed[order])
    scores = straight.score_pairs(every_pair()).reshape(SHAPE)
    # The machines stop at a tolerance of 1e-3, from another start in another order.
    tolerance = 5e-3 if "svm" in method else 1e-9
    np.testing.assert_allclose(moved.score_pairs(every_pair()).reshape(SHAPE), scores[order], atol=tolerance)


@pytest.mark.parametrize("method", DRAWN)
def test_the_same_random_state_gives_the_same_scores_and_another_one_others(method: str) -> None:
    first, again, other = (
        build(method, *similarities(), random_state=state, negatives=1.0)
        .fit_matrix(*interactions())
        .score_pairs(every_pair())
        for state in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@every_method
def test_searches_and_cross_validation_run_over_pairs(method: str) -> None:
    labels, observed = interactions()
    pairs, known = np.argwhere(observed), labels[observed]
    model = build(method, *similarities())
    assert np.isfinite(cross_val_score(model, pairs, known, cv=2, scoring="roc_auc")).all()
    name, values = next(iter(model.grid.items()))
    search = GridSearchCV(model, {name: list(values)[:2]}, cv=2, scoring="average_precision").fit(pairs, known)
    assert search.best_params_[name] in values


@every_method
def test_every_value_of_the_grid_is_an_option_that_fits(method: str) -> None:
    model = build(method, *similarities())
    for name, values in model.grid.items():
        for value in values:
            clone(model).set_params(**{name: value}).check_options()


@every_method
def test_cards_carry_the_name_of_the_table(method: str) -> None:
    name = method.split()[0]
    assert name in METHODS
    assert method_class(name).card.name == name


@pytest.mark.shared_data
@every_method
def test_held_out_interactions_of_nuclear_receptors_rank_above_chance(method: str, shared_data: Path) -> None:
    folder = shared_data / "dti-gold-standard"
    tables = [
        np.loadtxt(folder / f"nr_{name}.txt.gz", dtype=str, delimiter="\t", skiprows=1)[:, 1:].astype(float)
        for name in ("simmat_dc", "simmat_dg", "admat_dgc")
    ]
    drugs, targets, labels = tables[0], tables[1], tables[2].T
    fold = np.random.default_rng(0).integers(5, size=labels.shape)
    areas = []
    for number in range(5):
        model = build(method, drugs, targets).fit_matrix(labels, fold != number)
        held = np.argwhere(fold == number)
        areas.append(roc_auc_score(labels[fold == number], model.score_pairs(held)))
    assert np.mean(areas) > 0.6


BAD = [
    ("nearest_profile", {"side": "targets"}, "unknown side 'targets'; did you mean 'target'"),
    ("weighted_profile", {"combine": "median"}, "unknown combine 'median'"),
    ("naive_bayes", {"smoothing": 0.0}, "smoothing is 0.0; it must be a number above 0"),
    ("knn", {"neighbors": 2.5}, "neighbors is 2.5; it must be a whole number"),
    ("knn", {"neighbors": 100_000}, "neighbors is 100000, but there are"),
    ("knn", {"repeats": 0}, "repeats is 0"),
    ("knn", {"psd": "clop"}, "unknown psd 'clop'; did you mean 'clip'"),
    ("svm", {"C": -1}, "C is -1; it must be a number above 0"),
    ("svm", {"negatives": 0}, "negatives is 0; it must be a number above 0"),
    ("svm", {"random_state": None}, "random_state is None; it must be a whole number"),
    ("forest", {"trees": 0}, "trees is 0"),
    ("forest", {"components": "all"}, "components is 'all'"),
    ("boosting", {"learning_rate": 2.0}, "learning_rate is 2.0; it must be a number above 0 and at most 1"),
    ("boosting", {"random_state": -1}, "random_state is -1"),
    ("blm", {"local": "smv"}, "unknown local 'smv'; did you mean 'svm'"),
    ("blm", {"C": float("nan")}, "C is nan"),
    ("blm", {"alpha": 1.5}, "alpha is 1.5"),
]


@pytest.mark.parametrize(("method", "options", "message"), BAD)
def test_a_bad_option_is_one_line(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(method, *similarities(), **options).fit_matrix(*interactions())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["naive_bayes", *DRAWN])
def test_labels_without_an_observed_0_are_one_line(method: str) -> None:
    labels, _ = interactions()
    with pytest.raises(InputError, match=r"^no observed pair is labelled 0; [^\n]*$"):
        build(method, *similarities()).fit_matrix(labels, labels == 1)


@given(st.integers(0, 1000), st.floats(0.01, 20))
def test_sampled_pairs_are_all_interactions_and_observed_zeros_once_each(seed: int, negatives: float) -> None:
    labels, observed = interactions(seed)
    seen = labels * observed
    pairs, known = sampled_pairs(seen, observed, np.random.default_rng(seed), negatives=negatives)
    drawn = pairs[known == 0]
    ones, zeros = int(seen.sum()), int((observed & (labels == 0)).sum())
    assert {tuple(pair) for pair in pairs[known == 1]} == {tuple(pair) for pair in np.argwhere(seen)}
    assert len({tuple(pair) for pair in pairs}) == len(pairs)
    assert observed[tuple(drawn.T)].all()
    assert not labels[tuple(drawn.T)].any()
    assert len(drawn) == min(zeros, max(1, round(negatives * ones)))


def test_the_decision_of_all_pairs_is_that_of_the_machine_on_the_explicit_kernel() -> None:
    (drugs, targets), (labels, observed) = similarities(), interactions()
    pairs, known = sampled_pairs(labels * observed, observed, np.random.default_rng(0), negatives=2.0)
    coefficients, intercept = pairwise_svm(drugs, targets, pairs, known, C=3.0)
    explicit = np.kron(drugs, targets)
    places = pairs @ [SHAPE[1], 1]
    machine = SVC(kernel="precomputed", C=3.0).fit(explicit[np.ix_(places, places)], known)
    expected = machine.decision_function(explicit[:, places]).reshape(SHAPE)
    np.testing.assert_allclose(kron_apply(drugs, targets, coefficients) + intercept, expected, atol=1e-9)


def test_the_scores_of_the_pairwise_svm_are_the_mean_decision_of_its_repeats() -> None:
    labels, observed = interactions()
    drugs, targets = similarities()
    model = build("svm", drugs, targets, repeats=3).fit_matrix(labels, observed)
    generator = np.random.default_rng(0)
    decisions = []
    for _ in range(3):
        pairs, known = sampled_pairs(labels * observed, observed, generator)
        machine = SVC(kernel="precomputed").fit(pairwise_kernel(drugs, targets, pairs, pairs), known)
        decisions.append(machine.decision_function(pairwise_kernel(drugs, targets, every_pair(), pairs)))
    np.testing.assert_allclose(model.scores_.ravel(), np.mean(decisions, axis=0), atol=1e-9)


def test_neighbours_are_those_of_the_explicit_features() -> None:
    labels, observed = interactions()
    generator = np.random.default_rng(5)
    features = [generator.normal(size=(size, 3)) for size in SHAPE]
    drugs, targets = (x @ x.T for x in features)
    references, known = sampled_pairs(labels * observed, observed, generator, negatives=2.0)
    explicit = np.kron(*features)  # the row of pair (d, t) is at d * targets + t
    among = explicit[references @ [SHAPE[1], 1]]
    _, nearest = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(among).kneighbors(explicit)
    weights = np.maximum(np.einsum("pf,pkf->pk", explicit, among[nearest]), 0)
    expected = (weights * (2 * known[nearest] - 1)).mean(axis=1)
    scores = kernel_knn(drugs, targets, references, known, every_pair(), neighbors=4)
    np.testing.assert_allclose(scores, expected, atol=1e-9)


@pytest.mark.parametrize(("method", "module"), [("knn", knn), ("forest", _pair_features), ("boosting", _pair_features)])
def test_scoring_in_blocks_is_scoring_at_once(method: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(method, *similarities()).fit_matrix(*interactions())
    scores = model.score_pairs(every_pair())
    monkeypatch.setattr(module, "_BLOCK", 300 if method == "knn" else 9)
    np.testing.assert_allclose(model.score_pairs(every_pair()), scores, atol=1e-12)
    assert np.array_equal(model.score_pairs(every_pair()[5:6]), model.score_pairs(every_pair())[5:6])


def test_naive_bayes_is_the_ratio_of_mean_kernels_over_the_observed_pairs() -> None:
    (drugs, targets), (labels, observed) = similarities(), interactions()
    drugs = drugs - 0.3  # some below 0
    seen = labels * observed
    odds = naive_bayes_log_odds(seen, observed, drugs, targets, smoothing=0.05)
    ones, zeros = np.argwhere(seen), np.argwhere(observed & (labels == 0))
    for drug, target in ((0, 0), (3, 7), (13, 9)):
        expected = np.log(len(ones)) - np.log(len(zeros))
        for members, sign in ((ones, 1), (zeros, -1)):
            expected += sign * np.log(np.mean([max(drugs[drug, d], 0) for d, _ in members]) + 0.05)
            expected += sign * np.log(np.mean([max(targets[target, t], 0) for _, t in members]) + 0.05)
        assert odds[drug, target] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["naive_bayes", "forest", "boosting"])
def test_probabilities_sum_to_1_and_agree_with_scores_and_predictions(method: str) -> None:
    model = build(method, *similarities()).fit_matrix(*interactions())
    probabilities = model.predict_proba(every_pair())
    assert probabilities.shape == (len(every_pair()), 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities >= 0).all()
    assert np.array_equal(probabilities[:, 1] > 0.5, model.predict(every_pair()) == 1)
    scores = model.score_pairs(every_pair())
    expected = 1 / (1 + np.exp(-scores)) if method == "naive_bayes" else scores
    np.testing.assert_allclose(probabilities[:, 1], expected, atol=1e-12)


def test_all_coordinates_together_give_the_kernel_back() -> None:
    drugs, _ = similarities()
    indefinite = drugs - 0.2 * np.eye(len(drugs))
    coordinates = kernel_coordinates(indefinite, 100)
    assert coordinates.shape == drugs.shape
    np.testing.assert_allclose(coordinates @ coordinates.T, psd_repaired(indefinite), atol=1e-5)
    np.testing.assert_array_equal(np.abs(kernel_coordinates(indefinite, 2)), np.abs(coordinates[:, :2]))


def test_pair_features_are_those_of_the_drug_then_those_of_the_target() -> None:
    drugs, targets = np.array([[1], [2]], dtype=np.float32), np.array([[30, 31], [40, 41]], dtype=np.float32)
    assert pair_features(drugs, targets, np.array([[1, 0], [0, 1]])).tolist() == [[2, 30, 31], [1, 40, 41]]
