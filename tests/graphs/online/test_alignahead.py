"""Alignahead and Alignahead++: which layer takes from which, and from whom gradient comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphs.online.graph_method_case import batch, changed, edges, leaves, outputs
from stillroom.errors import InputError
from stillroom.graphs.online.agreement import label_loss
from stillroom.graphs.online.alignahead import Alignahead, alignahead_loss, cross_layer_loss, paired_layer
from stillroom.graphs.online.alignahead_pp import AlignaheadPP, feature_loss
from stillroom.graphs.structure import edge_kernel, lsp_loss

quick = settings(max_examples=25, deadline=None)


def layers(count: int, seed: int = 0, width: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [30 * torch.randn(12, width, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)]


@quick
@given(count=st.integers(1, 6), shift=st.integers(-7, 7))
def test_every_layer_has_a_pair_of_its_own_where_pairs_wrap(count: int, shift: int) -> None:
    pairs = [paired_layer(layer, count, shift=shift) for layer in range(count)]
    assert sorted(pairs) == list(range(count))  # type: ignore[type-var]
    without = [paired_layer(layer, count, shift=shift, wrap=False) for layer in range(count)]
    assert without == [layer - shift if 0 <= layer - shift < count else None for layer in range(count)]


def test_the_papers_take_from_the_layer_before_and_from_the_layer_after() -> None:
    assert [paired_layer(layer, 4, shift=Alignahead().shift) for layer in range(4)] == [3, 0, 1, 2]
    assert [paired_layer(layer, 4, shift=AlignaheadPP().shift) for layer in range(4)] == [1, 2, 3, 0]


@quick
@given(
    count=st.integers(1, 3),
    peers=st.integers(1, 3),
    shift=st.integers(-2, 2),
    wrap=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_loss_is_the_sum_over_layers_and_the_mean_over_peers(
    count: int, peers: int, shift: int, wrap: bool, seed: int
) -> None:
    student, others = layers(count, seed), [layers(count, seed + 1 + j, width=3) for j in range(peers)]
    expected = torch.zeros((), dtype=torch.float64)
    for peer in others:
        for layer in range(count):
            other = paired_layer(layer, count, shift=shift, wrap=wrap)
            if other is not None:
                term = lsp_loss(student[layer], peer[other], edges(), direction="teacher_student")
                expected = expected + term / peers
    loss = alignahead_loss(student, others, edges(), shift=shift, wrap=wrap)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, [*student, *(each for peer in others for each in peer)], allow_unused=True)
    assert not any(gradient is not None and gradient.any() for gradient in gradients[count:])


@pytest.mark.parametrize("count", [2, 3])
def test_equal_copies_learn_from_another_layer_only(count: int) -> None:
    student = layers(count, dtype=torch.float32)
    copies = [[each.detach().clone() for each in student] for _ in range(2)]
    one_to_one = alignahead_loss(student, copies, edges(), shift=0)
    assert one_to_one == 0
    for gradient in torch.autograd.grad(one_to_one, student):
        assert gradient.abs().max() < 1e-9
    ahead = alignahead_loss(student, copies, edges(), shift=1)
    assert ahead > 1e-3
    assert all(gradient.abs().max() > 1e-6 for gradient in torch.autograd.grad(ahead, student))


def test_one_layer_reduces_to_one_to_one() -> None:
    student, peer = layers(1), layers(1, seed=1)
    values = [alignahead_loss(student, [peer], edges(), shift=shift) for shift in (-1, 0, 1)]
    assert values[0] == values[1] == values[2] > 0


def test_no_pair_means_a_loss_of_zero_that_can_be_differentiated() -> None:
    student = [torch.full((12, 2), 3e38, requires_grad=True)]  # whose sum overflows
    for loss in (
        alignahead_loss(student, [student], edges(), wrap=False, shift=1),
        feature_loss(student, [student], wrap=False, shift=1),
    ):
        assert loss == 0
        assert not torch.autograd.grad(loss, student)[0].any()


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_the_method_is_the_loss_of_the_student_whose_turn_it_is(turn: int) -> None:
    said, given = outputs(), batch(turn=turn)._replace(complete=torch.arange(12) > 3)
    method = Alignahead(weight=2.0, kernel="rbf", scale="auto")
    method.build(said, multilabel=False)
    parts = method(said, given)
    peers = [each.hidden for m, each in enumerate(said) if m != turn]
    structure = alignahead_loss(
        said[turn].hidden, peers, given.edge_index, kernel="rbf", scale="auto", nodes=given.complete
    )
    labels = label_loss(said[turn].logits[given.labelled], given.target[given.labelled])
    torch.testing.assert_close(parts["loss"], labels + 2 * structure)
    similarity = [edge_kernel(each, given.edge_index, kernel="rbf", scale="auto").mean() for each in said[turn].hidden]
    torch.testing.assert_close(parts["similarity"], torch.stack(similarity).mean())


def test_equal_copies_of_the_method_learn_the_labels_only_one_to_one() -> None:
    said = outputs(widths=((5, 5),))
    same = [*said, *changed(said, lambda each: each)]
    method = Alignahead(shift=0)
    method.build(same, multilabel=False)
    parts = method(same, batch(turn=0))
    assert parts["structure"] == 0
    assert parts["loss"] == parts["labels"]


def test_peers_of_another_depth_and_no_peers_are_refused() -> None:
    with pytest.raises(InputError, match="needs a peer to learn from"):
        alignahead_loss(layers(2), [], edges())
    with pytest.raises(InputError, match=r"learner has 2 hidden layers, its peers \[2, 3\]"):
        alignahead_loss(layers(2), [layers(2), layers(3)], edges())
    with pytest.raises(InputError, match="needs a peer"):
        cross_layer_loss([torch.zeros(3)], [], edges(), 12)
    with pytest.raises(InputError, match="needs a peer"):
        feature_loss(layers(2), [])
    with pytest.raises(InputError, match=r"layer 0 is \[12, 4\] and the peer's layer 1 \[12, 3\]"):
        feature_loss(layers(2), [layers(2, width=3)])


@quick
@given(count=st.integers(1, 3), peers=st.integers(1, 2), shift=st.integers(-2, 2), wrap=st.booleans())
def test_features_are_compared_in_the_mean_over_nodes_and_width(count: int, peers: int, shift: int, wrap: bool) -> None:
    student, others = layers(count), [layers(count, 1 + j) for j in range(peers)]
    expected = torch.zeros((), dtype=torch.float64)
    for peer in others:
        for layer in range(count):
            if (other := paired_layer(layer, count, shift=shift, wrap=wrap)) is not None:
                expected = expected + ((student[layer] - peer[other]) ** 2).sum() / (12 * 4) / peers
    torch.testing.assert_close(feature_loss(student, others, shift=shift, wrap=wrap), expected)


@pytest.mark.parametrize("wrap", [True, False])
def test_layers_of_other_widths_are_mapped_and_the_learner_trains_its_maps(wrap: bool) -> None:
    said = outputs(widths=((5, 5), (5, 4), (3, 4)))
    method = AlignaheadPP(wrap=wrap)
    method.build(said, multilabel=False)
    # Learner, peer and the peer's layer that the learner's layer before it takes, where the widths differ.
    after = {"0_from_1_layer_1", "0_from_2_layer_1", "1_from_2_layer_1", "2_from_0_layer_1", "2_from_1_layer_1"}
    around = {"0_from_2_layer_0", "1_from_0_layer_0", "1_from_2_layer_0", "2_from_0_layer_0", "2_from_1_layer_0"}
    assert set(method.maps) == (after | around if wrap else after)
    assert all(each.bias is None for each in method.maps.values())
    for turn in range(3):
        method.zero_grad()
        said = changed(said, lambda each: each)
        method(said, batch(turn=turn))["loss"].backward()
        learned = [all(value.grad is not None for value in leaves(each).values()) for each in said]
        touched = [any(value.grad is not None for value in leaves(each).values()) for each in said]
        assert learned == touched == [m == turn for m in range(3)]
        trained = {name.split(".")[1] for name, p in method.maps.named_parameters(prefix="maps") if p.grad is not None}
        assert trained == {name for name in method.maps if name.startswith(f"{turn}_from")}
        assert all(
            any(p.grad is not None for p in each.parameters()) == (m == turn) for m, each in enumerate(method.aux)
        )


def test_alignahead_pp_without_its_terms_is_the_loss_on_the_labels() -> None:
    off: dict[str, Any] = {"structure_weight": 0.0, "feature_weight": 0.0, "aux_weight": 0.0}
    said, given = outputs(), batch(turn=1)
    torch.manual_seed(0)
    for options, expected in (
        ({}, lambda p: p["labels"]),
        ({"aux_weight": 2.0}, lambda p: p["labels"] + 2 * p["aux"]),
        ({"structure_weight": 3.0}, lambda p: p["labels"] + 3 * p["structure"]),
        ({"feature_weight": 4.0}, lambda p: p["labels"] + 4 * p["features"]),
    ):
        method = AlignaheadPP(**(off | options))
        method.build(said, multilabel=False)
        parts = method(said, given)
        torch.testing.assert_close(parts["loss"].detach(), expected(parts))
    activated = [torch.relu(each)[given.labelled] for each in said[1].hidden]
    aux = [
        label_loss(classify(each), given.target[given.labelled])
        for classify, each in zip(method.aux[1], activated, strict=True)  # type: ignore[arg-type]
    ]
    torch.testing.assert_close(parts["aux"], torch.stack(aux).mean().detach())
