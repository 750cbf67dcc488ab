"""The U-Net under EDM's preconditioning, and the task that trains it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distillation.method_inputs import HostReads
from stillroom.data.batch import Batch
from stillroom.diffusion.network import EDMDenoiser, NetworkOptions, conditioning_mask
from stillroom.diffusion.task import DenoisingTask, NoiseOptions, denoising_step, edm_loss
from stillroom.errors import InputError
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe, make_optimizer

SMALL = NetworkOptions(width=8, attention=(-1,))


def denoiser(classes: int = 0, options: NetworkOptions = SMALL, shape: tuple[int, int, int] = (1, 8, 8)) -> EDMDenoiser:
    """A network whose zero-initialised layers are not zero, so that all of it matters."""
    torch.manual_seed(0)
    net = EDMDenoiser(shape, classes, options)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net.eval()


def batch(size: int = 4, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(classes, (size,), generator=generator)
    return Batch(torch.randn(size, 1, 8, 8, generator=generator) * 0.5, target, torch.arange(size))


def test_the_denoiser_is_the_preconditioned_network() -> None:
    net, x, sigma = denoiser(), batch().images, torch.tensor([0.01, 0.5, 3.0, 80.0])
    s, d = sigma.double().view(-1, 1, 1, 1), net.options.sigma_data
    inner = net.network((x / (s**2 + d**2).sqrt()).float(), sigma.log() / 4)
    expected = d**2 / (s**2 + d**2) * x + s * d / (s**2 + d**2).sqrt() * inner
    torch.testing.assert_close(net(x, sigma), expected.float(), rtol=1e-5, atol=1e-6)


def test_every_form_of_a_noise_level_gives_the_same() -> None:
    net, x = denoiser(), batch().images
    expected = net(x, torch.full((4,), 0.7))
    for sigma in (torch.tensor(0.7), torch.tensor([0.7]), torch.full((4, 1, 1, 1), 0.7)):
        assert torch.equal(net(x, sigma), expected)


def test_states_in_float64_stay_in_float64() -> None:
    net, x, sigma = denoiser(), batch().images, torch.tensor(0.001)
    denoised = net(x.double(), sigma.double())
    assert denoised.dtype == torch.float64
    torch.testing.assert_close(denoised.float(), net(x, sigma), rtol=1e-5, atol=1e-6)


def test_no_class_is_the_class_behind_the_last() -> None:
    net, x, sigma = denoiser(classes=3), batch().images, torch.tensor(0.7)
    assert torch.equal(net(x, sigma), net(x, sigma, torch.full((4,), 3)))
    assert not torch.equal(net(x, sigma), net(x, sigma, torch.zeros(4, dtype=torch.int64)))


def test_neighbouring_noise_levels_give_neighbouring_images() -> None:
    net, x = denoiser(options=NetworkOptions(width=32)), batch().images
    level = torch.tensor(0.7)
    near = (net(x, level * 1.001) - net(x, level)).norm()
    far = (net(x, level * 1.01) - net(x, level)).norm()
    assert (far / near).item() == pytest.approx(10, rel=0.1)  # as of a smooth function


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 14).map(lambda n: 8 * n),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_every_width_and_depth_builds(
    width: int, multipliers: list[int], blocks: int, patch: int, attend: bool
) -> None:
    attention = tuple(range(len(multipliers))) if attend else ()
    options = NetworkOptions(
        width=width, multipliers=tuple(multipliers), blocks=blocks, patch=patch, attention=attention
    )
    net = EDMDenoiser((3, 8, 8), 0, options)
    assert net(torch.zeros(1, 3, 8, 8), torch.tensor(1.0)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 12}, "network.width is 12; it must be a positive multiple of 8"),
        ({"width": 0}, "network.width"),
        ({"multipliers": ()}, "network.multipliers"),
        ({"multipliers": (1, 0)}, "network.multipliers"),
        ({"blocks": 0}, "network.blocks"),
        ({"attention": (2,)}, "network.attention is (2,); it must be levels below 2"),
        ({"patch": 0}, "network.patch"),
        ({"dropout": 1.0}, "network.dropout"),
        ({"dropout": math.nan}, "network.dropout"),
        ({"highest_frequency": 0.5}, "network.highest_frequency"),
        ({"sigma_data": 0.0}, "network.sigma_data"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        NetworkOptions(**options)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "options", [{"std": 0.0}, {"label_dropout": 1.0}, {"ema": 1.0}, {"std": math.nan}, {"mean": math.inf}]
)
def test_impossible_noise_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"noise.{next(iter(options))} is"):
        NoiseOptions(**options)


def test_images_that_do_not_fit_are_refused() -> None:
    net = denoiser()
    with pytest.raises(InputError, match=r"images of 9x8 do not fit the network, which needs sides divisible by 2"):
        EDMDenoiser((1, 9, 8), 0, SMALL)
    with pytest.raises(InputError, match=r"denoises images of shape \(1, 8, 8\), got \(3, 8, 8\)"):
        net(torch.zeros(1, 3, 8, 8), torch.tensor(1.0))
    with pytest.raises(InputError, match="unconditional"):
        net(torch.zeros(1, 1, 8, 8), torch.tensor(1.0), torch.zeros(1, dtype=torch.int64))


def test_training_reads_nothing_on_the_host() -> None:
    task = DenoisingTask(denoiser(classes=3), NoiseOptions())
    recipe = Recipe(optimizer="adamw", clip_norm=1.0)
    optimizer = make_optimizer(recipe, task.parameters(), fused=True)
    fabric = make_fabric("cpu")
    with HostReads() as reads:
        denoising_step(task, optimizer, batch(), fabric, recipe)
    assert reads.found == []


def test_the_denoiser_compiles_whole() -> None:
    net, x, sigma = denoiser(classes=3), batch().images, torch.tensor(0.7)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, sigma, None), net(x, sigma, None))


def test_the_loss_is_the_weighted_mean_over_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    denoised, clean = torch.randn(2, 5, 1, 4, 4, generator=generator)
    sigma = torch.tensor([0.01, 0.3, 1.0, 4.0, 50.0])
    naive = [
        (s**2 + 0.25) / (s * 0.5) ** 2 * sum(float(v) ** 2 for v in (a - b).flatten()) / 16
        for s, a, b in zip(sigma.tolist(), denoised, clean, strict=True)
    ]
    assert edm_loss(denoised, clean, sigma, 0.5).item() == pytest.approx(sum(naive) / 5, rel=1e-5)


def test_the_loss_of_a_network_that_says_nothing_is_about_one() -> None:
    """The weight is 1 / c_out^2: a network F = 0 has the variance of its target, which preconditioning makes 1."""
    net = EDMDenoiser((1, 8, 8), 0, NetworkOptions(width=8))
    nn.init.zeros_(net.network.last.bias)  # the last layer's weights begin at zero
    torch.manual_seed(0)
    images = torch.randn(4000, 1, 8, 8) * 0.5
    task = DenoisingTask(net, NoiseOptions())
    with torch.no_grad():
        loss = task(Batch(images, torch.zeros(4000, dtype=torch.int64), torch.arange(4000)))["loss"]
    assert loss.item() == pytest.approx(1, abs=0.02)


def test_gradients_reach_every_weight_of_the_trained_model_and_none_of_the_average() -> None:
    task = DenoisingTask(denoiser(classes=3), NoiseOptions(label_dropout=0.5))
    torch.manual_seed(0)
    task(batch())["loss"].backward()
    missing = [
        name for name, weight in task.denoiser.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert missing == []
    assert all(weight.grad is None for weight in task.ema.parameters())


def test_labels_are_hidden_as_often_as_asked() -> None:
    label = torch.arange(20_000) % 10
    torch.manual_seed(0)
    shown = conditioning_mask(label, 0.3, 10)
    assert (shown == 10).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(shown[shown != 10], label[shown != 10])
    assert torch.equal(conditioning_mask(label, 0.0, 10), label)


def wrapped(task: DenoisingTask, how: str) -> nn.Module:
    if how == "plain":
        return task
    if how == "compiled":
        return torch.compile(task, backend="eager")  # type: ignore[return-value]
    module: nn.Module = make_fabric("cpu", "bf16-mixed").setup(task)
    return module


@pytest.mark.parametrize("how", ["plain", "compiled", "fabric"])
def test_the_average_follows_every_step_in_any_wrapper(how: str) -> None:
    task = DenoisingTask(denoiser(), NoiseOptions())
    before = [weight.clone() for weight in task.ema.parameters()]
    recipe = Recipe(optimizer="adamw", lr=0.1)
    model = wrapped(task, how)
    denoising_step(model, make_optimizer(recipe, task.parameters()), batch(), make_fabric("cpu"), recipe)
    assert task.ema.updates.item() == 1
    moved: list[Tensor] = [a - b for a, b in zip(task.ema.parameters(), before, strict=True)]
    assert all(change.any() for change in moved)


def test_a_few_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    task = DenoisingTask(EDMDenoiser((1, 8, 8), 0, SMALL), NoiseOptions(ema=0.9))
    recipe = Recipe(optimizer="adamw", lr=3e-3, weight_decay=0.0)
    optimizer, fabric = make_optimizer(recipe, task.parameters()), make_fabric("cpu")
    one = batch(size=64)
    fixed = Batch(one.images[:1].expand(64, 1, 8, 8), one.target, one.index)  # a single image, easy to know
    losses = [denoising_step(task, optimizer, fixed, fabric, recipe)["loss"].item() for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
