"""Layout, symmetries and augmentation of weights; what the maths refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.distillation.translation.augment import augment
from stillroom.distillation.translation.blocks import BlockNet
from stillroom.distillation.translation.kt import KT, translation_loss
from stillroom.distillation.translation.layout import from_tokens, to_tokens
from stillroom.distillation.translation.translator import Translator
from stillroom.errors import InputError

planes = st.sampled_from([2, 4, 6, 8])


def small_weights(count: int, p: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, p // 2, p, 3, 3, generator=generator),
        torch.randn(count, p, p // 2, 3, 3, generator=generator),
    )


@given(planes, st.integers(0, 3), st.integers(0, 99))
def test_tokens_and_weights_of_small_blocks_are_each_other_s_inverse(p: int, count: int, seed: int) -> None:
    conv1, conv2 = small_weights(count, p, seed)
    tokens = to_tokens(conv1, conv2)
    assert tokens.shape == (count, p * p, 9)
    for found, expected in zip(from_tokens(tokens), (conv1, conv2), strict=True):
        assert torch.equal(found, expected)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2), st.integers(0, 2))
def test_a_token_is_one_kernel(out: int, into: int, row: int, column: int) -> None:
    conv1, conv2 = torch.zeros(1, 6, 6, 3, 3), torch.zeros(1, 6, 6, 3, 3)
    conv1[0, out, into, row, column] = 1
    conv2[0, into, out, row, column] = 2
    tokens = to_tokens(conv1, conv2)
    assert tokens[0, 6 * out + into, 3 * row + column] == 1
    assert tokens[0, 36 + 6 * into + out, 3 * row + column] == 2
    assert tokens.count_nonzero() == 2


@pytest.mark.parametrize(
    ("augmented", "moved"), [("inputs", (True, False)), ("targets", (False, True)), ("both", (True, True))]
)
def test_augmentation_touches_what_it_is_told_to(augmented: str, moved: tuple[bool, bool]) -> None:
    tokens = torch.ones(4, 72, 9), torch.ones(4, 36, 9)
    found = KT(augmented=augmented, mask=0.5, noise=0.1).augment(*tokens)  # type: ignore[arg-type]
    assert tuple(not torch.equal(a, b) for a, b in zip(found, tokens, strict=True)) == moved


def test_augmentation_is_drawn_anew_and_follows_the_global_seed() -> None:
    ones = torch.ones(100, 100)
    torch.manual_seed(3)
    first, second = augment(ones, prob=0.3, noise=0.0), augment(ones, prob=0.3, noise=0.0)
    torch.manual_seed(3)
    assert torch.equal(augment(ones, prob=0.3, noise=0.0), first)
    assert not torch.equal(first, second)
    assert abs(first.mean().item() - 0.7) < 0.02


def test_switched_off_augmentation_draws_nothing() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(augment(torch.ones(3), prob=0.0, noise=0.0), torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_dropout_in_evaluation_and_some_in_training() -> None:
    translator = Translator(layers=1, channels=8, hidden_tokens=8, hidden_channels=8, dropout=0.5)
    tokens = torch.randn(2, 72, 9)
    translator.eval()
    assert torch.equal(translator(tokens), translator(tokens))
    translator.train()
    assert not torch.equal(translator(tokens), translator(tokens))


def test_a_translator_can_learn_what_is_a_function_of_its_input() -> None:
    torch.manual_seed(0)
    large = torch.randn(64, 72, 9)
    small = large[:, :36] * 0.5
    translator = Translator(layers=1, channels=16, hidden_tokens=64, hidden_channels=32, dropout=0.0)
    optimizer = torch.optim.Adam(translator.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = translation_loss(from_tokens(translator(large)), from_tokens(small))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_paper_s_sizes() -> None:
    net = BlockNet("large")
    assert sum(p.numel() for p in (net.block.conv1.weight, net.block.conv2.weight)) == 648  # type: ignore[union-attr]
    assert net.last.fc.in_features == 588
    assert BlockNet("small", shape=(1, 8, 8)).last.fc.in_features == 48
    assert BlockNet("small", shape=(3, 9, 7), classes=4)(torch.zeros(2, 3, 9, 7)).shape == (2, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: to_tokens(torch.zeros(1, 6, 6, 5, 5), torch.zeros(1, 6, 6, 5, 5)), "3×3"),
        (lambda: to_tokens(torch.zeros(6, 6, 3, 3), torch.zeros(6, 6, 3, 3)), "3×3"),
        (lambda: to_tokens(torch.zeros(1, 3, 6, 3, 3), torch.zeros(1, 6, 6, 3, 3)), "conv2"),
        (lambda: from_tokens(torch.zeros(1, 35, 9)), "P²"),
        (lambda: from_tokens(torch.zeros(1, 25, 9)), "P²"),
        (lambda: from_tokens(torch.zeros(1, 36, 8)), "P²"),
        (lambda: Translator(layers=0, channels=9)(torch.zeros(1, 36, 9)), "72"),
        (lambda: translation_loss(small_weights(1, 6), small_weights(1, 4)), "conv1"),
        (lambda: BlockNet(planes=5), "even"),
        (lambda: KT(layers=-1), "layers"),
        (lambda: KT(channels=0), "channels"),
        (lambda: KT(dropout=1.0), "dropout"),
        (lambda: KT(mask=1.5), "mask"),
        (lambda: KT(noise=-0.1), "noise"),
        (lambda: KT(augmented="input"), "inputs"),  # type: ignore[arg-type]
    ],
)
def test_impossible_values_are_refused_by_name(wrong: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        wrong()  # type: ignore[operator]
