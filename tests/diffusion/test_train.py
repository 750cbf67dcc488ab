"""The library function behind ``stillroom diffusion train``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillroom.data.loaders import TrainLoader
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.network import EDMDenoiser, NetworkOptions
from stillroom.diffusion.store import read_denoiser
from stillroom.diffusion.task import NoiseOptions
from stillroom.diffusion.training import Trained, train
from stillroom.training.recipe import Recipe

DATA = DataOptions(name="digits", per_class=4, augment="none")
NETWORK = NetworkOptions(width=8, dropout=0.1)
NOISE = NoiseOptions(ema=0.6, label_dropout=0.5)
RECIPE = Recipe(epochs=3, batch_size=20, optimizer="adamw", lr=1e-2, weight_decay=0.0, schedule="cosine", clip_norm=1.0)


def tiny(out: Path, **options: Any) -> Trained:
    base: dict[str, Any] = {"data": DATA, "network": NETWORK, "noise": NOISE, "recipe": RECIPE, "conditional": True}
    return train(out=out, seed=3, device="cpu", show_progress=False, **(base | options))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return tiny(tmp_path_factory.mktemp("train") / "run")


def test_it_trains_as_a_plain_loop_does(trained: Trained) -> None:
    data = load_data(DATA)
    torch.manual_seed(3)
    net = EDMDenoiser((1, 8, 8), 10, NETWORK).to(memory_format=torch.channels_last)
    average = {name: value.clone() for name, value in net.named_parameters()}
    loader = TrainLoader(data.train, batch_size=20, seed=3, augment="none", mean=(0.5,), std=(0.5,))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    torch.manual_seed(3)
    updates = 0
    for epoch in (1, 2, 3):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 3))
        for clean, target, _ in loader.epoch(epoch):
            sigma = (torch.randn(20) * 1.2 - 1.2).exp()
            noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn_like(clean)
            label = torch.where(torch.rand(20) < 0.5, 10, target)
            weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
            loss = (weight * (net(noisy, sigma, label) - clean).square().mean((1, 2, 3))).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(0.6, (1 + updates) / (10 + updates))
            updates += 1
            for name, value in net.named_parameters():
                average[name] = average[name] * decay + value.detach() * (1 - decay)
    for name, value in trained.denoiser.named_parameters():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-5)
    # The average is near the weights and still another model.
    assert not same(dict(net.named_parameters()), dict(trained.denoiser.named_parameters()))


def test_measuring_more_rarely_changes_no_weight(trained: Trained, tmp_path: Path) -> None:
    rarely = tiny(tmp_path / "run", eval_every=3)
    assert same(rarely.denoiser.state_dict(), trained.denoiser.state_dict())
    assert rarely.result["test_loss"] == trained.result["test_loss"]


def test_the_seed_decides_and_the_callers_generator_does_not(trained: Trained, tmp_path: Path) -> None:
    torch.manual_seed(11)
    again = tiny(tmp_path / "again")
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), after)
    assert same(again.denoiser.state_dict(), trained.denoiser.state_dict())


def test_half_weights_are_the_rounded_ones(trained: Trained, tmp_path: Path) -> None:
    tiny(tmp_path / "half", half=True)
    stored = read_denoiser(tmp_path / "half").denoiser.state_dict()
    assert same(stored, {name: value.half().float() for name, value in trained.denoiser.state_dict().items()})


def test_the_model_that_is_returned_is_the_one_that_is_stored(trained: Trained) -> None:
    stored, card = read_denoiser(trained.out)
    assert same(stored.state_dict(), trained.denoiser.state_dict())
    assert not trained.denoiser.training
    assert (card.classes, card.extra["data"], card.extra["steps"]) == (tuple("0123456789"), "digits", 6)


def test_colour_images_of_a_single_kind_are_learned_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(12):
        file = tmp_path / "pets" / "cat" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(file)
    data = DataOptions(name=f"folder:{tmp_path / 'pets'}", augment="crop-flip")
    recipe = Recipe(epochs=1, batch_size=4, optimizer="adam")
    done = tiny(tmp_path / "run", data=data, recipe=recipe, conditional=False, precision="bf16-mixed")
    assert (done.denoiser.shape, done.denoiser.classes) == ((3, 8, 8), 0)
    assert math.isfinite(done.result["test_loss"])
