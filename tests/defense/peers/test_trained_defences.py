from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense.peers.asked import SECRET, ask
from stillroom.data.batch import Batch
from stillroom.data.images import TensorImages
from stillroom.data.loaders import TrainLoader
from stillroom.defense.adaptive_misinformation import (
    AdaptiveMisinformation,
    adaptive_misinformation,
    hellinger_distance,
    misinformation_loss,
    outlier_exposure_loss,
    train_exposed,
    train_misinformation,
)
from stillroom.defense.contracts import softmax
from stillroom.defense.edm import EDM, Ensemble, chosen_members, diversity_loss, train_diverse
from stillroom.defense.outliers import Training
from stillroom.errors import InputError
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

CLASSES = 3
MEAN, STD = (0.5,), (0.25,)
RECIPE = Recipe(epochs=8, batch_size=16, lr=0.1, schedule="cosine", weight_decay=0.0)


def labelled(count: int = 192, seed: int = 0) -> TensorImages:
    """Dark images with one bright row: the row is the class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 60, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, CLASSES, (count,), generator=generator)
    pixels[torch.arange(count), 0, 2 * target] += 180
    return TensorImages(pixels, target)


def strange(count: int = 128, seed: int = 1) -> Tensor:
    """Return images whose columns, not rows, are bright."""
    return labelled(count, seed).pixels.transpose(2, 3).contiguous()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def loader() -> TrainLoader:
    return TrainLoader(labelled(), batch_size=16, seed=0, augment="none", mean=MEAN, std=STD)


def training(**options: Any) -> Training:
    return Training(recipe=RECIPE, mean=MEAN, std=STD, seed=0, show_progress=False, **options)


@torch.no_grad()
def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    logits: Tensor = model.eval()((pixels / 255 - MEAN[0]) / STD[0])
    return logits


def accuracy(model: nn.Module, images: TensorImages) -> float:
    return float((logits_of(model, images.pixels).argmax(1) == images.target).float().mean())


def test_outlier_exposure_leaves_the_model_sure_of_its_classes_and_unsure_elsewhere() -> None:
    plain, exposed = network(0), network(0)
    train_exposed(plain, loader(), strange(), training(), weight_outliers=0.0)
    history = train_exposed(exposed, loader(), strange(), training(), weight_outliers=1.0)
    assert {"train_ce", "train_outlier_exposure"} <= set(history[-1])
    test, elsewhere = labelled(90, 5), strange(90, 6)
    assert accuracy(exposed, test) > 0.95
    sure = logits_of(exposed, elsewhere).softmax(1).max(1).values.mean()
    assert sure < logits_of(plain, elsewhere).softmax(1).max(1).values.mean() - 0.1


def test_misinformation_puts_little_mass_on_what_the_model_says() -> None:
    model, wrong = network(0), network(1)
    train_exposed(model, loader(), strange(), training(), weight_outliers=0.2)
    outliers = strange()
    said = logits_of(model, outliers).argmax(1)
    train_misinformation(wrong, loader(), outliers, said, training())
    test = labelled(90, 5)
    assert accuracy(wrong, test) < 0.05
    mass = logits_of(wrong, outliers).softmax(1).gather(1, said[:, None]).mean()
    assert mass < 0.2


def test_the_defence_keeps_sure_answers_and_replaces_unsure_ones() -> None:
    logits = np.array([[9.0, 0, 0], [0.1, 0, 0], [0, 9.0, 0]])
    wrong = np.array([[0, 0, 9.0]] * 3)
    answers = AdaptiveMisinformation(lambda images: wrong[: len(images)], tau=0.6).answer(ask(logits))
    np.testing.assert_array_equal(answers.altered, [False, True, False])
    np.testing.assert_array_equal(answers.probabilities[[0, 2]], softmax(logits)[[0, 2]])
    np.testing.assert_allclose(answers.probabilities[1], softmax(wrong)[1])


def test_the_gate_is_half_open_at_the_threshold_and_never_overflows() -> None:
    y = np.array([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5]])
    with np.errstate(all="raise", under="ignore"):
        answered, alpha = adaptive_misinformation(y, y[:, ::-1], tau=0.7, nu=1e6)
    np.testing.assert_array_equal(alpha, [0.5, 0.0, 1.0])
    np.testing.assert_allclose(answered[0], [0.5, 0.5])
    np.testing.assert_allclose(hellinger_distance(y, y), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_losses_and_their_gradients_are_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = outlier_exposure_loss(logits) + misinformation_loss(logits, torch.tensor([0, 1]))
    loss = loss + diversity_loss(torch.stack([logits, -logits], 1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_outlier_exposure_is_least_for_a_uniform_answer() -> None:
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert outlier_exposure_loss(logits) > outlier_exposure_loss(torch.zeros(20, 5))
    uniform = nn.functional.cross_entropy(logits, torch.full((20, 5), 0.2))
    torch.testing.assert_close(outlier_exposure_loss(logits), uniform)


def test_diversity_is_counted_over_pairs() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = logits.softmax(2)
    pairs = [torch.cosine_similarity(y[:, a], y[:, b]).exp() for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(diversity_loss(logits), torch.stack(pairs).sum(0).log().mean())
    with pytest.raises(InputError, match="at least 2 members"):
        diversity_loss(logits[:, :1])


def test_diverse_members_agree_on_their_classes_and_differ_elsewhere() -> None:
    plain, diverse = (Ensemble([network(0), network(1), network(2)]) for _ in range(2))
    train_diverse(plain, loader(), strange(), training(), weight_diversity=0.0)
    history = train_diverse(diverse, loader(), strange(), training(), weight_diversity=2.0)
    assert history[-1]["train_accuracy"] > 95
    elsewhere = strange(90, 6)
    assert diversity_loss(logits_of(diverse, elsewhere)) < diversity_loss(logits_of(plain, elsewhere)) - 0.1
    test = labelled(90, 5)
    for member in diverse.members:
        assert accuracy(member, test) > 0.9


def test_each_image_has_its_member_whoever_asks() -> None:
    members = [lambda images, k=k: np.eye(4)[np.full(len(images), k)] * 9 for k in range(4)]
    images = np.random.default_rng(0).integers(0, 256, (400, 1, 4, 4), np.uint8)
    defence = EDM(members, secret=SECRET)
    chosen = chosen_members(images, 4, SECRET)
    for account in ("ada", "eve"):
        answers = defence.answer(ask(np.zeros((400, 4)), images=images, account=account))
        np.testing.assert_array_equal(answers.probabilities.argmax(1), chosen)
    assert np.bincount(chosen, minlength=4).min() > 60
    assert (chosen != chosen_members(images, 4, SECRET[::-1])).any()


class KilledError(Exception):
    pass


class Dying:
    """A loader that dies in the middle of its fifth epoch."""

    def __init__(self) -> None:
        self.inner = loader()

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(self.inner.epoch(number, start)):
            if number == 5 and step == 3:
                raise KilledError
            yield batch


def test_a_training_that_died_ends_like_one_that_did_not(tmp_path: Path) -> None:
    whole, resumed = Ensemble([network(0), network(1)]), Ensemble([network(0), network(1)])
    train_diverse(whole, loader(), strange(), training())
    with pytest.raises(KilledError):
        train_diverse(resumed, Dying(), strange(), training(run=RunDirectory(tmp_path)))
    again = Ensemble([network(2), network(3)])
    train_diverse(again, loader(), strange(), training(run=RunDirectory(tmp_path), resume=True))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("outliers", "classes", "says"),
    [
        (torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64), "8-bit images"),
        (torch.zeros(0, 1, 6, 6, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "8-bit images"),
        (strange(4), torch.zeros(3, dtype=torch.int64), "3 classes for 4 outliers"),
    ],
)
def test_outliers_that_cannot_be_used_are_refused(outliers: Tensor, classes: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        train_misinformation(network(0), loader(), outliers, classes, training())
