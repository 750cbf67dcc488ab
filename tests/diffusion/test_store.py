"""Stored denoisers come back as they were, and models are found by what users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.load import PRETRAINED, load_denoiser
from stillroom.diffusion.network import EDMDenoiser, NetworkOptions
from stillroom.diffusion.store import DenoiserCard, read_denoiser, save_denoiser
from stillroom.diffusion.task import edm_loss
from stillroom.errors import InputError

CARD = DenoiserCard(
    network=NetworkOptions(width=16, multipliers=(1, 2, 1), attention=(-1,), dropout=0.1, sigma_data=0.6),
    shape=(3, 8, 8),
    classes=("cat", "dog"),
    sigma_min=0.01,
    sigma_max=50.0,
    extra={"data": "pets", "epochs": 3},
)


@pytest.fixture
def denoiser() -> EDMDenoiser:
    torch.manual_seed(0)
    net = EDMDenoiser(CARD.shape, len(CARD.classes), CARD.network)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1)
    return net.eval()


@pytest.fixture
def stored(denoiser: EDMDenoiser, tmp_path: Path) -> Path:
    save_denoiser(tmp_path / "model", denoiser, CARD)
    return tmp_path / "model"


def answer(model: Any) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = model(x, torch.tensor([0.3, 5.0]), torch.tensor([0, 1]))
    return result


@pytest.mark.parametrize("name", ["", "model.json"])
def test_a_stored_denoiser_comes_back_bit_for_bit(denoiser: EDMDenoiser, stored: Path, name: str) -> None:
    again, card = read_denoiser(stored / name)
    assert card == CARD
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in denoiser.state_dict().items())


def test_half_weights_are_half_as_large_and_answer_alike(denoiser: EDMDenoiser, stored: Path, tmp_path: Path) -> None:
    save_denoiser(tmp_path / "half", denoiser, CARD, half=True)
    size, whole = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", stored))
    assert size < 0.55 * whole
    again, _ = read_denoiser(tmp_path / "half")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(answer(again), answer(denoiser), rtol=0, atol=5e-3)


def test_reading_a_model_draws_no_random_number(stored: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    read_denoiser(stored)
    assert torch.equal(torch.rand(1), expected)


def set_to(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model.json"
        about = json.loads(file.read_text())
        for name, value in changes.items():
            part, _, key = name.rpartition("__")
            (about[part] if part else about)[key] = value
        file.write_text(json.dumps(about))

    return change


def other_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (set_to(format="stillroom-model"), "describes no stillroom denoiser"),
        (set_to(format_version=9), "has format version 9, this stillroom reads 1"),
        (set_to(network__width=32), "do not fit EDMDenoiser"),
        (set_to(network__width=7), "network.width is 7; it must be a positive multiple of 8"),
        (set_to(network__width="wide"), "'width' must be a whole number, not 'wide'"),
        (set_to(network__multipliers=[1, "2"]), "'multipliers' must be a list of whole numbers"),
        (set_to(network__sigma_data=None), "'sigma_data' must be a number"),
        (set_to(shape=[3, 8]), "'shape' must be three whole numbers"),
        (set_to(shape=[3, 9, 9]), "do not fit the network"),
        (set_to(sigma_min=60.0), "sigma_min must be above 0 and below sigma_max"),
        (set_to(network=3), "'network' must be an object"),
        (set_to(classes=["cat"]), "do not fit EDMDenoiser: 'network.labels.weight' has shape"),
        (other_weights, "is not what model.json describes (its hash differs)"),
        (cut, "is damaged or no safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "does not exist"),
        (lambda folder: (folder / "model.json").unlink(), "does not exist"),
        (lambda folder: (folder / "model.json").write_text("{"), "is damaged"),
    ],
)
def test_what_is_wrong_with_a_stored_model_is_said(stored: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(stored)
    with pytest.raises(InputError) as raised:
        read_denoiser(stored)
    assert said in str(raised.value)
    assert str(stored) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("levels", [(0.0, 80.0), (1.0, 1.0), (2.0, 1.0), (0.1, float("inf"))])
def test_noise_levels_that_are_no_range_are_refused(levels: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="sigma_min must be above 0 and below sigma_max"):
        replace(CARD, sigma_min=levels[0], sigma_max=levels[1])


def test_a_run_is_loaded_with_what_sampling_must_know(denoiser: EDMDenoiser, stored: Path) -> None:
    model = load_denoiser(stored)
    assert (model.shape, model.classes, model.sigma_min, model.sigma_max) == ((3, 8, 8), 2, 0.01, 50.0)
    assert model.extra["class_names"] == ["cat", "dog"]
    torch.testing.assert_close(answer(model.denoiser), answer(denoiser))
    assert model.feature is not None
    assert model.feature().shape == (2, 16, 2, 2)


def test_guidance_moves_away_from_what_the_model_says_without_a_class(stored: Path) -> None:
    plain, guided = load_denoiser(stored).denoiser, load_denoiser(stored, guidance=3.0).denoiser
    x, sigma, label = torch.randn(2, 3, 8, 8), torch.tensor(0.7), torch.tensor([0, 1])
    without = plain(x, sigma, None)
    torch.testing.assert_close(guided(x, sigma, label), without + 3 * (plain(x, sigma, label) - without))


def test_the_closed_form_of_a_data_set_is_found_by_its_name() -> None:
    model = load_denoiser("optimal:digits@0.1", images=100)
    train = load_data(DataOptions(name="digits", augment="none")).train.pixels[:100].float() / 127.5 - 1
    assert (model.shape, model.classes, model.extra["images"]) == ((1, 8, 8), 10, 100)
    # Far above the data's spread the optimum is their mean; far below it, and without smearing, the nearest of them.
    mean = model.denoiser(torch.zeros(1, 1, 8, 8), torch.tensor(1e4), None)
    torch.testing.assert_close(mean[0], train.mean(0), atol=1e-3, rtol=0)
    nearest = load_denoiser("optimal:digits", images=100).denoiser(train[7:9] + 0.01, torch.tensor(0.02), None)
    torch.testing.assert_close(nearest, train[7:9])


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("digit", {}, "there is no model 'digit'; name one as digits, RUN_DIR, optimal:DATA"),
        ("optimal:", {}, "there is no model 'optimal:'"),
        ("optimal:digits@wide", {}, "'wide' behind the @ is no bandwidth"),
        ("optimal:digits@-1", {}, "bandwidth must be at least 0"),
        ("optimal:digit", {}, "unknown data set 'digit'; did you mean 'digits'?"),
        ("optimal:digits", {"images": 5000}, "images is 5000; digits has 1 to 1438 training images"),
        ("optimal:digits", {"guidance": 2.0}, "guidance needs a model trained with and without classes"),
        ("digits", {"images": 5}, "images and image_size choose the data of optimal:DATA"),
        ("digits", {"prompt": "a cat"}, "a prompt is for text-to-image models"),
        ("edm:none.pkl", {}, "there is no EDM checkpoint none.pkl"),
    ],
)
def test_a_model_that_is_not_there_is_answered_with_the_forms(spec: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        load_denoiser(spec, **options)
    assert said in str(raised.value)


@pytest.fixture(scope="module")
def digits() -> DenoisingModel:
    return load_denoiser("digits")


def test_the_shipped_model_is_small(digits: DenoisingModel) -> None:
    assert digits.shape == (1, 8, 8)
    assert digits.extra["class_names"] == list("0123456789")
    assert sum(file.stat().st_size for file in (PRETRAINED / "digits").iterdir()) <= 2_000_000


@pytest.mark.parametrize("labelled", [False, True])
def test_the_shipped_model_denoises_digits_it_has_not_seen(digits: DenoisingModel, labelled: bool) -> None:
    test = load_data(DataOptions(name="digits")).test
    clean = test.pixels.float() / 127.5 - 1  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    sigma = torch.exp(torch.randn(len(clean), generator=generator) * 1.2 - 1.2)
    noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
    with torch.no_grad():
        loss = edm_loss(digits.denoiser(noisy, sigma, test.target if labelled else None), clean, sigma, 0.5)
    assert loss.item() < 0.5  # a network that says nothing has 1
