"""The closed-form denoisers against explicit sums in float64, at their limits, and within their memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.diffusion.denoisers import closed_form
from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser
from stillroom.errors import InputError

seeds = st.integers(0, 2**32 - 1)
levels = st.floats(0.002, 80.0)


def points(seed: int, n: int = 20, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor]:
    """Data [n, ...] and five queries among it, float64."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return data, torch.randn(5, *shape, generator=generator, dtype=torch.float64)


def explicit(data: Tensor, x: Tensor, sigma: float, weights: Tensor | None = None) -> Tensor:
    """The softmax mean from explicit differences."""
    data, x = data.double(), x.double()
    distances = (x[:, None] - data[None]).flatten(2).square().sum(2)
    logits = -(distances - distances.amin(1, keepdim=True)) / (2 * sigma**2)
    if weights is not None:
        logits = logits + weights.log()
    return torch.einsum("bn,n...->b...", logits.softmax(1), data)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=40)
def test_the_denoiser_is_the_softmax_mean(seed: int, sigma: float) -> None:
    data, x = points(seed)
    torch.testing.assert_close(OptimalDenoiser(data)(x, level(sigma)), explicit(data, x, sigma), rtol=1e-9, atol=1e-10)


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=40)
def test_the_density_does_not_fall_on_the_way_to_the_denoised_sample(seed: int, sigma: float) -> None:
    data, x = points(seed)
    denoiser = OptimalDenoiser(data)
    before = denoiser.log_density(x, level(sigma))
    denoised = denoiser(x, level(sigma))
    for share in (0.25, 1.0):  # an Euler step, and the mean shift itself
        after = denoiser.log_density(torch.lerp(x, denoised, share), level(sigma))
        assert bool((after >= before - 1e-12 * before.abs().clamp(min=1)).all())


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=20)
def test_translated_data_and_queries_give_translated_results(seed: int, sigma: float) -> None:
    data, x = points(seed)
    shift = torch.linspace(-3, 5, 6, dtype=torch.float64).view(2, 3)
    moved = OptimalDenoiser(data + shift)(x + shift, level(sigma))
    torch.testing.assert_close(moved, OptimalDenoiser(data)(x, level(sigma)) + shift, rtol=0, atol=1e-7)


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=20)
def test_the_order_of_data_and_queries_does_not_matter(seed: int, sigma: float) -> None:
    data, x = points(seed)
    order, places = torch.randperm(len(data)), torch.randperm(len(x))
    mixed = OptimalDenoiser(data[order])(x[places], level(sigma))
    torch.testing.assert_close(mixed, OptimalDenoiser(data)(x, level(sigma))[places], rtol=1e-9, atol=1e-10)


@given(seed=seeds)
@settings(deadline=None, max_examples=20)
def test_every_sample_may_have_its_own_noise_level(seed: int) -> None:
    data, x = points(seed)
    denoiser = OptimalDenoiser(data, bandwidth=0.1)
    sigmas = torch.tensor([0.002, 0.1, 1.0, 7.0, 80.0], dtype=torch.float64)
    apart = torch.cat([denoiser(x[i : i + 1], sigmas[i]) for i in range(5)])
    for form in (sigmas, sigmas.view(5, 1, 1)):
        torch.testing.assert_close(denoiser(x, form), apart, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(denoiser(x, sigmas[:1]), denoiser(x, sigmas[0]), rtol=0, atol=0)


def test_large_batches_are_worked_off_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data, x = points(0)
    sigmas = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    labels = torch.arange(len(data)) % 3
    denoiser, classes = OptimalDenoiser(data, labels=labels), torch.tensor([0, 1, 2, 0, 1])
    whole = denoiser(x, sigmas, classes), denoiser.log_density(x, sigmas, classes)
    monkeypatch.setattr(closed_form, "BLOCK", 2 * closed_form.NEAREST * 6)  # two rows at once
    torch.testing.assert_close(denoiser(x, sigmas, classes), whole[0], rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(denoiser.log_density(x, sigmas, classes), whole[1], rtol=1e-14, atol=1e-15)


def test_between_two_nearest_points_the_result_is_their_mean_however_small_the_noise() -> None:
    data = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [50.0, 50.0]])
    for sigma in (0.002, 1e-6):
        torch.testing.assert_close(OptimalDenoiser(data)(torch.zeros(1, 2), torch.tensor(sigma)), torch.zeros(1, 2))


def test_duplicates_share_their_weight() -> None:
    data = torch.tensor([[2.0], [2.0], [2.0], [-2.0]])
    denoised = OptimalDenoiser(data)(torch.zeros(1, 1), torch.tensor(0.002))
    torch.testing.assert_close(denoised, torch.ones(1, 1))  # 2 * 3/4 - 2 * 1/4


