"""The look-ahead through SGD steps: equal to finite differences and to the explicit reverse pass."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.distillation.multi_teacher.bilevel import Lookahead, look_ahead
from stillroom.distillation.multi_teacher.hard_buffer import HardBuffer
from stillroom.errors import InputError

Tensors = Mapping[str, Tensor]
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}


class Problem:
    """Two layers; the inner loss weighs two targets by phi, the outer loss has a target of its own."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.parameters = {"w1": draw(4, 3), "w2": draw(2, 4), "untouched": draw(2)}
        self.buffers = {"w1": draw(4, 3), "w2": draw(2, 4), "untouched": draw(2)}
        self.phi = {"a": draw(5, 2), "b": draw(2)}
        self.x, self.inner_targets, self.outer_target = draw(5, 3), draw(2, 5, 2), draw(5, 2)

    def predict(self, p: Tensors) -> Tensor:
        return torch.tanh(self.x @ p["w1"].T) @ p["w2"].T

    def inner(self, p: Tensors, phi: Tensors) -> Tensor:
        weights = (phi["a"] * phi["b"]).softmax(1)
        errors = (self.predict(p) - self.inner_targets).square().mean(2).T
        return (weights * errors).sum(1).mean()

    def outer(self, p: Tensors) -> Tensor:
        return (self.predict(p) - self.outer_target).square().mean()

    def ahead(self, *, steps: int = 2, phi: Tensors | None = None, **sgd: float) -> Lookahead:
        return look_ahead(
            self.inner, self.outer, self.parameters, self.buffers, phi or self.phi, inner_steps=steps, **(SGD | sgd)
        )


def reverse_pass(problem: Problem, steps: int) -> dict[str, Tensor]:
    """Equation (4.6), written out: from the last step to the first, each loss evaluated again at its stored state."""
    lr, mu, decay = SGD["lr"], SGD["momentum"], SGD["weight_decay"]
    names = list(problem.parameters)
    states = [dict(problem.parameters)]
    velocity = dict(problem.buffers)
    losses = [problem.inner] * steps + [lambda p, phi: problem.outer(p)]

    def slopes(
        loss: object, p: Tensors, phi: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        own = {n: v.detach().requires_grad_() for n, v in p.items()}
        others = {n: v.detach().requires_grad_() for n, v in phi.items()}
        value = loss(own, others)  # type: ignore[operator]
        found = torch.autograd.grad(value, list(own.values()), create_graph=True, materialize_grads=True)
        return own, others, dict(zip(names, found, strict=True))

    for loss in losses:
        _, _, g = slopes(loss, states[-1], problem.phi)
        velocity = {n: mu * velocity[n] + g[n].detach() + decay * states[-1][n] for n in names}
        states.append({n: states[-1][n] - lr * velocity[n] for n in names})
    _, _, g = slopes(lambda p, phi: problem.outer(p), states[-1], problem.phi)
    a = {n: v.detach() for n, v in g.items()}
    b = {n: torch.zeros_like(v) for n, v in a.items()}
    total = {n: torch.zeros_like(v) for n, v in problem.phi.items()}
    for loss, state in zip(reversed(losses), reversed(states[:-1]), strict=True):
        c = {n: b[n] - lr * a[n] for n in names}
        own, others, g = slopes(loss, state, problem.phi)
        product = sum((g[n] * c[n]).sum() for n in names)
        assert isinstance(product, Tensor)
        leaves = [*own.values(), *others.values()]
        back = torch.autograd.grad(product, leaves, materialize_grads=True)
        for n, value in zip(total, back[len(names) :], strict=True):
            total[n] = total[n] + value
        a = {n: a[n] + decay * c[n] + value for n, value in zip(names, back, strict=False)}
        b = {n: mu * c[n] for n in names}
    return total


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_it_equals_the_explicit_reverse_pass(seed: int, steps: int) -> None:
    problem = Problem(seed)
    expected = reverse_pass(problem, steps)
    found = problem.ahead(steps=steps).gradients
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_it_equals_finite_differences() -> None:
    problem, width = Problem(0), 1e-6
    found = problem.ahead().gradients["b"]
    for place in range(2):
        nudge = torch.zeros(2, dtype=torch.float64)
        nudge[place] = width
        high, low = (
            problem.ahead(phi={**problem.phi, "b": problem.phi["b"] + sign * nudge}).outer_after for sign in (1, -1)
        )
        torch.testing.assert_close(found[place], (high - low) / (2 * width), rtol=1e-5, atol=1e-9)


def test_its_steps_are_those_of_torchs_sgd() -> None:
    problem = Problem(1)
    leaves = {name: torch.nn.Parameter(value.clone()) for name, value in problem.parameters.items()}
    optimizer = torch.optim.SGD(leaves.values(), **SGD)
    for name, leaf in leaves.items():
        optimizer.state[leaf]["momentum_buffer"] = problem.buffers[name].clone()
    for loss in (*[lambda: problem.inner(leaves, problem.phi)] * 2, lambda: problem.outer(leaves)):
        optimizer.zero_grad(set_to_none=False)
        loss().backward()
        for leaf in leaves.values():  # not touched: gradient 0, so momentum and decay move it all the same
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        optimizer.step()
    for name, value in problem.ahead().parameters.items():
        torch.testing.assert_close(value, leaves[name].detach())


def test_without_momentum_buffers_they_start_at_zero() -> None:
    problem = Problem(2)
    problem.buffers = {name: torch.zeros_like(value) for name, value in problem.buffers.items()}
    expected = problem.ahead()
    problem.buffers = {}
    found = problem.ahead()
    for name in expected.gradients:
        torch.testing.assert_close(found.gradients[name], expected.gradients[name])


def test_nothing_that_is_passed_in_changes() -> None:
    problem = Problem(3)
    given_values = [problem.parameters, problem.buffers, problem.phi]
    before = [{name: value.clone() for name, value in values.items()} for values in given_values]
    problem.ahead()
    for values, copies in zip(given_values, before, strict=True):
        for name, value in values.items():
            assert torch.equal(value, copies[name])
            assert not value.requires_grad
            assert value.grad is None


def batch(start: int, count: int = 4) -> Batch:
    index = torch.arange(start, start + count)
    return Batch(index.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), index % 3, index)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 1000))
