"""The losses between peers: a second formulation, invariants, where gradients go, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stillroom.distillation.online.clilr import CLILR, clilr_loss, rescale_gradient
from stillroom.distillation.online.diversity import disagreement, diversity
from stillroom.distillation.online.dml import DML, dml_loss
from stillroom.distillation.online.independent import independent_loss
from stillroom.distillation.online.kl import kl_loss, mean_of_others, peer_cross_entropy
from stillroom.distillation.online.okddip import OKDDip, PeerAttention, okddip_loss
from stillroom.distillation.online.okdmde import OKDMDE, FeatureFusion, cd_loss
from stillroom.distillation.online.one import ONE, Gate, one_loss
from stillroom.distillation.online.rampup import consistency_weight
from stillroom.errors import InputError

seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(2, 7))  # B, M, K
few = settings(max_examples=25, deadline=None)


def draw(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(seed: int, batch: int, number: int) -> Tensor:
    return torch.randint(number, (batch,), generator=torch.Generator().manual_seed(seed + 1))


def naive_kl(student: Tensor, imitated: Tensor, temperature: float) -> Tensor:
    """The soft-target term written out over samples and classes."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student / temperature, imitated / temperature, strict=True):
        for k in range(len(s)):
            p = t[k].exp() / t.exp().sum() + 1e-7
            total = total + p * (p.log() - (s[k].exp() / s.exp().sum()).log())
    return temperature**2 * total / len(student)


