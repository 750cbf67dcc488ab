"""What a cross-validation of drug-target screening takes, beside the equations written down plainly, and a large set.

    OMP_NUM_THREADS=1 python benchmarks/screening_speed.py folds --set gpcr --jobs 2
    OMP_NUM_THREADS=2 python benchmarks/screening_speed.py scale --drugs 10000 --targets 3000

``folds``: every method with its defaults, setting S1, ten folds, five repetitions: fit, scores of the test pairs and
measures, through the function behind ``stillroom screening evaluate``. With ``--jobs`` the repetitions run in that many
processes, as the verb runs them, and a method takes the seconds of its repetitions divided by the processes; processor
seconds are the sum over the processes. Target: at most 20 s for the 50 folds of gpcr on two cores.

The transcription beside it is the method as its equations stand: explicit inverses, a loop over drugs for profiles and
their kernel, over the rows of CMF, over test pairs for the pairwise kernel, for KBMF the covariance of each component;
scikit-learn on explicit features or kernels for machines and trees. RLS-Kron and WNN-GIP decompose both kernels; with
the explicit Kronecker product they run on sets small enough for it, nr. Every transcription has to give our scores, to
1e-6, on the first fold. Then both take turns, fold by fold, in this process, until the transcription has had its
seconds; the first fold counts only where it takes all of them. The table says how many folds were timed; its seconds of
the transcription are their mean, scaled to all folds. The ratio is that of our seconds to the transcription's on the
same fold. Target: not slower.

``scale``: RLS-Kron through ``fit_matrix`` and ``score_pairs`` on a made-up set, one pair in a thousand interacting,
similarities that are Gram matrices of random features. The peak is ``ru_maxrss`` and counts the data. Targets: 16 GiB,
minutes. Where other programs want the cores too, one thread (``OMP_NUM_THREADS=1``) is faster than two that wait for
each other.

The sets of ``folds`` are read from ``STILLROOM_DATA``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.reports.tables import Cell, Column, Table, markdown
from stillroom.screening._checks import Array, Mask
from stillroom.screening.cross_validation import SEEDS, Counting, cross_validate, new_screener, score_fold
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.estimators._sampling import sampled_pairs
from stillroom.screening.estimators.rls_kron import RLSKron
from stillroom.screening.interactions import Interactions
from stillroom.screening.methods import METHODS
from stillroom.screening.metrics import measure
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Fold
from stillroom.training.jobs import run_jobs

Pairs = NDArray[np.intp]
# An estimator with its options and similarities, training labels, observed pairs, test pairs -> scores of these.
Transcription = Callable[[Any, Array, Mask, Pairs], Array]

MOST_SECONDS = 20.0  # of 50 folds
TOLERANCE = 1e-6
MOST_DENSE = 2000  # pairs, for the explicit Kronecker product
MOST_GIBIBYTES = 16.0
DENSITY = 0.001  # of interactions
COUNTING = Counting()


def both_sides(side: Callable[[Array, Array], Array], labels: Array, model: Any) -> tuple[Array, Array]:
    """Return the scores [drugs, targets] of either side."""
    return side(labels, model.drug_similarity), side(labels.T, model.target_similarity).T


def at(scores: Array, pairs: Pairs) -> Array:
    return np.array([scores[d, t] for d, t in pairs])


def clipped(kernel: Array) -> Array:
    values, vectors = np.linalg.eigh(kernel)
    # In our order of operations: a support vector machine stops elsewhere for other last digits.
    return kernel if values[0] >= 0 else (vectors * np.maximum(values, 0)) @ vectors.T


def profile_kernel(labels: Array, similarity: Array, model: Any, *, replace_new: bool = False) -> Array:
    width = model.gamma * len(labels) / labels.sum()
    gip = np.array([np.exp(-width * np.square(labels - row).sum(axis=1)) for row in labels])
    kernel = model.alpha * similarity + (1 - model.alpha) * gip
    if replace_new:
        for d in np.flatnonzero(labels.sum(axis=1) == 0):
            kernel[d, :], kernel[:, d] = similarity[d, :], similarity[:, d]
    return clipped(kernel)


def nearest_first(similarity: Array, candidates: Pairs) -> list[int]:
    """Return candidates from the most similar on; among equals the last comes first, as in the released code."""
    return sorted(candidates.tolist(), key=lambda j: (similarity[j], j), reverse=True)


def ridge(kernel: Array, labels: Array, sigma: float) -> Array:
    return kernel @ np.linalg.inv(kernel + sigma * np.eye(len(kernel))) @ labels


def profile(model: Any, labels: Array, observed: Mask, pairs: Pairs, *, nearest: bool) -> Array:
    def side(known: Array, similarity: Array) -> Array:
        scores = np.zeros(known.shape)
        for d in range(len(known)):
            others = [j for j in range(len(known)) if j != d and known[j].any()]
            votes = np.maximum(similarity[d, others], 0)
            if len(votes) == 0 or votes.max() == 0:
                continue
            if nearest:
                first = votes == votes.max()
                scores[d] = votes.max() * known[others][first].mean(axis=0)
            else:
                scores[d] = votes @ known[others] / votes.sum()
        return scores

    by_drug, by_target = both_sides(side, labels, model)
    return at((by_drug + by_target) / 2, pairs)


def naive_bayes(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    known, others = np.argwhere(labels == 1), np.argwhere(observed & (labels == 0))

    def ratios(similarity: Array, column: int) -> list[float]:
        kernel = np.maximum(similarity, 0)
        return [
            np.log(row[known[:, column]].mean() + model.smoothing)
            - np.log(row[others[:, column]].mean() + model.smoothing)
            for row in kernel
        ]

    by_drug, by_target = ratios(model.drug_similarity, 0), ratios(model.target_similarity, 1)
    return np.array([np.log(len(known) / len(others)) + by_drug[d] + by_target[t] for d, t in pairs])


def draws(model: Any, labels: Array, observed: Mask, repeats: int) -> list[tuple[Pairs, NDArray[np.int64]]]:
    """Return the training pairs our estimator draws: on others the scores would differ."""
    generator = np.random.default_rng(model.random_state)
    return [sampled_pairs(labels, observed, generator, negatives=model.negatives) for _ in range(repeats)]


def knn(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    drugs, targets = clipped(model.drug_similarity), clipped(model.target_similarity)
    scores = np.zeros(len(pairs))
    for drawn, known in draws(model, labels, observed, model.repeats):
        e, u = drawn.T
        for number, (d, t) in enumerate(pairs):
            kernel = drugs[d, e] * targets[t, u]
            # K(p, p) is left out as in ours: it would round what is equally far to different distances.
            distance = drugs[e, e] * targets[u, u] - 2 * kernel
            nearest = np.argpartition(distance, model.neighbors - 1)[: model.neighbors]
            scores[number] += np.mean(np.maximum(kernel[nearest], 0) * (2 * known[nearest] - 1)) / model.repeats
    return scores


def svm(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    from sklearn.svm import SVC

    drugs, targets = clipped(model.drug_similarity), clipped(model.target_similarity)
    scores = np.zeros(len(pairs))
    for drawn, known in draws(model, labels, observed, model.repeats):
        e, u = drawn.T
        trained, asked = (np.array([drugs[d, e] * targets[t, u] for d, t in each]) for each in (drawn, pairs))
        machine = SVC(kernel="precomputed", C=model.C).fit(trained, known)
        scores += machine.decision_function(asked) / model.repeats
    return scores


def trees(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier

    if type(model).__name__ == "PairwiseForest":
        ensemble = ExtraTreesClassifier(n_estimators=model.trees, random_state=model.random_state)
    else:
        ensemble = HistGradientBoostingClassifier(
            max_iter=model.trees,
            learning_rate=model.learning_rate,
            early_stopping=False,
            random_state=model.random_state,
        )
    coordinates = []
    for similarity in (model.drug_similarity, model.target_similarity):
        values, vectors = np.linalg.eigh(similarity)
        features = vectors * np.sqrt(np.maximum(values, 0))
        coordinates.append(features[:, ::-1][:, : model.components].astype(np.float32))
    ((drawn, known),) = draws(model, labels, observed, 1)
    trained, asked = (
        np.array([np.concatenate([coordinates[0][d], coordinates[1][t]]) for d, t in each]) for each in (drawn, pairs)
    )
    return np.asarray(ensemble.fit(trained, known).predict_proba(asked)[:, 1])


def rls_avg(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    def side(known: Array, similarity: Array) -> Array:
        return ridge(profile_kernel(known, similarity, model), known, model.sigma)

    by_drug, by_target = both_sides(side, labels, model)
    return at((by_drug + by_target) / 2, pairs)


def kronecker(drugs: Array, targets: Array, labels: Array, sigma: float, *, dense: bool) -> Array:
    if dense:
        return ridge(np.asarray(np.kron(drugs, targets), np.float64), labels.ravel(), sigma).reshape(labels.shape)
    drug_values, drug_vectors = np.linalg.eigh(drugs)
    target_values, target_vectors = np.linalg.eigh(targets)
    products = np.outer(drug_values, target_values)
    shrunk = products / (products + sigma) * (drug_vectors.T @ labels @ target_vectors)
    return np.asarray(drug_vectors @ shrunk @ target_vectors.T)


def rls_kron(model: Any, labels: Array, observed: Mask, pairs: Pairs, *, dense: bool) -> Array:
    drugs = profile_kernel(labels, model.drug_similarity, model)
    targets = profile_kernel(labels.T, model.target_similarity, model)
    return at(kronecker(drugs, targets, labels, model.sigma, dense=dense), pairs)


def wnn_gip(model: Any, labels: Array, observed: Mask, pairs: Pairs, *, dense: bool) -> Array:
    def completed(known: Array, similarity: Array, new: Mask) -> Array:
        full = known.copy()
        for d in np.flatnonzero(new):
            neighbours = nearest_first(similarity[d], np.flatnonzero(~new))
            for rank, j in enumerate(neighbours):
                if model.decay**rank < 1e-4:
                    break
                full[d] += model.decay**rank * known[j]
        return full

    drugs = model.drug_similarity + model.diagonal_shift * np.eye(labels.shape[0])
    targets = model.target_similarity + model.diagonal_shift * np.eye(labels.shape[1])
    full = completed(labels, drugs, labels.sum(axis=1) == 0)
    full = completed(full.T, targets, labels.sum(axis=0) == 0).T
    drug_kernel = profile_kernel(labels, drugs, model, replace_new=True)
    target_kernel = profile_kernel(labels.T, targets, model, replace_new=True)
    return at(kronecker(drug_kernel, target_kernel, full, model.sigma, dense=dense), pairs)


def blm(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    from sklearn.svm import SVC

    def side(known: Array, similarity: Array) -> Array:
        seen = observed if known is labels else observed.T
        kernel, scores = profile_kernel(known, similarity, model), np.full(known.shape, np.nan)
        for t in range(known.shape[1]):
            o, y = np.flatnonzero(seen[:, t]), known[seen[:, t], t]
            inner, outer = kernel[np.ix_(o, o)], kernel[:, o]
            if model.local == "rls" and y.any():
                scores[:, t] = outer @ np.linalg.inv(inner + model.sigma * np.eye(len(o))) @ y
            elif model.local == "svm" and y.any() and not y.all():
                machine = SVC(kernel="precomputed", C=model.C).fit(inner, y)
                scores[:, t] = (machine.decision_function(outer) + 1) / 2
        return scores

    # A side without a model has no say, and without either the score is 0.
    return at(np.nan_to_num(np.fmax(*both_sides(side, labels, model))), pairs)


def blm_nii(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    def side(known: Array, similarity: Array) -> Array:
        new, full = known.sum(axis=1) == 0, known.copy()
        for d in np.flatnonzero(new):
            inferred = similarity[d, ~new] @ known[~new]
            if inferred.max() > inferred.min():
                full[d] = (inferred - inferred.min()) / (inferred.max() - inferred.min())
        return ridge(profile_kernel(known, similarity, model, replace_new=True), full, model.sigma)

    return at(np.maximum(*both_sides(side, labels, model)), pairs)


def net_lap_rls(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    def side(known: Array, similarity: Array, gamma: float, beta: float) -> Array:
        weights = (similarity + gamma * known @ known.T) / (1 + gamma)
        weights = weights - np.diag(np.diag(weights))
        root = np.diag(weights.sum(axis=1) ** -0.5)
        laplacian = np.eye(len(weights)) - root @ weights @ root
        return np.asarray(weights @ np.linalg.inv(weights + beta * laplacian @ weights) @ known)

    by_drug = side(labels, model.drug_similarity, model.gamma_drug, model.beta_drug)
    by_target = side(labels.T, model.target_similarity, model.gamma_target, model.beta_target)
    return at((by_drug + by_target.T) / 2, pairs)


def first_factors(model: Any, labels: Array) -> list[Array]:
    generator = np.random.RandomState(model.random_state)
    return [generator.normal(size=(size, model.rank)) / np.sqrt(model.rank) for size in labels.shape]


def cmf(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    def updated(own: Array, other: Array, known: Array, seen: Mask, similarity: Array, weight: float) -> Array:
        rows = []
        for i in range(len(own)):
            near = other[seen[i]]
            ridge_i = model.weight_factors + weight * (similarity[i, i] - own[i] @ own[i])
            normal = near.T @ near + 2 * weight * own.T @ own + ridge_i * np.eye(model.rank)
            rows.append((known[i] @ other + 2 * weight * similarity[i] @ own) @ np.linalg.inv(normal))
        return np.array(rows)

    def loss(u: Array, v: Array) -> float:
        squares = np.sum((observed * (labels - u @ v.T)) ** 2) + model.weight_factors * (np.sum(u**2) + np.sum(v**2))
        squares += model.weight_drug * np.sum((model.drug_similarity - u @ u.T) ** 2)
        return float(squares + model.weight_target * np.sum((model.target_similarity - v @ v.T) ** 2)) / 2

    u, v = first_factors(model, labels)
    last = loss(u, v)
    for _ in range(model.max_iter):
        u = updated(u, v, labels, observed, model.drug_similarity, model.weight_drug)
        v = updated(v, u, labels.T, observed.T, model.target_similarity, model.weight_target)
        value = loss(u, v)
        if abs(value - last) < 1e-6 * last:
            break
        last = value
    return at(u @ v.T, pairs)


def kbmf(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    from scipy.stats import norm

    scale = model.noise**-2
    sign = 2 * labels - 1

    def truncated(mean: Array) -> Array:
        x = model.margin - sign * mean
        return np.asarray(mean + sign * np.exp(norm.logpdf(x) - norm.logsf(x)))

    class Side:
        def __init__(self, kernel: Array, factors: Array) -> None:
            self.kernel, self.basis = kernel, np.linalg.eigh(kernel)[1]  # Q
            self.evidence = scale * kernel @ kernel
            self.factors, self.covariance = factors, np.eye(model.rank)
            self.projections = np.zeros_like(factors)  # A
            self.squares = np.ones_like(factors)  # E[(Q^T A)^2]

        def update(self, other: Side, outputs: Array) -> None:
            for r in range(model.rank):
                precision = (model.prior_shape + 0.5) / (model.prior_rate + self.squares[:, r] / 2)
                covariance = np.linalg.inv((self.basis * precision) @ self.basis.T + self.evidence)
                self.projections[:, r] = scale * covariance @ (self.kernel @ self.factors[:, r])
                variances = np.sum(self.basis * (covariance @ self.basis), axis=0)
                self.squares[:, r] = variances + (self.basis.T @ self.projections[:, r]) ** 2
            moments = other.factors.T @ other.factors + len(other.factors) * other.covariance
            self.covariance = np.linalg.inv(scale * np.eye(model.rank) + moments)
            self.factors = (scale * self.kernel @ self.projections + outputs @ other.factors) @ self.covariance

    by_drug, by_target = first_factors(model, labels)
    drugs, targets = Side(model.drug_similarity, by_drug), Side(model.target_similarity, by_target)
    outputs = truncated(np.zeros(labels.shape))
    for _ in range(model.max_iter):
        drugs.update(targets, outputs)
        targets.update(drugs, outputs.T)
        outputs = truncated(drugs.factors @ targets.factors.T)
    mean = drugs.kernel @ drugs.projections @ (targets.kernel @ targets.projections).T
    above, below = norm.cdf(mean - model.margin), norm.cdf(-mean - model.margin)
    return at(above / (above + below), pairs)


def nrlmf(model: Any, labels: Array, observed: Mask, pairs: Pairs) -> Array:
    c, (u, v) = model.weight_positive, first_factors(model, labels)

    def laplacian(similarity: Array) -> Array:
        others, kept = similarity - np.diag(np.diag(similarity)), np.zeros(similarity.shape)
        for i, row in enumerate(others):
            nearest = nearest_first(row, np.arange(len(row)))[: model.neighbors_fit]
            kept[i, nearest] = np.maximum(row[nearest], 0)
        return np.asarray((np.diag(kept.sum(axis=0) + kept.sum(axis=1)) - (kept + kept.T)) / 2)

    near_drug, near_target = laplacian(model.drug_similarity), laplacian(model.target_similarity)

    def objective() -> float:
        odds = u @ v.T
        value = np.sum(c * labels * odds - (1 + (c - 1) * labels) * np.log(1 + np.exp(odds)))
        value -= model.lambda_drug / 2 * np.sum(u**2) + model.lambda_target / 2 * np.sum(v**2)
        value -= model.alpha / 2 * np.trace(u.T @ near_drug @ u) + model.beta / 2 * np.trace(v.T @ near_target @ v)
        return float(value)

    def pull() -> Array:
        return np.asarray(c * labels - (1 + (c - 1) * labels) / (1 + np.exp(-u @ v.T)))

    u_squares, v_squares = np.zeros_like(u), np.zeros_like(v)
    last = objective()
    for _ in range(model.max_iter):
        gradient = pull() @ v - model.lambda_drug * u - model.alpha * near_drug @ u
        u_squares += gradient**2
        u = u + model.learning_rate * gradient / np.sqrt(u_squares)
        gradient = pull().T @ u - model.lambda_target * v - model.beta * near_target @ v
        v_squares += gradient**2
        v = v + model.learning_rate * gradient / np.sqrt(v_squares)
        value = objective()
        if abs(value - last) < 1e-5 * abs(last):
            break
        last = value

    def smoothed(factors: Array, known: Mask, similarity: Array) -> Array:
        found = factors.copy()
        for d in np.flatnonzero(~known):
            nearest = nearest_first(similarity[d], np.flatnonzero(known))[: model.neighbors_predict]
            found[d] = similarity[d, nearest] @ factors[nearest] / similarity[d, nearest].sum()
        return found

    u = smoothed(u, labels.sum(axis=1) > 0, model.drug_similarity)
    v = smoothed(v, labels.sum(axis=0) > 0, model.target_similarity)
    return at(1 / (1 + np.exp(-u @ v.T)), pairs)


TRANSCRIPTIONS: dict[str, Transcription] = {
    "nearest_profile": partial(profile, nearest=True),
    "weighted_profile": partial(profile, nearest=False),
    "naive_bayes": naive_bayes,
    "knn": knn,
    "svm": svm,
    "forest": trees,
    "boosting": trees,
    "rls_avg": rls_avg,
    "rls_kron": partial(rls_kron, dense=False),
    "blm": blm,
    "blm_nii": blm_nii,
    "wnn_gip": partial(wnn_gip, dense=False),
    "net_lap_rls": net_lap_rls,
    "cmf": cmf,
    "kbmf": kbmf,
    "nrlmf": nrlmf,
}
DENSE: dict[str, Transcription] = {"rls_kron": partial(rls_kron, dense=True), "wnn_gip": partial(wnn_gip, dense=True)}


@dataclass(frozen=True)
class Row:
    """A row of the table: a method with options, and its transcription."""

    label: str
    name: str
    transcription: Transcription
    options: Mapping[str, Any] = field(default_factory=dict)


def rows_of(data: Interactions, methods: Sequence[str]) -> Iterator[Row]:
    for name in methods:
        yield Row(name, name, TRANSCRIPTIONS[name])
        if name == "blm":
            yield Row("blm, local=svm", name, blm, {"local": "svm"})
        if name in DENSE and data.labels.size <= MOST_DENSE:
            yield Row(f"{name}, explicit product", name, DENSE[name])


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result and the wall and processor seconds it took."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - processor


def turn_by_turn(row: Row, data: Interactions, seconds: float) -> tuple[list[tuple[float, ...]], float]:
    """Return wall and processor seconds of ours and of the transcription in each fold, and how far apart their scores
    are at most in the first.

    The first fold is thrown away unless the transcription has had all its seconds by then.
    """
    found: list[tuple[float, ...]] = []
    apart, spent, seed = 0.0, 0.0, SEEDS[0]
    for number, fold in enumerate(COUNTING.folds(data, "S1", seed)):
        model = new_screener(row.name, data, row.options, seed)
        pairs, seen = np.argwhere(fold.test), data.labels * fold.train

        def plainly(model: Any = model, fold: Fold = fold, pairs: Pairs = pairs, seen: Array = seen) -> Array:
            scores = row.transcription(model, seen, fold.train, pairs)
            measure(data.labels[fold.test], scores)
            return scores

        works: list[Callable[[], Any]] = [partial(score_fold, model, data, fold, "S1", seed, COUNTING), plainly]
        turns = [timed(work) for work in (works if number % 2 == 0 else works[::-1])]
        own, plain = turns if number % 2 == 0 else turns[::-1]
        if number == 0:
            scores = model.score_pairs(pairs)
            apart = float(np.abs(scores - plain[0]).max())
            np.testing.assert_allclose(
                plain[0], scores, rtol=0, atol=TOLERANCE, err_msg=f"{row.label} is another method"
            )
        found.append((*own[1:], *plain[1:]))
        spent += plain[1]
        if spent > seconds:
            break
    return found[1:] or found, apart


def repetition(data: Interactions, threads: int | None, cell: tuple[Row, int]) -> tuple[float, float]:
    """Return the wall and processor seconds of one repetition of a method, ten folds."""
    from threadpoolctl import threadpool_limits

    row, seed = cell
    with threadpool_limits(threads):
        work = partial(cross_validate, row.name, data, "S1", seed, options=row.options, counting=COUNTING)
        return timed(work)[1:]


def folds(asked: argparse.Namespace) -> None:
    """Print the table of all methods on one set."""
    data = load_interactions(ScreeningDataOptions(name=asked.set))
    rows = list(rows_of(data, asked.methods.split(",")))
    beside = {}
    for row in rows:  # first, so that a transcription of another method shows at once
        beside[row.label] = turn_by_turn(row, data, asked.seconds)
        print(f"{row.label}: beside its transcription", file=sys.stderr, flush=True)
    threads = max(1, (os.cpu_count() or 1) // asked.jobs) if asked.jobs > 1 else None
    cells = [(row, seed) for row in rows for seed in SEEDS]
    wall, processor = (dict.fromkeys(beside, 0.0) for _ in range(2))
    started = time.perf_counter()
    for (row, seed), seconds in run_jobs(partial(repetition, data, threads), cells, asked.jobs):
        wall[row.label] += seconds[0] / asked.jobs
        processor[row.label] += seconds[1]
        print(f"{row.label}, seed {seed}: {seconds[0]:.1f} s", file=sys.stderr, flush=True)
    total = time.perf_counter() - started
    count = COUNTING.num_folds * len(SEEDS)
    table: list[list[Cell]] = []
    for label, (found, apart) in beside.items():
        ratios = [own / plain for own, _, plain, _ in found]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(found) > 1 else 3 * ratios
        verdicts = (
            f"≤ {MOST_SECONDS:g} s: {'met' if wall[label] <= MOST_SECONDS else '**missed**'}",
            f"≤ 1: {'met' if middle <= 1 else 'a tie' if low <= 1 else '**missed**'}",
        )
        table.append([label, wall[label], processor[label], verdicts[0]])
        table[-1] += [len(found), count * statistics.fmean(plain for _, _, plain, _ in found)]
        table[-1] += [middle, f"{low:.3f} - {high:.3f}", statistics.median(own / plain for _, own, _, plain in found)]
        table[-1] += [verdicts[1], apart]
    columns = [
        *(Column("method"), Column(f"{count} folds, s", ".1f"), Column("processor, s", ".1f"), Column("target")),
        *(Column("folds timed", "d"), Column("transcription, s", ".1f"), Column("ratio: median", ".3f")),
        *(Column("quartiles"), Column("processor time", ".3f"), Column("target"), Column("scores apart", ".0e")),
    ]
    m, n = data.shape
    print(f"{asked.set}: {m} drugs, {n} targets; {asked.jobs} process(es) for the repetitions.\n")
    print(f"{markdown(Table(columns, table))}\n")
    print(f"- all {len(rows)} rows of {count} folds: {total:.0f} s, starting of processes included")


def gram_matrix(size: int, generator: np.random.Generator, *, features: int = 64, block: int = 1000) -> Array:
    """Return cosines of random features, all above 0, [size, size]."""
    rows = generator.random((size, features))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = np.empty((size, size))
    for start in range(0, size, block):
        np.matmul(rows[start : start + block], rows.T, out=similarity[start : start + block])
    return similarity


def mebibytes() -> float:
    """Return the most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def scale(asked: argparse.Namespace) -> None:
    """Print what RLS-Kron takes on a large set."""
    m, n = asked.drugs, asked.targets
    table: list[list[Cell]] = [["before", None, None, mebibytes()]]
    seconds: list[float] = []

    def passed(what: str, work: Callable[[], Any]) -> Any:
        found, wall, processor = timed(work)
        table.append([what, wall, processor, mebibytes()])
        seconds.append(wall)
        print(f"{what}: {wall:.1f} s", file=sys.stderr, flush=True)
        return found

    generator = np.random.default_rng(0)

    def made() -> tuple[Array, Array, Array]:
        labels = np.zeros((m, n))
        ones = generator.choice(m * n, max(1, round(DENSITY * m * n)), replace=False, shuffle=False)
        labels.flat[ones] = 1
        return labels, gram_matrix(m, generator), gram_matrix(n, generator)

    labels, drugs, targets = passed("data", made)
    model = RLSKron(drugs, targets)
    passed("fit_matrix", lambda: model.fit_matrix(labels))
    pairs = np.column_stack([generator.integers(m, size=asked.pairs), generator.integers(n, size=asked.pairs)])
    scores = passed(f"score_pairs, {asked.pairs:,} pairs", lambda: model.score_pairs(pairs))
    print(f"{m:,} drugs, {n:,} targets, {int(labels.sum()):,} interactions.\n")
    columns = [
        Column("step"),
        Column("wall, s", ".1f"),
        Column("processor, s", ".1f"),
        Column("peak so far, MiB", ",.0f"),
    ]
    print(f"{markdown(Table(columns, table))}\n")
    data = sum(each.nbytes for each in (labels, drugs, targets)) / 2**30
    peak, minutes = mebibytes() / 2**10, sum(seconds[1:]) / 60
    print(
        f"- peak {peak:.2f} GiB, of which the data are {data:.2f} (≤ {MOST_GIBIBYTES:g}: "
        f"{'met' if peak <= MOST_GIBIBYTES else '**missed**'})"
    )
    print(f"- fit and scores {minutes:.1f} minutes (target: minutes, not hours)")
    print(f"- scores from {scores.min():.3g} to {scores.max():.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(required=True, metavar="PART")
    part = parts.add_parser("folds", help="50 folds of every method beside its equations")
    part.add_argument("--set", default="gpcr", help="nr, gpcr, ic, or another set that brings both similarities")
    part.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    part.add_argument("--jobs", type=int, default=1, help="processes for the repetitions, each with its share of cores")
    part.add_argument("--seconds", type=float, default=3, help="what a transcription is given")
    part.set_defaults(run=folds)
    part = parts.add_parser("scale", help="RLS-Kron on a large made-up set")
    part.add_argument("--drugs", type=int, default=10_000)
    part.add_argument("--targets", type=int, default=3_000)
    part.add_argument("--pairs", type=int, default=1_000_000, help="pairs to score")
    part.set_defaults(run=scale)
    asked = parser.parse_args()
    print(f"`python benchmarks/{' '.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}`\n")
    print(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start; OMP_NUM_THREADS "
        f"{os.environ.get('OMP_NUM_THREADS', 'not set')}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}.",
        end=" ",
    )
    asked.run(asked)


if __name__ == "__main__":
    main()