def test_the_full_buffer_takes_up_exactly_the_wrong_samples(wrong: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    buffer = HardBuffer(12, batch(0))
    for start in (0, 4, 8):
        assert not buffer.full
        buffer.update(batch(start), torch.ones(4, dtype=torch.bool))
    assert buffer.full
    assert buffer.index.tolist() == list(range(12))
    buffer.update(batch(100), torch.tensor(wrong))
    held = buffer.index.tolist()
    assert {place for place in held if place >= 100} == {100 + k for k, hard in enumerate(wrong) if hard}
    assert sum(place < 100 for place in held) == 12 - sum(wrong)
    assert torch.equal(buffer.images[:, 0, 0, 0].long(), buffer.index)
    assert torch.equal(buffer.target, buffer.index % 3)


def test_a_drawn_batch_holds_no_sample_twice_and_belongs_together() -> None:
    buffer = HardBuffer(8, batch(0))
    for start in (0, 4):
        buffer.update(batch(start), torch.zeros(4, dtype=torch.bool))
    drawn = buffer.draw(4)
    assert len(set(drawn.index.tolist())) == 4
    assert torch.equal(drawn.images[:, 0, 0, 0].long(), drawn.index)


def test_the_buffers_content_is_part_of_its_state() -> None:
    full, empty = (HardBuffer(8, batch(0)) for _ in range(2))
    for start in (0, 4):
        full.update(batch(start), torch.zeros(4, dtype=torch.bool))
    empty.load_state_dict(full.state_dict())
    assert empty.full
    assert torch.equal(empty.index, full.index)


@pytest.mark.parametrize("size", [0, 10])
def test_a_size_that_holds_no_whole_batches_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        HardBuffer(size, batch(0))