@few
@given(seeds, sizes, st.floats(0.5, 8.0))
def test_the_soft_target_term_is_the_sum_written_out(seed: int, size: tuple[int, int, int], temperature: float) -> None:
    student, imitated = draw(seed, *size), draw(seed + 1, *size)
    expected = sum(naive_kl(student[:, m], imitated[:, m], temperature) for m in range(size[1]))
    torch.testing.assert_close(kl_loss(student, imitated, temperature=temperature), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    logits = (1e4 * draw(0, 4, 3, 5)).to(dtype).requires_grad_()
    target, features = classes(0, 4, 5), (100 * draw(1, 4, 3, 16)).to(dtype)
    targets = PeerAttention(16)(features, logits).targets
    for parts in (
        okddip_loss(logits, targets, logits[:, 0], target),
        dml_loss(logits, target, pairwise=True),
        clilr_loss(logits, target),
        one_loss(logits, logits.float().mean(1), target),
    ):
        (gradient,) = torch.autograd.grad(parts["loss"], logits, retain_graph=True)
        assert parts["loss"].isfinite()
        assert parts["loss"].dtype is torch.float32
        assert gradient.isfinite().all()


@few
@given(seeds, sizes)
def test_cross_entropies_and_means_of_others_are_those_of_each_peer(seed: int, size: tuple[int, int, int]) -> None:
    logits, target = draw(seed, *size), classes(seed, size[0], size[2])
    expected = sum(F.cross_entropy(logits[:, m], target) for m in range(size[1]))
    torch.testing.assert_close(peer_cross_entropy(logits, target), expected)
    torch.testing.assert_close(independent_loss(logits, target)["loss"], expected)
    for m in range(size[1]):
        others = [n for n in range(size[1]) if n != m]
        torch.testing.assert_close(mean_of_others(logits)[:, m], logits[:, others].mean(1))


@few
@given(seeds, sizes, st.booleans(), st.booleans())
def test_mutual_learning_is_the_double_sum(
    seed: int, size: tuple[int, int, int], pairwise: bool, detach_targets: bool
) -> None:
    logits, target = draw(seed, *size).requires_grad_(), classes(seed, size[0], size[2])
    loss = dml_loss(logits, target, pairwise=pairwise, detach_targets=detach_targets)["loss"]
    seen = logits.detach() if detach_targets else logits
    expected = peer_cross_entropy(logits, target)
    for j in range(size[1]):
        others = [k for k in range(size[1]) if k != j]
        if pairwise:
            expected = expected + sum(naive_kl(logits[:, j], seen[:, k], 3.0) for k in others) / len(others)
        else:
            expected = expected + naive_kl(logits[:, j], seen[:, others].mean(1), 3.0)
    torch.testing.assert_close(loss, expected)
    (gradient,), (written_out,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, written_out)


@few
@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_attention_does_not_care_for_the_order_of_peers(seed: int, batch: int, peers: int) -> None:
    module = PeerAttention(16, factor=4).double()
    features, logits = draw(seed, batch, peers, 16, scale=1.0), draw(seed, batch, peers, 7)
    attention, targets = module(features, logits)
    torch.testing.assert_close(attention.sum(2), torch.ones(batch, peers, dtype=torch.float64))
    order = torch.randperm(peers, generator=torch.Generator().manual_seed(seed))
    permuted = module(features[:, order], logits[:, order])
    torch.testing.assert_close(permuted.targets, targets[:, order])
    torch.testing.assert_close(permuted.attention, attention[:, order][:, :, order])


def test_identical_peers_are_their_own_targets() -> None:
    logits = draw(0, 4, 1, 6).expand(4, 3, 6)
    torch.testing.assert_close(PeerAttention(8).double()(draw(1, 4, 3, 8), logits).targets, logits)


def test_attention_under_autocast_stays_in_full_precision() -> None:
    module, features, logits = PeerAttention(16), draw(0, 4, 3, 16).float(), draw(1, 4, 3, 5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(features, logits)
    torch.testing.assert_close(inside, module(features, logits), rtol=0, atol=0)


def test_the_attention_is_trained_through_the_targets_alone() -> None:
    module, logits = PeerAttention(16).double(), draw(0, 4, 3, 5)
    target = classes(0, 4, 5)
    targets = module(draw(1, 4, 3, 16), logits).targets
    okddip_loss(logits, targets, logits[:, 0], target)["loss"].backward()
    assert all(bool(p.grad is not None and p.grad.abs().sum() > 0) for p in module.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        okddip_loss(logits, targets.detach(), logits[:, 0], target)["loss"].backward()


@pytest.mark.parametrize("detached", [False, True])
def test_the_leaders_term_moves_the_peers_unless_its_target_is_detached(detached: bool) -> None:
    peers, leader, targets = draw(0, 4, 3, 5).requires_grad_(), draw(1, 4, 5), draw(2, 4, 3, 5)
    target = classes(0, 4, 5)
    parts = okddip_loss(peers, targets, leader, target, alpha=0.7, weight=0.5, detach_leader_target=detached)
    expected = peer_cross_entropy(peers, target) + 0.35 * kl_loss(peers, targets)
    if not detached:
        expected = expected + 0.35 * kl_loss(leader, peers.mean(1))
    (gradient,), (alone,) = torch.autograd.grad(parts["loss"], peers), torch.autograd.grad(expected, peers)
    torch.testing.assert_close(gradient, alone)
    assert not any(value.requires_grad for name, value in parts.items() if name != "loss")


@few
@given(seeds, sizes)
def test_the_order_of_samples_and_of_branches_does_not_matter(seed: int, size: tuple[int, int, int]) -> None:
    logits, target = draw(seed, *size), classes(seed, size[0], size[2])
    rows = torch.randperm(size[0], generator=torch.Generator().manual_seed(seed))
    columns = torch.randperm(size[1], generator=torch.Generator().manual_seed(seed))
    mixed = logits[rows][:, columns]
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda z, y: clilr_loss(z, y)["loss"],
        lambda z, y: one_loss(z, z.mean(1), y)["loss"],
        lambda z, y: dml_loss(z, y)["loss"],
        lambda z, _: diversity(z),
        lambda z, _: disagreement(z),
    ]
    for loss in losses:
        # The 1e-6 of the distance stands on one side of a pair only.
        torch.testing.assert_close(loss(mixed, target[rows]), loss(logits, target), rtol=1e-5, atol=1e-5)


def test_a_gate_of_alike_branches_gives_what_they_say() -> None:
    logits = draw(0, 4, 1, 6).float().expand(4, 3, 6)
    torch.testing.assert_close(Gate(8, 3)(draw(1, 4, 8, 2, 2).float(), logits), logits[:, 0])


def test_rescaling_keeps_the_values_and_divides_the_gradient() -> None:
    features = draw(0, 3, 4).requires_grad_()
    rescaled = rescale_gradient(features, 0.25)
    assert torch.equal(rescaled, features)
    (gradient,) = torch.autograd.grad((rescaled**2).sum(), features)
    torch.testing.assert_close(gradient, features / 2)


@few
@given(st.integers(1, 100), st.integers(1, 300), st.floats(0, 1))
def test_the_ramp_up_rises_to_one_and_stays(length: int, epochs: int, start: float) -> None:
    options: dict[str, Any] = {"length": length, "epochs": epochs, "start_fraction": start}
    weights = [consistency_weight(epoch, **options) for epoch in range(math.ceil(start * epochs), epochs + length + 1)]
    assert weights == sorted(weights)
    assert 0 < weights[0] <= 1
    assert weights[-1] == 1
    assert all(consistency_weight(epoch, **options) == 1 for epoch in range(epochs) if epoch < start * epochs)


@few
@given(seeds, sizes)
def test_diversity_and_disagreement_are_means_over_all_pairs(seed: int, size: tuple[int, int, int]) -> None:
    logits = draw(seed, *size)
    p, answers = logits.softmax(2), logits.argmax(2)
    pairs = [(a, b) for a in range(size[1]) for b in range(a + 1, size[1])]
    distance = sum((p[:, a] - p[:, b] + 1e-6).norm(dim=1).mean() for a, b in pairs) / len(pairs)
    differ = sum((answers[:, a] != answers[:, b]).float().mean() for a, b in pairs) / len(pairs)
    torch.testing.assert_close(diversity(logits), distance)
    torch.testing.assert_close(disagreement(logits), differ)


@few
@given(seeds, st.integers(2, 4), st.floats(0.1, 10))
def test_the_cosine_of_classifiers_ignores_their_lengths(seed: int, peers: int, factor: float) -> None:
    weights = draw(seed, peers, 3, 4)
    lengths = torch.linspace(1, factor, peers, dtype=torch.float64)[:, None, None]
    loss = cd_loss(weights)
    assert 0 <= loss <= 1
    torch.testing.assert_close(cd_loss(weights * lengths), loss)


@pytest.mark.parametrize("mode", ["cosine", "dot"])
def test_zero_and_orthogonal_classifiers_have_no_gradient_that_is_not_a_number(mode: Any) -> None:
    weights = torch.stack([torch.zeros(2, 3), torch.eye(2, 3), torch.eye(2, 3).roll(1, 0)]).requires_grad_()
    loss = cd_loss(weights, mode=mode)
    loss.backward()
    assert loss.isfinite()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


def test_fused_features_are_pooled_maps_plus_the_pooled_fusion() -> None:
    fusion, maps = FeatureFusion(6, 3), draw(0, 2, 3, 6, 4, 4).float()
    fused = F.relu(fusion.bn(F.conv2d(torch.cat([maps[:, a] for a in range(3)], 1), fusion.conv.weight)))
    expected = torch.stack([maps[:, a].mean((2, 3)) + fused.mean((2, 3)) for a in range(3)], 1)
    torch.testing.assert_close(fusion(maps), expected)


Z, Y = torch.zeros(4, 3, 5), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kl_loss(Z, Z[:, :2]), r"both be \[B, K\]"),
        (lambda: kl_loss(Z, Z, temperature=0), "temperature must be a finite number above 0"),
        (lambda: dml_loss(Z[:, :1], Y), r"at least 2 peer\(s\) are needed, not 1"),
        (lambda: clilr_loss(Z[:, :1], Y), "at least 2 peer"),
        (lambda: independent_loss(Z[:0], Y[:0]), r"must be \[B, M, K\], not \[0, 3, 5\]"),
        (lambda: independent_loss(Z, Y[:2]), r"target must be \[4\]"),
        (lambda: independent_loss(Z, Y.float()), "int64"),
        (lambda: diversity(Z[:, :1]), "1 is too few"),
        (lambda: cd_loss(Z[:1]), "1 is too few"),
        (lambda: cd_loss(Z, mode="cosin"), "did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: cd_loss(Z[0]), r"classifiers must be \[M, K, D\]"),
        (lambda: consistency_weight(0, length=-1, epochs=3), "must not be negative"),
        (lambda: consistency_weight(0, length=1, epochs=3, start_fraction=1.5), "between 0 and 1"),
        (lambda: PeerAttention(4, factor=8), "between 1 and the 4 features"),
        (lambda: OKDDip(temperature=-1), "temperature"),
        (lambda: OKDDip(alpha=-1), "alpha"),
        (lambda: OKDDip(factor=0), "factor must be at least 1"),
        (lambda: OKDDip(rampup=-1), "rampup must not be negative"),
        (lambda: OKDDip(rampup_start=2), "rampup_start must be between 0 and 1"),
        (lambda: OKDMDE(weight_cd=math.nan), "weight_cd"),
        (lambda: OKDMDE(mode="dots"), "did you mean 'dot'"),  # type: ignore[arg-type]
        (lambda: DML(temperature=math.inf), "temperature"),
        (lambda: ONE(alpha=math.nan), "alpha"),
        (lambda: CLILR(temperature=0), "temperature"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