@pytest.mark.parametrize("norm", [1e2, 1e4, 1e6])
def test_near_ties_far_from_the_centre_keep_their_weights(norm: float) -> None:
    """Pairs of points 3 sigma apart, the pairs far from each other: products of such norms cannot tell a pair apart."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    places = norm * places / places.norm(dim=1, keepdim=True)
    sigma = 0.002
    step = torch.zeros(30, dtype=torch.float64)
    step[0] = 3 * sigma
    data = torch.cat([places, places + step])
    x = places[:7] + 0.4 * step
    denoiser = OptimalDenoiser(data)
    expected = explicit(data, x, sigma)
    torch.testing.assert_close(denoiser(x, level(sigma)) - x, expected - x, rtol=0, atol=1e-15 * norm)
    torch.testing.assert_close(denoiser.score(x, level(sigma)) * sigma**2, expected - x, rtol=0, atol=1e-15 * norm)


def test_queries_far_from_all_data_are_exact_in_single_precision() -> None:
    data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    x = torch.tensor([[1e-4, 3000.0]])  # float32 distances would be equal
    weight = torch.sigmoid(torch.tensor(2 * 1e-4 / 0.01**2))
    torch.testing.assert_close(OptimalDenoiser(data)(x, torch.tensor(0.01))[0, 0], 2 * weight - 1)


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=20)
def test_weights_count_like_repeated_points(seed: int, sigma: float) -> None:
    data, x = points(seed, n=4)
    weighted = OptimalDenoiser(data, weights=torch.tensor([1.0, 3.0, 0.0, 2.0]))
    repeated = OptimalDenoiser(data[[0, 1, 1, 1, 3, 3]])
    torch.testing.assert_close(weighted(x, level(sigma)), repeated(x, level(sigma)), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weighted.log_density(x, level(sigma)), repeated.log_density(x, level(sigma)))


@given(seed=seeds, sigma=levels)
@settings(deadline=None, max_examples=20)
def test_a_class_is_the_data_of_that_class_alone(seed: int, sigma: float) -> None:
    data, x = points(seed)
    labels, wanted = torch.arange(len(data)) % 3, torch.tensor([2, 0, 1, -1, 1])
    denoiser = OptimalDenoiser(data, labels=labels, weights=torch.rand(len(data)) + 0.1)
    log_weights = denoiser._log_weights
    found = denoiser(x, level(sigma), wanted), denoiser.log_density(x, level(sigma), wanted)
    for i, label in enumerate(wanted.tolist()):
        kept = labels == label if label >= 0 else torch.ones(len(data), dtype=torch.bool)
        alone = OptimalDenoiser(data[kept], weights=log_weights[kept].exp())
        query = x[i : i + 1]
        torch.testing.assert_close(found[0][i : i + 1], alone(query, level(sigma)), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found[1][i : i + 1], alone.log_density(query, level(sigma)))
    torch.testing.assert_close(denoiser(x, level(sigma), torch.tensor(-1)), denoiser(x, level(sigma)), rtol=0, atol=0)


@given(seed=seeds, sigma=levels, bandwidth=st.floats(0.01, 2.0))
@settings(deadline=None, max_examples=30)
def test_bandwidth_makes_it_a_mixture_of_gaussians(seed: int, sigma: float, bandwidth: float) -> None:
    data, x = points(seed)
    weights = torch.rand(len(data), dtype=torch.float64) + 0.1
    smeared = OptimalDenoiser(data, weights=weights, bandwidth=bandwidth)
    mixture = GaussianMixture(weights, data, torch.full_like(data, bandwidth**2))
    torch.testing.assert_close(smeared(x, level(sigma)), mixture(x, level(sigma)), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(smeared.score(x, level(sigma)), mixture.score(x, level(sigma)), rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(smeared.log_density(x, level(sigma)), mixture.log_density(x, level(sigma)))


def closed_forms() -> list[OptimalDenoiser | GaussianMixture]:
    data, _ = points(3)
    generator = torch.Generator().manual_seed(4)
    variance = torch.rand(4, 2, 3, generator=generator, dtype=torch.float64) + 0.01
    return [
        OptimalDenoiser(data),
        OptimalDenoiser(data, bandwidth=0.3, weights=torch.rand(len(data), generator=generator)),
        GaussianMixture(torch.tensor([0.5, 0.0, 1.0, 2.0]), data[:4], variance),
    ]


@pytest.mark.parametrize("denoiser", closed_forms(), ids=["points", "smeared", "mixture"])
def test_the_score_is_the_gradient_of_the_log_density(denoiser: OptimalDenoiser | GaussianMixture) -> None:
    _, x = points(3)
    sigma = torch.tensor([0.3, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(denoiser.score(x, sigma), gradient)
    torch.testing.assert_close((denoiser(x, sigma) - x) / sigma.view(5, 1, 1) ** 2, gradient)


@pytest.mark.parametrize("denoiser", closed_forms(), ids=["points", "smeared", "mixture"])
def test_gradients_reach_samples_and_noise_levels(denoiser: OptimalDenoiser | GaussianMixture) -> None:
    _, x = points(3)
    sigma = torch.tensor([0.5, 0.6, 1.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(denoiser, (x.requires_grad_(), sigma))


def test_gradients_are_finite_where_other_classes_are_left_out() -> None:
    data, x = points(5)
    denoiser = OptimalDenoiser(data, labels=torch.arange(len(data)) % 2)
    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    denoised = denoiser(x.requires_grad_(), sigma, torch.tensor(1))
    gradients = torch.autograd.grad(denoised.square().sum(), (x, sigma))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_have_the_type_and_shape_of_the_samples(dtype: torch.dtype) -> None:
    data = points(0)[0].float()
    for denoiser in (OptimalDenoiser(data), GaussianMixture(torch.ones(20), data, torch.ones_like(data))):
        x = torch.zeros(3, 2, 3, dtype=dtype)
        for result in (denoiser(x, torch.tensor(1.0)), denoiser.score(x, torch.tensor(1.0))):
            assert (result.dtype, result.shape) == (dtype, x.shape)
        assert denoiser.log_density(x, torch.tensor(1.0)).shape == (3,)
        assert denoiser(x[:0], torch.tensor(1.0)).shape == (0, 2, 3)


def test_the_users_data_stays_as_it_is() -> None:
    data, x = points(0)
    before = data.clone()
    OptimalDenoiser(data)(x, level(1.0))
    assert torch.equal(data, before)


MEMORY = """
import torch
from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser
torch.set_num_threads(1)
data = torch.rand(60000, 784)
x = torch.randn(80, 784)
OptimalDenoiser(data[:100])(x[:2], torch.tensor(1.0))  # load the libraries
def peak():  # ru_maxrss would be at least that of the process that started this one
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
denoiser = OptimalDenoiser(data)
denoiser(x, torch.tensor(1.0))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_sixty_thousand_images_need_less_than_one_gib_more() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    kib = int(done.stdout)
    assert 300 * 1024 < kib < 1024 * 1024  # at least the float64 copy: the measurement sees something


