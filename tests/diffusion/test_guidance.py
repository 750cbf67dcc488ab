"""Guidance: one doubled call, the same as two, and no more calls than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser
from stillroom.diffusion.denoisers.guidance import ClassifierFreeGuidance, ClassifierGuidance
from stillroom.diffusion.denoisers.preconditioning import EDM, VP, Preconditioned, network_input
from stillroom.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(30, 2, 2, 2, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.arange(30) % 3
X = torch.randn(4, 2, 2, 2, generator=GENERATOR, dtype=torch.float64)
SIGMA = torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
WANTED = torch.tensor([0, 2, 1, 1])


class Counted:
    """A denoiser that remembers how it was called."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser, self.calls = denoiser, []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        self.calls.append((len(x), condition))
        return self.denoiser(x, sigma, condition)


@given(scale=st.floats(-2, 10))
@settings(deadline=None, max_examples=20)
@pytest.mark.parametrize("form", [SIGMA, SIGMA[:1], SIGMA[0], SIGMA.view(4, 1, 1, 1)], ids=["B", "1", "0", "B111"])
def test_one_doubled_call_is_the_same_as_two(form: Tensor, scale: float) -> None:
    denoiser = OptimalDenoiser(DATA, labels=LABELS)
    counted = Counted(denoiser)
    guided = ClassifierFreeGuidance(counted, scale, unconditional=torch.tensor(-1))(X, form, WANTED)
    without, given = denoiser(X, form), denoiser(X, form, WANTED)
    torch.testing.assert_close(guided, without + scale * (given - without), rtol=1e-10, atol=1e-10)
    assert [rows for rows, _ in counted.calls] == ([4] if scale == 1 else [8])


def test_the_unconditional_half_comes_first() -> None:
    counted = Counted(lambda x, sigma, condition: x)
    ClassifierFreeGuidance(counted, 3.0, unconditional=torch.tensor([9]))(X, SIGMA, WANTED)
    assert counted.calls[0][1].tolist() == [9, 9, 9, 9, *WANTED.tolist()]


@pytest.mark.parametrize(
    ("scale", "unconditional", "condition", "told"),
    [
        (1.0, torch.tensor(-1), WANTED, WANTED),
        (5.0, None, WANTED, WANTED),
        (5.0, torch.tensor(7), None, torch.tensor([7, 7, 7, 7])),
        (5.0, None, None, None),
    ],
)
def test_with_nothing_to_guide_the_denoiser_is_called_once(
    scale: float, unconditional: Tensor | None, condition: Tensor | None, told: Tensor | None
) -> None:
    counted = Counted(lambda x, sigma, condition: 2 * x)
    guided = ClassifierFreeGuidance(counted, scale, unconditional=unconditional)(X, SIGMA, condition)
    torch.testing.assert_close(guided, 2 * X)
    assert len(counted.calls) == 1
    assert counted.calls[0][0] == 4
    assert (counted.calls[0][1] is None) == (told is None)
    assert told is None or counted.calls[0][1].tolist() == told.tolist()


