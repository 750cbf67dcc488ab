"""OAD: the ring of discriminators, who learns from them, and the two phases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graphs.online.graph_method_case import batch, edges, outputs
from stillroom.errors import InputError
from stillroom.graphs.online.agreement import mean_of_others_loss
from stillroom.graphs.online.oad import OAD, Discriminator, adversarial_loss, discriminator_loss
from stillroom.graphs.propagation import symmetric_norm

RING = 4


def ring(hidden: int | None = None) -> tuple[list[Discriminator], list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    discriminators = [Discriminator(5, hidden) for _ in range(RING)]
    features = [torch.randn(12, 5, generator=generator).requires_grad_() for _ in range(RING)]
    return discriminators, features, edges(), symmetric_norm(edges(), 12)


def dense_norm() -> Tensor:
    """The matrix [N, N] of the sum over in-edges divided by the roots of both degrees."""
    source, destination = edges()
    matrix = torch.zeros(12, 12).index_put((destination, source), torch.ones(len(source)), accumulate=True)
    out_degree, in_degree = matrix.sum(0).clamp(min=1), matrix.sum(1).clamp(min=1)
    return in_degree.rsqrt()[:, None] * matrix * out_degree.rsqrt()


@pytest.mark.parametrize("hidden", [None, 3])
def test_a_discriminator_is_one_or_two_dense_convolutions(hidden: int | None) -> None:
    (first, *_), (x, *_), edge_index, norm = ring(hidden)
    matrix, expected = dense_norm(), x
    for n, layer in enumerate(first.layers):
        expected = matrix @ (F.relu(expected) if n else expected) @ layer.lin.weight.t() + layer.bias  # type: ignore[union-attr]
    torch.testing.assert_close(first(x, edge_index, norm), expected[:, 0])
    first.final_activation = "relu"
    torch.testing.assert_close(first(x, edge_index, norm), expected[:, 0].relu())


@pytest.mark.parametrize("hidden", [None, 3])
def test_the_losses_are_the_cross_entropies_of_the_ring(hidden: int | None) -> None:
    discriminators, features, edge_index, norm = ring(hidden)
    learned, fooled = torch.zeros(()), torch.zeros(())
    for i, judge in enumerate(discriminators):
        own, previous = (judge(features[j], edge_index, norm).sigmoid() for j in (i, (i - 1) % RING))
        learned = learned - own.log().mean() - (1 - previous).log().mean()
        fooled = fooled - previous.log().mean()
    torch.testing.assert_close(discriminator_loss(discriminators, features, edge_index, norm), learned)
    torch.testing.assert_close(adversarial_loss(discriminators, features, edge_index, norm), fooled)


def test_each_student_is_moved_by_the_next_ones_discriminator_alone() -> None:
    discriminators, features, edge_index, norm = ring()
    everything = torch.autograd.grad(adversarial_loss(discriminators, features, edge_index, norm), features)
    for i, judge in enumerate(discriminators):
        score = judge(features[i - 1], edge_index, norm)
        alone = F.binary_cross_entropy_with_logits(score, torch.ones(12))
        gradients = torch.autograd.grad(alone, features, allow_unused=True)
        assert [gradient is not None for gradient in gradients] == [j == (i - 1) % RING for j in range(RING)]
        torch.testing.assert_close(everything[i - 1], gradients[i - 1])
        # Another discriminator of this place changes nothing for the other students.
        changed = [*discriminators[:i], Discriminator(5), *discriminators[i + 1 :]]
        again = torch.autograd.grad(adversarial_loss(changed, features, edge_index, norm), features)
        same = [torch.equal(a, b) for a, b in zip(everything, again, strict=True)]
        assert same == [j != (i - 1) % RING for j in range(RING)]


def test_students_are_moved_and_discriminators_are_not() -> None:
    discriminators, features, edge_index, norm = ring(3)
    frozen = discriminators[1].layers[0].bias
    frozen.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = [parameter.requires_grad for each in discriminators for parameter in each.parameters()]
    adversarial_loss(discriminators, features, edge_index, norm).backward()
    assert not [p for each in discriminators for p in each.parameters() if p.grad is not None]
    assert [parameter.requires_grad for each in discriminators for parameter in each.parameters()] == before
    assert all(each.grad is not None for each in features)


def test_gradients_are_switched_on_again_when_a_discriminator_fails() -> None:
    discriminators, features, edge_index, norm = ring()
    with pytest.raises(RuntimeError):
        adversarial_loss(discriminators, [each[:, :2] for each in features], edge_index, norm)
    assert all(parameter.requires_grad for each in discriminators for parameter in each.parameters())


def test_discriminators_learn_and_students_do_not() -> None:
    discriminators, features, edge_index, norm = ring()
    discriminator_loss(discriminators, features, edge_index, norm).backward()
    assert all(each.grad is None for each in features)
    assert all(parameter.grad is not None for each in discriminators for parameter in each.parameters())


def test_discriminators_without_a_final_relu_learn_to_tell_students_apart() -> None:
    discriminators, features, edge_index, norm = ring()
    optimizer = torch.optim.Adam([p for each in discriminators for p in each.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = discriminator_loss(discriminators, features, edge_index, norm)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < RING * 2 * math.log(2)  # a discriminator that cannot tell pays log 2 a term


def test_a_final_relu_calls_nothing_fake() -> None:
    torch.manual_seed(0)
    judge = Discriminator(5, final_activation="relu")
    assert (judge(50 * torch.randn(12, 5), edges(), symmetric_norm(edges(), 12)).sigmoid() >= 0.5).all()


def test_a_ring_needs_two_students_and_a_discriminator_each() -> None:
    discriminators, features, edge_index, norm = ring()
    for loss in (discriminator_loss, adversarial_loss):
        with pytest.raises(InputError, match="not 1 and 1"):
            loss(discriminators[:1], features[:1], edge_index, norm)
        with pytest.raises(InputError, match="not 4 and 3"):
            loss(discriminators[:3], features, edge_index, norm)
    with pytest.raises(InputError, match="final_activation must be none or relu, not 'elu'"):
        Discriminator(5, final_activation="elu")  # type: ignore[arg-type]


def built(**options: object) -> OAD:
    torch.manual_seed(0)
    method = OAD(**options)  # type: ignore[arg-type]
    method.build(outputs(), multilabel=False)
    return method


def test_the_warm_up_is_on_the_labels_alone() -> None:
    method = built(warmup_epochs=2)
    for epoch in (1, 2):
        method.start_epoch(epoch, 5)
        parts = method(outputs(), batch())
        assert parts["loss"] == parts["labels"]
        assert parts["predictions"] == parts["adversarial"] == 0
        assert method.adversary_loss(outputs(), batch()) is None
    method.start_epoch(3, 5)
    parts = method(outputs(), batch())
    torch.testing.assert_close(
        parts["loss"].detach(), parts["labels"] + parts["predictions"] + 0.1 * parts["adversarial"]
    )
    assert method.adversary_loss(outputs(), batch()) is not None


def test_alpha_moves_from_the_labels_to_the_other_terms() -> None:
    method = built(warmup_epochs=1, alpha=True, kd_weight=2.0, gan_weight=3.0)
    method.start_epoch(1, 5)
    parts = method(outputs(), batch())
    assert parts["loss"] == parts["labels"]
    for epoch, share in ((2, 0.0), (3, 0.25), (4, 0.5), (5, 0.75)):
        method.start_epoch(epoch, 5)
        parts = method(outputs(), batch())
        others = 2 * parts["predictions"] + 3 * parts["adversarial"]
        torch.testing.assert_close(parts["loss"].detach(), (1 - share) * parts["labels"] + share * others)


def test_the_terms_are_the_functions_on_the_nodes_they_are_for() -> None:
    said, given = outputs(), batch()
    for features in ("hidden", "activated"):
        method = built(d_weight=2.0, features=features)
        parts = method(said, given)
        logits = [each.logits[given.labelled] for each in said]
        torch.testing.assert_close(parts["predictions"], mean_of_others_loss(logits).detach())
        seen = [each.hidden[-1] if features == "hidden" else each.hidden[-1].relu() for each in said]
        norm = symmetric_norm(given.edge_index, 12)
        judges = list(method.discriminators)
        torch.testing.assert_close(
            parts["adversarial"], adversarial_loss(judges, seen, given.edge_index, norm).detach()
        )
        torch.testing.assert_close(
            method.adversary_loss(said, given), 2 * discriminator_loss(judges, seen, given.edge_index, norm)
        )


def test_without_the_adversarial_term_no_discriminator_learns() -> None:
    method = built(gan_weight=0.0)
    assert method.adversary_loss(outputs(), batch()) is None
    parts = method(outputs(), batch())
    torch.testing.assert_close(parts["loss"].detach(), parts["labels"] + parts["predictions"])


def test_several_labels_are_compared_one_by_one_or_as_the_released_code_does() -> None:
    said, given = outputs(), batch(multilabel=True)
    logits = [each.logits[given.labelled] for each in said]
    for kind, used in (("auto", "bernoulli"), ("softmax", "softmax")):
        method = OAD(kind=kind)  # type: ignore[arg-type]
        method.build(said, multilabel=True)
        expected = mean_of_others_loss(logits, kind=used)  # type: ignore[arg-type]
        torch.testing.assert_close(method(said, given)["predictions"], expected.detach())
