"""What every estimator of the room promises: scikit-learn's manners, and no look at what it may not see."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from stillroom.errors import InputError
from stillroom.hyperparameters import method_defaults
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._screener import Screener
from stillroom.screening.methods import METHODS, method_class

SHAPE = (13, 9)

# Method -> options that keep the tests fast; the others are tested as they are.
FAST: dict[str, dict[str, Any]] = {
    "knn": {"repeats": 2},
    "svm": {"repeats": 2},
    "forest": {"trees": 5},
    "boosting": {"trees": 5},
    "cmf": {"rank": 4, "max_iter": 5},
    "kbmf": {"rank": 3, "max_iter": 8},
    "nrlmf": {"rank": 4, "max_iter": 10},
}
# Those of scikit-learn's checks that feed no arbitrary features, of which positions are none.
CHECKS = (
    *("cloneable", "repr", "tags_renamed"),
    *("no_attributes_set_in_init", "do_not_raise_errors_in_init_or_set_params", "parameters_default_constructible"),
    *("get_params_invariance", "set_params", "mixin_order", "valid_tag_types", "estimators_unfitted"),
)
every_method = pytest.mark.parametrize("method", METHODS)


def similarities(seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    features = [generator.normal(size=(size, 3)) for size in SHAPE]
    drugs, targets = (np.exp(-((x[:, None] - x) ** 2).sum(-1) / 4) for x in features)
    return drugs, targets


def interactions(seed: int = 0) -> tuple[Array, Mask]:
    """Labels that follow the similarities, with a new drug and a new target, and which may be seen."""
    generator = np.random.default_rng(seed + 100)
    drugs, targets = similarities(seed)
    smooth = drugs @ generator.normal(size=SHAPE) @ targets
    labels = (smooth > np.quantile(smooth, 0.7)).astype(float)
    labels[3], labels[:, 5] = 0, 0
    return labels, generator.random(SHAPE) < 0.8


def build(method: str, **options: Any) -> Any:
    return method_class(method)(*similarities(), **{**FAST.get(method, {}), **options})


def every_pair() -> NDArray[np.intp]:
    return np.argwhere(np.ones(SHAPE, dtype=bool))


def observed_pairs() -> tuple[NDArray[np.intp], Array]:
    labels, observed = interactions()
    return np.argwhere(observed), labels[observed]


def check(name: str) -> Callable[[str, Any], None]:
    found = [getattr(estimator_checks, f"check_{prefix}{name}", None) for prefix in ("estimator_", "")]
    chosen: Callable[[str, Any], None] = next(each for each in found if each is not None)
    return chosen


@pytest.mark.parametrize("name", CHECKS)
@every_method
def test_the_checks_of_scikit_learn_that_need_no_data_pass(method: str, name: str) -> None:
    check(name)(method, method_class(method)())


@every_method
def test_the_constructor_takes_both_similarities_and_then_options_by_keyword(method: str) -> None:
    kind = method_class(method)
    first, second, *others = inspect.signature(kind).parameters.values()
    assert (first.name, second.name) == ("drug_similarity", "target_similarity")
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)
    assert kind.grid.keys() <= method_defaults(kind).keys()
    assert kind.card.name == method


@every_method
def test_fitting_returns_the_estimator_and_says_what_it_has_learnt_from(method: str) -> None:
    model = build(method)
    assert model.fit(*observed_pairs()) is model
    assert (model.n_features_in_, model.classes_.tolist(), model.shape_) == (2, [0, 1], SHAPE)
    assert build(method).fit_matrix(*interactions()).score_pairs(every_pair()).shape == (len(every_pair()),)


@every_method
@pytest.mark.parametrize("asked", ["predict", "decision_function", "score_pairs"])
def test_an_estimator_that_is_not_fitted_says_so(method: str, asked: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(build(method), asked)(every_pair())


@every_method
def test_fitting_again_changes_nothing_and_forgets_other_data(method: str) -> None:
    pairs, known = observed_pairs()
    once = build(method).fit(pairs, known).score_pairs(every_pair())
    model = build(method).fit_matrix(1 - interactions()[0])
    assert np.array_equal(model.fit(pairs, known).score_pairs(every_pair()), once)
    assert np.array_equal(model.fit(pairs, known).score_pairs(every_pair()), once)


@every_method
def test_what_was_handed_over_is_not_changed(method: str) -> None:
    pairs, known = observed_pairs()
    labels, observed = interactions()
    asked = every_pair()
    model = build(method)
    handed = [*model.get_params().values(), pairs, known, labels, observed, asked]
    before = [np.copy(each) if isinstance(each, np.ndarray) else each for each in handed]
    model.fit_matrix(labels, observed)
    model.fit(pairs, known)
    model.predict(asked)
    after = [*model.get_params().values(), pairs, known, labels, observed, asked]
    assert all(one is other for one, other in zip(handed, after, strict=True))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one, other)


@every_method
def test_scores_do_not_depend_on_the_other_pairs_asked_for(method: str) -> None:
    model = build(method).fit(*observed_pairs())
    asked = every_pair()
    scores = model.score_pairs(asked)
    one_by_one = np.concatenate([model.score_pairs(asked[i : i + 1]) for i in range(len(asked))])
    np.testing.assert_allclose(one_by_one, scores, rtol=1e-9, atol=1e-12)
    order = np.random.default_rng(3).permutation(len(asked))
    np.testing.assert_allclose(model.score_pairs(asked[order]), scores[order], rtol=1e-9, atol=1e-12)


@every_method
def test_the_order_of_the_pairs_fitted_does_not_matter(method: str) -> None:
    pairs, known = observed_pairs()
    order = np.random.default_rng(4).permutation(len(pairs))
    straight, shuffled = build(method).fit(pairs, known), build(method).fit(pairs[order], known[order])
    assert np.array_equal(straight.score_pairs(every_pair()), shuffled.score_pairs(every_pair()))


@every_method
def test_a_fitted_estimator_survives_pickle_and_a_clone_is_not_fitted(method: str) -> None:
    model = build(method).fit(*observed_pairs())
    scores = model.score_pairs(every_pair())
    # Our own bytes; what a user hands over is never unpickled.
    assert np.array_equal(pickle.loads(pickle.dumps(model)).score_pairs(every_pair()), scores)
    copy = clone(model)
    with pytest.raises(NotFittedError):
        copy.predict(every_pair())
    assert copy.drug_similarity is model.drug_similarity  # shared, they are only read
    assert np.array_equal(copy.fit(*observed_pairs()).score_pairs(every_pair()), scores)


@every_method
def test_the_answer_is_1_where_the_decision_is_above_0(method: str) -> None:
    pairs, known = observed_pairs()
    model = build(method).fit(pairs, known)
    decision = model.decision_function(every_pair())
    np.testing.assert_array_equal(decision, model.score_pairs(every_pair()) - model.threshold)
    assert np.array_equal(model.predict(every_pair()), (decision > 0).astype(int))
    assert model.score(pairs, known) == accuracy_score(known, model.predict(pairs))


@pytest.mark.parametrize(
    "given",
    ["list", "DataFrame", "float", "int8", "object", "fortran", "memmap"],
)
def test_pairs_come_in_any_container_of_whole_numbers(given: str, tmp_path: Path) -> None:
    pairs, known = observed_pairs()
    scores = build("rls_avg").fit(pairs, known).score_pairs(every_pair())

    def handed(values: NDArray[Any], file: str) -> Any:
        if given == "list":
            return values.tolist()
        if given == "DataFrame":
            return pd.DataFrame(values, columns=["drug", "target"]) if values.ndim == 2 else pd.Series(values)
        if given == "fortran":
            return np.asfortranarray(values)
        if given == "memmap":
            np.save(tmp_path / file, values)
            return np.load(tmp_path / file, mmap_mode="r")
        return values.astype(given)

    model = build("rls_avg").fit(handed(pairs, "pairs.npy"), handed(known, "known.npy"))
    assert np.array_equal(model.score_pairs(handed(every_pair(), "asked.npy")), scores)


@every_method
def test_similarities_and_labels_may_be_read_only_or_lists(method: str) -> None:
    labels, observed = interactions()
    expected = build(method).fit_matrix(labels, observed).score_pairs(every_pair())
    drugs, targets = similarities()
    for each in (drugs, targets, labels, observed):
        each.setflags(write=False)
    for one, other in ((drugs, targets), (drugs.tolist(), targets.tolist())):
        model = build(method).set_params(drug_similarity=one, target_similarity=other).fit_matrix(labels, observed)
        assert np.array_equal(model.score_pairs(every_pair()), expected)


@every_method
def test_pairs_and_matrix_fit_alike(method: str) -> None:
    by_matrix = build(method).fit_matrix(*interactions())
    by_pairs = build(method).fit(*observed_pairs())
    assert np.array_equal(by_pairs.score_pairs(every_pair()), by_matrix.score_pairs(every_pair()))


@pytest.mark.parametrize("method", ["naive_bayes", "knn", "svm", "forest", "boosting"])
def test_methods_that_tell_unknown_from_0_leave_unknown_pairs_out(method: str) -> None:
    labels, observed = interactions()
    told = build(method).fit_matrix(labels, observed).score_pairs(every_pair())
    untold = build(method).fit_matrix(labels * observed).score_pairs(every_pair())
    assert not np.array_equal(told, untold)


@every_method
def test_labels_that_may_not_be_seen_change_nothing(method: str) -> None:
    labels, observed = interactions()
    hidden = [np.where(observed, labels, values) for values in (0, 1, 1 - labels)]
    first, *others = (build(method).fit_matrix(values, observed).score_pairs(every_pair()) for values in hidden)
    for other in others:
        assert np.array_equal(other, first)


@every_method
def test_a_drug_and_a_target_held_out_at_once_have_finite_scores(method: str) -> None:
    labels, observed = interactions()
    observed[2], observed[:, 4] = False, False
    scores = build(method).fit_matrix(labels, observed).score_pairs(every_pair())
    assert np.isfinite(scores).all()


@every_method
def test_similarities_are_made_symmetric(method: str) -> None:
    labels, observed = interactions()
    drugs, targets = (np.round(each * 64) / 64 for each in similarities())  # their sums and halves are exact
    skewed = [each + np.triu(np.ones_like(each), 1) - np.tril(np.ones_like(each), -1) for each in (drugs, targets)]
    expected = build(method).set_params(drug_similarity=drugs, target_similarity=targets).fit_matrix(labels, observed)
    found = build(method).set_params(drug_similarity=skewed[0], target_similarity=skewed[1])
    found.fit_matrix(labels, observed)
    assert np.array_equal(found.score_pairs(every_pair()), expected.score_pairs(every_pair()))


@every_method
def test_cross_validation_of_scikit_learn_measures_pairs(method: str) -> None:
    pairs, known = observed_pairs()
    for scoring in ("roc_auc", "average_precision"):
        found = cross_val_score(build(method), pairs, known, cv=2, scoring=scoring, error_score="raise")
        assert ((found >= 0) & (found <= 1)).all()


@every_method
def test_a_search_of_scikit_learn_over_the_methods_own_grid_finds_a_point_of_it(method: str) -> None:
    model = build(method)
    name = next(iter(model.grid))
    grid = {name: list(model.grid[name])[:2]}
    search = GridSearchCV(model, grid, cv=2, scoring="average_precision", error_score="raise").fit(*observed_pairs())
    assert search.best_params_[name] in grid[name]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("method", ["rls_avg", "blm_nii", "knn", "nrlmf"])
def test_scores_become_probabilities_by_calibration(method: str) -> None:
    calibrated = CalibratedClassifierCV(build(method), cv=2).fit(*observed_pairs())
    probabilities = calibrated.predict_proba(every_pair())
    assert probabilities.shape == (len(every_pair()), 2)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_a_pipeline_turns_names_into_positions() -> None:
    pairs, known = observed_pairs()
    named = np.array([[f"d{drug}", f"t{target}"] for drug, target in pairs])

    def placed(names: NDArray[Any]) -> NDArray[np.intp]:
        return np.array([[int(drug[1:]), int(target[1:])] for drug, target in names])

    pipeline = make_pipeline(FunctionTransformer(placed), build("blm_nii"))
    scores = pipeline.fit(named, known).decision_function(named)
    assert np.array_equal(scores, build("blm_nii").fit(pairs, known).decision_function(pairs))
    search = GridSearchCV(pipeline, {"blmnii__alpha": [0.2, 0.8]}, cv=2, scoring="roc_auc", error_score="raise")
    assert search.fit(named, known).best_params_["blmnii__alpha"] in (0.2, 0.8)


@pytest.mark.parametrize(
    ("pairs", "known", "said"),
    [
        ([[0, 0], [0, 9]], [1, 0], "pair 1 (counted from 0) is drug 0, target 9; positions are whole numbers, drugs 0"),
        ([[0, 0], [13, 0]], [1, 0], "pair 1 (counted from 0) is drug 13, target 0"),
        ([[0, 0], [-1, 0]], [1, 0], "pair 1 (counted from 0) is drug -1, target 0"),
        ([[0, 0.5], [1, 0]], [1, 0], "pair 0 (counted from 0) is drug 0.0, target 0.5"),
        ([[0, 0], [float("nan"), 0]], [1, 0], "pair 1 (counted from 0) is drug nan"),
        ([[0, 0], [float("inf"), 0]], [1, 0], "pair 1 (counted from 0) is drug inf"),
        ([["a", "b"], ["c", "d"]], [1, 0], "pairs holds something that is no number"),
        ([[0, 0, 0], [1, 0, 0]], [1, 0], "pairs have shape [2, 3]"),
        ([0, 1], [1, 0], "pairs have shape [2]"),
        ([[0, 0], [1, 0], [0, 0]], [1, 0, 1], "rows 0 and 2 of X (counted from 0) are the same pair; keep one"),
        ([[0, 0], [1, 0]], [1], "y has shape [1] for 2 pairs; one label each"),
        ([[0, 0], [1, 0]], [[1], [0]], "y has shape [2, 1] for 2 pairs"),
        ([[0, 0], [1, 0]], None, "y has shape [] for 2 pairs"),
        ([[0, 0], [1, 0]], ["yes", "no"], "y holds something that is no number"),
        ([[0, 0], [1, 0]], [0, 0], "no pair is labelled 1; at least one known interaction is needed"),
        ([[0, 0], [1, 0]], [1, 2], "the label of drug 1 and target 0 (counted from 0) is 2; labels are 0 or 1"),
        ([[0, 0], [1, 0]], [1, float("nan")], "the label of drug 1 and target 0 (counted from 0) is nan"),
    ],
)
def test_bad_pairs_are_one_line_that_names_the_row(pairs: Any, known: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build("rls_avg").fit(pairs, known)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [[[0, 9]], [[13, 0]], [[-1, 0]], [[0.5, 0]]])
@every_method
def test_a_pair_outside_the_similarities_is_not_scored(method: str, asked: Any) -> None:
    with pytest.raises(InputError, match=r"^pair 0 \(counted from 0\) is drug "):
        build(method).fit(*observed_pairs()).predict(asked)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"drug_similarity": None}, "drug_similarity is missing; give the matrix of similarities [13, 13]"),
        ({"drug_similarity": np.eye(4)}, "drug_similarity has 4 rows, but the labels have 13 drugs"),
        ({"target_similarity": np.eye(4)}, "target_similarity has 4 rows, but the labels have 9 targets"),
        ({"target_similarity": np.ones((9, 3))}, "target_similarity has shape [9, 3]; it must be square"),
        ({"drug_similarity": np.full((13, 13), np.nan)}, "drug_similarity is nan in row 0, column 0 (counted from 0)"),
        ({"drug_similarity": [["a"] * 13] * 13}, "drug_similarity holds something that is no number"),
    ],
)
@pytest.mark.parametrize("method", ["rls_avg", "knn", "nrlmf"])
def test_a_bad_similarity_is_one_line_that_names_it(method: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        build(method).set_params(**changed).fit_matrix(*interactions())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "observed", "said"),
    [
        (np.zeros(SHAPE), None, "no pair is labelled 1"),
        (np.ones(3), None, "labels have shape [3]; they must be [drugs, targets]"),
        (np.full(SHAPE, 0.5), None, "the label of drug 0 and target 0 (counted from 0) is 0.5; labels are 0 or 1, set"),
        (np.ones(SHAPE), np.zeros(SHAPE, dtype=bool), "no observed pair is labelled 1"),
        (np.ones(SHAPE), np.ones((2, 2)), "observed has shape [2, 2]; it must be [13, 9]"),
        (np.ones(SHAPE), np.full(SHAPE, 2), "observed holds something else than true and false"),
    ],
)
def test_bad_labels_are_one_line(labels: Any, observed: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build("blm_nii").fit_matrix(labels, observed)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fit_that_fails_leaves_an_estimator_that_is_not_fitted() -> None:
    drugs, targets = similarities()
    model = method_class("net_lap_rls")(drugs - 10, targets)
    with pytest.raises(InputError):
        model.fit_matrix(*interactions())
    with pytest.raises(NotFittedError):
        model.score_pairs(every_pair())


def test_the_nearest_method_is_suggested() -> None:
    with pytest.raises(InputError, match=r"^unknown method for screening 'blmnii'; did you mean 'blm_nii'\?$"):
        method_class("blmnii")


@every_method
def test_every_method_is_a_screener_whose_grid_holds_possible_options(method: str) -> None:
    kind = method_class(method)
    assert issubclass(kind, Screener)
    for name, values in kind.grid.items():
        assert len(values) > 1
        for value in values:
            kind(**{name: value}).check_options()