NAN = torch.tensor([[1.0], [float("nan")]])
TWO = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimalDenoiser(torch.zeros(0, 3)), "not empty"),
        (lambda: OptimalDenoiser(torch.zeros(3)), r"must be \[n, \.\.\.\]"),
        (lambda: OptimalDenoiser(torch.zeros(3, 2, dtype=torch.uint8)), "floating-point"),
        (lambda: OptimalDenoiser(NAN), "finite"),
        (lambda: OptimalDenoiser(TWO, bandwidth=-0.1), "bandwidth must be at least 0"),
        (lambda: OptimalDenoiser(TWO, bandwidth=float("nan")), "bandwidth must be at least 0"),
        (lambda: OptimalDenoiser(TWO, weights=torch.ones(3)), "2 data points but weights have shape"),
        (lambda: OptimalDenoiser(TWO, weights=torch.tensor([1.0, -1.0])), "not negative"),
        (lambda: OptimalDenoiser(TWO, weights=torch.zeros(2)), "at least one positive"),
        (lambda: OptimalDenoiser(TWO, labels=torch.zeros(2, 1)), "labels have shape"),
        (lambda: OptimalDenoiser(TWO)(torch.zeros(2, 2), torch.tensor(1.0)), r"must have shape \[B, 1\]"),
        (lambda: OptimalDenoiser(TWO)(torch.zeros(3, 1), torch.ones(2)), "3 samples but 2 noise levels"),
        (lambda: OptimalDenoiser(TWO)(TWO, torch.tensor(1.0), torch.tensor(1)), "no labels"),
        (
            lambda: OptimalDenoiser(TWO)(TWO.to("meta"), torch.tensor(1.0)),
            "on meta but the closed form's data is on cpu",
        ),
        (
            lambda: OptimalDenoiser(TWO, labels=torch.arange(2))(torch.zeros(3, 1), torch.tensor(1.0), torch.arange(2)),
            "3 samples but 2 classes",
        ),
        (lambda: GaussianMixture(torch.ones(2), TWO, -torch.ones(2, 1)), "must not be negative"),
        (lambda: GaussianMixture(torch.ones(3), TWO, TWO), r"weight \[K\]"),
        (lambda: GaussianMixture(torch.ones(2), NAN, TWO), "finite"),
        (lambda: GaussianMixture(torch.ones(2), TWO, TWO)(TWO, torch.tensor(1.0), 3), "no condition"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
