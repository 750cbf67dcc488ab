"""Thresholds keep the rate they promise, and a guard's file brings everything back or says what is wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.defense.add import fit_reference
from stillroom.defense.calibrate import (
    Calibration,
    calibrate,
    draw_windows,
    honest_scores,
    quantile_threshold,
    window_scores,
)
from stillroom.defense.contracts import Queries
from stillroom.defense.dadd import ADD
from stillroom.defense.detection import separate
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.expected import fit_expected
from stillroom.defense.guard import FILE, Guard
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard

CLASSES, WIDTH = 4, 6


def world(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, logits and labels of images nobody has to look at."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    return rng.normal(size=(count, WIDTH)) + 3 * labels[:, None], np.eye(CLASSES)[labels], labels


def guard() -> Guard:
    features, _, labels = world(0, 400)
    found = Calibration(5.0, 0.01, 0.012, 0.01, 0.015, 1000, 3.0)
    held_out, logits, _ = world(1, 200)
    return Guard(
        reference=(reference := fit_reference(features, labels, CLASSES)),
        expected=fit_expected(reference, features, labels, window=8),
        window=8,
        calibration=found,
        linked=Calibration(6.0, 0.005, 0.006, 0.004, 0.009, 1000, 3.0),
        held_out=held_out.astype(np.float32),
        held_out_classes=logits.argmax(1),
        weights_sha256="0" * 64,
        classes=("a", "b", "c", "d"),
    )


def test_a_threshold_flags_the_share_of_honest_windows_it_was_asked_for() -> None:
    features, _, labels = world(0, 2000)
    reference = fit_reference(features, labels, CLASSES)
    held_out, logits, _ = world(1, 4000)
    found = calibrate(honest_scores(reference, held_out, logits, window=8), target_fpr=0.05)
    fresh, fresh_logits, _ = world(2, 4000)
    drawn = draw_windows(4000, 8, 3000, np.random.default_rng(5))
    above = (window_scores(reference, fresh, fresh_logits.argmax(1), drawn) > found.threshold).mean()
    assert above == pytest.approx(0.05, abs=0.015)
    assert found.low <= found.fpr <= found.high
    assert found.fpr == pytest.approx(0.05, abs=0.02)


def test_no_more_than_the_asked_share_of_the_scores_lies_above_the_threshold() -> None:
    scores = np.random.default_rng(0).normal(size=997)
    for rate in (0.001, 0.01, 0.3):
        threshold = quantile_threshold(scores, rate)
        assert (scores > threshold).mean() <= rate
        assert (scores >= threshold).mean() > rate - 1 / 997


def test_windows_of_few_classes_are_drawn_where_a_concentration_is_given() -> None:
    labels = np.arange(400) % CLASSES
    rng = np.random.default_rng(0)
    mixed, narrow = (
        draw_windows(400, 16, 300, rng, labels=labels, concentration=concentration) for concentration in (100.0, 0.05)
    )
    seen = [np.mean([len(np.unique(labels[own])) for own in windows]) for windows in (mixed, narrow)]
    assert seen[0] > 3.5
    assert seen[1] < 2


def test_separation_counts_ties_and_extremes() -> None:
    same = np.arange(100.0)
    found = separate(same, same, 89.0)
    assert (found.auroc, found.fpr, found.detected) == (0.5, 0.1, 0.1)
    assert separate(same, same + 1000, 500.0).fpr_at_95_tpr == 0
    with pytest.raises(InputError, match="finite scores"):
        separate(same, np.array([np.nan]), 1.0)


def test_adjusted_scores_do_not_depend_on_the_mix_of_classes_and_catch_strangers_of_few_classes() -> None:
    features, _, labels = world(0, 2000)
    reference = fit_reference(features, labels, CLASSES)
    held_out, _, held_labels = world(1, 2000)
    fresh, _, fresh_labels = world(2, 2000)
    strange = fresh + 0.6  # a little off, and all taken for one class
    expected = fit_expected(reference, held_out, held_labels, window=16)
    flagged = {}
    for name, table in (("plain", None), ("adjusted", expected)):
        rng = np.random.default_rng(0)
        mixed = window_scores(reference, held_out, held_labels, draw_windows(2000, 16, 2000, rng), table)
        threshold = quantile_threshold(mixed, 0.05)
        narrow = draw_windows(2000, 16, 1000, rng, labels=fresh_labels, concentration=0.05)
        honest = (window_scores(reference, fresh, fresh_labels, narrow, table) > threshold).mean()
        same = rng.choice(np.flatnonzero(fresh_labels == 0), (500, 16))
        thieves = (window_scores(reference, strange, fresh_labels, same, table) > threshold).mean()
        flagged[name] = honest, thieves
    assert flagged["plain"][0] < 0.005  # nobody who asks about few classes is ever flagged,
    assert flagged["plain"][1] < 0.005  # thieves neither
    assert 0.01 < flagged["adjusted"][0] < 0.15
    assert flagged["adjusted"][1] > 0.9


def test_expected_distances_fall_with_the_number_of_queries_and_know_classes_nobody_asked_about() -> None:
    features, _, labels = world(0, 2000)
    reference = fit_reference(features, labels, CLASSES)
    held_out, _, held_labels = world(1, 400)
    few = held_labels != 2
    expected = fit_expected(reference, held_out[few], held_labels[few], window=40)
    assert expected.shape == (CLASSES, 41)
    assert np.isfinite(expected).all()
    assert (np.diff(expected[:, [1, 2, 4, 8, 16, 40]], axis=1) < 0).all()
    assert expected[2] == pytest.approx(expected[0], rel=0.3)
    with pytest.raises(InputError, match="no held-out queries"):
        fit_expected(reference, held_out[:0], held_labels[:0], window=4)
    with pytest.raises(InputError, match="do not fit"):
        ADD(reference, MemoryWindows(8), expected=expected)


def test_a_guard_comes_back_from_its_file(tmp_path: Path) -> None:
    saved = guard()
    saved.save(tmp_path)
    loaded = Guard.load(tmp_path, weights_sha256="0" * 64)
    assert (loaded.reference.mean == saved.reference.mean).all()
    assert (loaded.reference.cov == saved.reference.cov).all()
    assert (loaded.calibration, loaded.linked, loaded.classes) == (saved.calibration, saved.linked, saved.classes)
    features, logits, _ = world(3, 40)
    asked = Queries("a", np.zeros((40, 1, 2, 2), np.uint8), features.astype(np.float32), logits.astype(np.float32))
    for link in (False, True):
        answers = [
            one.defence(MemoryWindows(8), b"sixteen bytes or more", link=link).answer(asked) for one in (saved, loaded)
        ]
        assert (answers[0].probabilities == answers[1].probabilities).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "stillroom defense fit"),
        (lambda file: file.write_bytes(file.read_bytes()[:100]), "is damaged"),
        (lambda file: file.write_bytes(b"{}"), "is damaged"),
    ],
)
def test_a_guard_that_is_missing_or_damaged_is_refused_in_one_line(tmp_path: Path, damage: object, said: str) -> None:
    file = guard().save(tmp_path)
    damage(file)  # type: ignore[operator]
    with pytest.raises(InputError, match=said) as refused:
        Guard.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_guard_of_another_model_or_another_window_is_refused(tmp_path: Path) -> None:
    guard().save(tmp_path)
    with pytest.raises(InputError, match="other weights"):
        Guard.load(tmp_path, weights_sha256="1" * 64)
    with pytest.raises(InputError, match="calibrated for 8"):
        guard().defence(MemoryWindows(9), b"sixteen bytes or more")
    assert (tmp_path / FILE).is_file()


def test_too_little_held_out_traffic_is_refused() -> None:
    features, logits, labels = world(0, 100)
    reference = fit_reference(features, labels, CLASSES)
    with pytest.raises(InputError, match="give at least 128"):
        honest_scores(reference, features, logits, window=64)
    scores = honest_scores(reference, features, logits, window=8, draws=100)
    with pytest.raises(InputError, match="draw at least"):
        calibrate(scores, target_fpr=1e-4)
    with pytest.raises(InputError, match="target_fpr is 1"):
        calibrate(scores, target_fpr=1.0)


def test_an_endpoint_shows_what_the_network_computes_on_normalised_images() -> None:
    torch.manual_seed(0)
    model = create_model("resnet8", num_classes=3, in_channels=3, image_size=8)
    card = ModelCard(
        architecture="resnet8",
        num_classes=3,
        classes=("a", "b", "c"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        input_shape=(3, 8, 8),
    )
    endpoint = Endpoint(model, card)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)
    features, logits = endpoint(pixels)
    normalised = (torch.from_numpy(pixels) / 255 - torch.tensor(card.mean).view(-1, 1, 1)) / torch.tensor(
        card.std
    ).view(-1, 1, 1)
    with torch.no_grad():
        expected = model.eval()(normalised).numpy()
    assert logits == pytest.approx(expected, abs=1e-4)
    head = next(module for module in model.modules() if isinstance(module, nn.Linear))
    assert head(torch.from_numpy(features)).detach().numpy() == pytest.approx(expected, abs=1e-4)
    assert endpoint((pixels / 255).astype(np.float32)).logits == pytest.approx(logits, abs=1e-4)
    with pytest.raises(InputError, match="the network takes"):
        endpoint(pixels[:, :1])


def test_threads_that_ask_at_once_each_get_the_features_of_their_own_images() -> None:
    torch.manual_seed(0)
    model = create_model("resnet8", num_classes=3, in_channels=1, image_size=16)
    card = ModelCard(
        architecture="resnet8",
        num_classes=3,
        classes=("a", "b", "c"),
        mean=(0.5,),
        std=(0.2,),
        input_shape=(1, 16, 16),
    )
    endpoint = Endpoint(model, card)
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 1, 16, 16)).astype(np.uint8)
    alone = [endpoint(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(endpoint, images))
    for one, other in zip(alone, together, strict=True):
        assert (one.features == other.features).all()
        assert (one.logits == other.logits).all()
