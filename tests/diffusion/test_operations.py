"""What a step costs beyond the model: tensor operations, host reads, compilation; and that gradients flow."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.diffusion.sampling import integrate, sample
from stillroom.diffusion.schedules import polynomial
from stillroom.diffusion.solvers import DEIS, DPM2, IPNDM, IPNDMV, DPMpp, Euler, Heun, UniPC
from stillroom.diffusion.solvers.plan import Solver, as_sigmas, coefficients
from stillroom.diffusion.thresholding import dynamic_threshold

SHAPE = (2, 3, 8, 8)
SIGMAS = as_sigmas(polynomial(8, 0.002, 80.0))
FOUR: list[Solver] = [
    Euler(),
    Heun(),
    DPM2(),
    DPMpp(2),
    DPMpp(3),
    *(kind(order) for kind in (IPNDM, IPNDMV, DEIS) for order in (1, 2, 3, 4)),
]
SOME: list[Solver] = [Euler(), Heun(), IPNDM(4), DPMpp(3, "noise"), UniPC(3)]
HOST = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_to_copy")


class Count(TorchDispatchMode):
    """Counts operations, views among them, on tensors of the size of the sample; and anything that reads the host."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.on_sample, self.host = size, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.on_sample += any(tensor.numel() >= self.size for tensor in tensors)
        self.host += function.overloadpacket.__name__ in HOST
        return function(*args, **(kwargs or {}))


def count(solver: Solver, afs: bool = False) -> tuple[Count, int]:
    plan = solver.plan(SIGMAS)
    x = torch.randn(SHAPE)
    table, free = coefficients(plan, x), torch.randn(SHAPE)
    with torch.no_grad(), Count(x.numel()) as counter:
        integrate(plan, table, lambda x, sigma, condition: free, x, afs=afs)
    return counter, len(plan.calls)


@pytest.mark.parametrize("solver", FOUR, ids=lambda solver: solver.name)
def test_a_call_of_the_model_is_followed_by_at_most_four_operations_on_the_sample(solver: Solver) -> None:
    counter, calls = count(solver)
    setup = 4  # the history's views, once
    assert counter.on_sample <= 4 * calls + setup
    one, _ = count(Euler())
    assert one.on_sample == len(SIGMAS) - 1


@pytest.mark.parametrize("solver", [*FOUR, UniPC(3), UniPC(2, variant="bh1")], ids=lambda solver: solver.name)
@pytest.mark.parametrize("afs", [False, True])
def test_nothing_is_read_on_the_host(solver: Solver, afs: bool) -> None:
    assert count(solver, afs)[0].host == 0


def test_the_counter_sees_host_reads() -> None:
    with Count(1) as counter:
        torch.ones(()).item()
    assert counter.host == 1


def denoiser(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
    return torch.tanh(x / (1 + sigma**2))


@pytest.mark.parametrize("solver", SOME, ids=lambda solver: solver.name)
@pytest.mark.parametrize("transform", [None, dynamic_threshold])
def test_the_whole_loop_compiles(solver: Solver, transform: Any) -> None:
    torch._dynamo.reset()
    plan = solver.plan(SIGMAS[:5])
    x = torch.randn(SHAPE)
    table = coefficients(plan, x)

    def loop(x: Tensor) -> Tensor:
        return integrate(plan, table, denoiser, x, afs=True, transform=transform)

    with torch.no_grad():
        compiled = torch.compile(loop, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), loop(x))
        torch.testing.assert_close(compiled(2 * x), loop(2 * x))


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_the_compiled_loop_of_inductor_returns_the_same() -> None:
    torch._dynamo.reset()
    plan = UniPC(2).plan(SIGMAS[:3])
    x = torch.randn(SHAPE)
    table = coefficients(plan, x)

    def loop(x: Tensor) -> Tensor:
        return integrate(plan, table, denoiser, x)

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(loop, fullgraph=True)(x), loop(x), rtol=1e-4, atol=1e-4)


def plain(plan: Any, scale: Tensor, x: Tensor) -> Tensor:
    """Write a plan out, out of place, with the whole history in a list."""
    base, history = x, []
    for k, call in enumerate(plan.calls):
        denoised = scale * denoiser(x, torch.tensor(call.sigma, dtype=x.dtype))
        history.insert(0, denoised if plan.history == "denoised" else x - denoised)
        if k and not plan.calls[k - 1].hold:
            base = x
        for row in (call.correct, call.update):
            if row is not None:
                new = row.state * base + sum(w * h for w, h in zip(row.weights, history, strict=False))
                base, x = (new, x) if row is call.correct else (base, new)
    return x


@pytest.mark.parametrize("solver", [*FOUR, UniPC(3), UniPC(2, predict="noise")], ids=lambda solver: solver.name)
@pytest.mark.parametrize("from_noise", [False, True])
def test_gradients_flow_through_the_loop_as_through_a_plain_one(solver: Solver, from_noise: bool) -> None:
    plan = solver.plan(SIGMAS)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(SHAPE, dtype=torch.float64).requires_grad_(from_noise)
    table = coefficients(plan, x)
    result = integrate(plan, table, lambda x, sigma, condition: scale * denoiser(x, sigma), x)
    inputs = (scale, x) if from_noise else (scale,)
    expected = plain(plan, scale, x)
    torch.testing.assert_close(result, expected)
    gradients = torch.autograd.grad(result.sum(), inputs)
    for gradient, other in zip(gradients, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other)


def test_a_part_with_gradients_can_follow_one_without_and_the_other_way_round() -> None:
    plan = IPNDM(3).plan(SIGMAS)
    x = torch.randn(SHAPE, dtype=torch.float64)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    table = coefficients(plan, x)
    calls = itertools.count()

    def switched(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        with torch.set_grad_enabled(next(calls) in (2, 3)):
            return scale * denoiser(x, sigma)

    result = integrate(plan, table, switched, x)
    torch.testing.assert_close(result, plain(plan, scale.detach(), x))
    (gradient,) = torch.autograd.grad(result.sum(), scale)
    assert gradient != 0


@pytest.mark.parametrize("solver", SOME, ids=lambda solver: solver.name)
def test_samples_do_not_depend_on_the_layout_or_the_batch_they_are_in(solver: Solver) -> None:
    noise = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    together = sample(denoiser, noise, SIGMAS, solver)
    last = sample(denoiser, noise.to(memory_format=torch.channels_last), SIGMAS, solver)
    torch.testing.assert_close(together, last)
    torch.testing.assert_close(together[1:2], sample(denoiser, noise[1:2], SIGMAS, solver))
    torch.testing.assert_close(together.flip(0), sample(denoiser, noise.flip(0), SIGMAS, solver))


def test_the_noise_handed_over_is_not_changed() -> None:
    noise = torch.randn(SHAPE)
    kept = noise.clone()
    for solver in SOME:
        sample(denoiser, noise, SIGMAS, solver)
        assert torch.equal(noise, kept)