def test_guiding_the_denoiser_is_guiding_its_network() -> None:
    """F = F_u + w (F_c - F_u), with noise levels of their own for every sample."""

    def network(scaled: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        return scaled.tanh() + condition * noise.view(-1, 1, 1, 1)

    nothing, text = torch.zeros(4, 2, 1, 1, dtype=torch.float64), X[:, :, :1, :1]
    outside = ClassifierFreeGuidance(Preconditioned(network, EDM()), 7.5, unconditional=nothing)

    def guided(scaled: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        without = network(scaled, noise, nothing)
        return without + 7.5 * (network(scaled, noise, condition) - without)

    inside = Preconditioned(guided, EDM())
    torch.testing.assert_close(outside(X, SIGMA, text), inside(X, SIGMA, text))


def test_conditions_may_be_mappings_and_shared_rows() -> None:
    def denoiser(x: Tensor, sigma: Tensor, condition: dict[str, Tensor]) -> Tensor:
        assert condition["text"].shape == (8, 5, 3)
        assert condition["pooled"].shape == (8, 3)
        return x + condition["text"].sum((1, 2)).view(-1, 1, 1, 1) + condition["pooled"].sum(1).view(-1, 1, 1, 1)

    text = {"text": torch.ones(1, 5, 3), "pooled": torch.ones(4, 3)}
    nothing = {"text": torch.zeros(1, 5, 3), "pooled": torch.zeros(1, 3)}
    guided = ClassifierFreeGuidance(denoiser, 2.0, unconditional=nothing)
    torch.testing.assert_close(guided(X, SIGMA, text), X + 2 * 18)


def classifier(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact class posterior of the noisy data, as logits."""
    denoiser = OptimalDenoiser(DATA, labels=LABELS)
    return torch.stack([denoiser.log_density(x, sigma, torch.tensor(label)) for label in range(3)], dim=1)


def test_an_exact_classifier_turns_the_unconditional_denoiser_into_the_conditional_one() -> None:
    """Bayes: the score of p(x | y) is that of p(x) plus the gradient of log p(y | x); classes are equally frequent."""
    denoiser = OptimalDenoiser(DATA, labels=LABELS)
    guided = ClassifierGuidance(lambda x, sigma, condition: denoiser(x, sigma), classifier)
    torch.testing.assert_close(guided(X, SIGMA, WANTED), denoiser(X, SIGMA, WANTED), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(guided(X, SIGMA, WANTED), denoiser(X, SIGMA, WANTED), rtol=1e-9, atol=1e-9)


def test_it_is_the_guidance_of_adm() -> None:
    """D = x - s (F - sqrt(1 - abar) w grad log p(y | c_in x)), clamped, with abar = 1 / (1 + s^2)."""
    vp = VP(epsilon_t=1e-3)
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def network(scaled: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        return torch.cat([scaled.sin(), scaled], dim=1)  # twice the channels

    def noisy_classifier(scaled: Tensor, noise: Tensor) -> Tensor:
        return scaled.flatten(1).tanh() @ weight + noise[:, None] / 1000

    guided = ClassifierGuidance(
        Preconditioned(network, vp), lambda x, sigma: noisy_classifier(*network_input(vp, x, sigma)), 1.5, limit=1.0
    )
    scaled, noise = network_input(vp, X, SIGMA)
    scaled.requires_grad_()
    logs = noisy_classifier(scaled, noise).log_softmax(1)
    (gradient,) = torch.autograd.grad(logs[torch.arange(4), WANTED].sum(), scaled)
    s = SIGMA.view(4, 1, 1, 1)
    output = scaled.detach().sin() - (1 - 1 / (1 + s**2)).sqrt() * 1.5 * gradient
    torch.testing.assert_close(guided(X, SIGMA, WANTED), (X - s * output).clamp(-1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClassifierFreeGuidance(lambda x, s, c: x, float("nan")), "must be finite"),
        (
            lambda: ClassifierFreeGuidance(lambda x, s, c: x, 2.0, unconditional=torch.zeros(1, 3))(X, SIGMA, WANTED),
            r"\(shape \[4\]\).*\(shape \[4, 3\]\) must have the same form",
        ),
        (
            lambda: ClassifierFreeGuidance(lambda x, s, c: x, 2.0, unconditional=torch.tensor(0))(
                X, SIGMA, torch.zeros(3)
            ),
            "4 samples but 3 conditions",
        ),
        (
            lambda: ClassifierFreeGuidance(lambda x, s, c: x, 2.0, unconditional={"a": WANTED})(
                X, SIGMA, {"b": WANTED}
            ),
            r"\(b\).*\(a\) must have the same form",
        ),
        (
            lambda: ClassifierFreeGuidance(lambda x, s, c: x, 2.0, unconditional=WANTED)(X, SIGMA, "a cat"),
            "must be tensors or mappings of tensors, got str",
        ),
        (lambda: ClassifierGuidance(lambda x, s, c: x, classifier)(X, SIGMA), "needs the classes"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
