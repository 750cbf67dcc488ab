"""Many networks at once are the same networks one by one; the data set of pairs can be continued."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.translation import pairs as module
from stillroom.distillation.translation.blocks import BlockNet
from stillroom.distillation.translation.group import orders
from stillroom.distillation.translation.many import State, accuracies, forward, images_for, part, sgd, stack, train
from stillroom.distillation.translation.pairs import PairOptions, Pairs, make_pairs
from stillroom.errors import InputError, TrainingDivergedError

SHAPE = (1, 8, 8)
TINY = PairOptions(count=4, validation=2, epochs=1, images=64, group=2)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataOptions(name="digits", holdout=0.1))


def build(data: ImageData, folder: Path, options: PairOptions = TINY, **others: object) -> Pairs:
    settings = {"seed": 0, "device": torch.device("cpu"), "show_progress": False} | others
    return make_pairs(data, options, folder, **settings)  # type: ignore[arg-type]


def networks(size: str, count: int) -> list[BlockNet]:
    torch.manual_seed(1)
    return [BlockNet(size, shape=SHAPE).double() for _ in range(count)]  # type: ignore[arg-type]


def draw(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(256, (size, count, *SHAPE), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(10, (count, size), generator=generator)


def assert_state(state: State, one_by_one: list[BlockNet]) -> None:
    for name, value in stack(one_by_one).items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("training", [False, True])
def test_grouped_networks_answer_and_keep_statistics_like_single_ones(size: str, training: bool) -> None:
    single = networks(size, 3)
    for net in single:
        net.train(training)
    state = stack(single)
    pixels, _ = draw(3)
    expected = torch.stack([net(pixels[:, i].double() / 255) for i, net in enumerate(single)])
    found = forward(state, images_for(pixels).double(), training=training)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # pixels pass through float32
    if training:
        torch.testing.assert_close(state["begin.bn.running_var"], stack(single)["begin.bn.running_var"])


def test_grouped_training_is_that_of_torch_network_by_network() -> None:
    single = networks("large", 3)
    state = stack(single)
    batches = [draw(3) for _ in range(4)]
    as_read = [(images_for(pixels).double(), target) for pixels, target in batches]
    names = [name for name in state if "running" not in name]
    train(state, sgd(state, names, lr=0.05, momentum=0.9), as_read)
    for i, net in enumerate(single):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for images, target in as_read:
            optimizer.zero_grad()
            F.cross_entropy(net(images[:, i : i + 1]), target[i]).backward()
            optimizer.step()
    assert_state({name: value.detach() for name, value in state.items()}, single)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_block_alone_is_trained_between_frozen_parts(distilled: bool) -> None:
    large, single = networks("large", 2), networks("small", 2)
    for net, master in zip(single, large, strict=True):
        net.begin.load_state_dict(master.begin.state_dict())
        net.last.load_state_dict(master.last.state_dict())
        net.eval().requires_grad_(False)
        net.block.requires_grad_(True)
        master.eval()
    state = stack(single)
    before = {name: value.clone() for name, value in state.items()}
    names = [name for name in state if name.startswith("block.")]
    batches = [(images_for(pixels).double(), target) for pixels, target in (draw(2), draw(2))]
    teacher = stack(large) if distilled else None
    train(state, sgd(state, names, lr=0.05, momentum=0.9), batches, teacher=teacher, temperature=3.0)
    for i, (net, master) in enumerate(zip(single, large, strict=True)):
        optimizer = torch.optim.SGD(net.block.parameters(), lr=0.05, momentum=0.9)
        for images, target in batches:
            logits = net(images[:, i : i + 1])
            loss = F.cross_entropy(logits, target[i])
            if distilled:
                soft = F.softmax(master(images[:, i : i + 1]).detach() / 3, 1)
                loss = 9 * F.kl_div(F.log_softmax(logits / 3, 1), soft, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_state({name: value.detach() for name, value in state.items()}, single)
    for name, value in state.items():
        assert torch.equal(value, before[name]) != name.startswith("block."), name


def test_accuracy_is_the_share_of_hits_and_groups_do_not_matter(digits: ImageData) -> None:
    single = [net.float().eval() for net in networks("large", 3)]
    pixels, target = digits.test.pixels, digits.test.target  # type: ignore[union-attr]
    found = accuracies(stack(single), pixels, target, group=2)
    expected = [(net(pixels / 255).argmax(1) == target).double().mean().item() for net in single]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_every_epoch_shows_each_image_at_most_once_and_mirrors_half() -> None:
    options = PairOptions(images=None, batch_size=30)
    epoch = list(orders((0, 1), 1000, options, epochs=1))
    assert torch.cat([index for index, _ in epoch]).sort().values.tolist() == list(range(1000))
    assert 400 < sum(int(mirrored.sum()) for _, mirrored in epoch) < 600
    steps = list(itertools.islice(orders((0, 1), 100, replace(options, images=40)), 4))  # two epochs
    assert [len(index) for index, _ in steps] == [30, 10, 30, 10]
    assert set(steps[0][0].tolist()) != set(steps[2][0].tolist())
    assert not any(bool(mirrored.any()) for _, mirrored in orders((0,), 50, replace(options, flip=False), epochs=1))


def test_a_network_does_not_depend_on_its_neighbours_but_by_rounding(digits: ImageData, tmp_path: Path) -> None:
    few = replace(TINY, images=32)
    two = build(digits, tmp_path / "two", replace(few, count=4, group=2))
    four = build(digits, tmp_path / "four", replace(few, count=4, group=4))
    for ours, others in zip((*two.large, *two.small), (*four.large, *four.small), strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-3, atol=1e-4)
    assert not torch.equal(two.large[0][0], two.large[0][1])


def test_an_interrupted_data_set_is_continued_to_the_same_weights(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(digits, tmp_path / "whole")
    real, calls = module.train_group, iter(range(99))

    def dies(*arguments: object) -> State:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_group", dies)
    with pytest.raises(KeyboardInterrupt):
        build(digits, tmp_path / "killed")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").glob("*.safetensors")}
    assert len(kept) == 2
    monkeypatch.setattr(module, "train_group", real)
    continued = build(digits, tmp_path / "killed")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for ours, others in zip((*whole.large, *whole.small), (*continued.large, *continued.small), strict=True):
        assert torch.equal(ours, others)
    for name, value in whole.networks.items():
        assert torch.equal(value, continued.networks[name]), name


def test_processes_make_the_same_data_set_and_a_larger_one_takes_its_files(digits: ImageData, tmp_path: Path) -> None:
    alone = build(digits, tmp_path / "alone")
    together = build(digits, tmp_path / "together", replace(TINY, count=3), jobs=2)
    assert torch.equal(together.large[0], alone.large[0][:3])
    grown = build(digits, tmp_path / "together")
    assert torch.equal(grown.small[1], alone.small[1])


def test_validation_networks_are_whole_and_none_of_the_pairs(digits: ImageData, tmp_path: Path) -> None:
    made = build(digits, tmp_path)
    single = BlockNet("large", shape=SHAPE).eval()
    absent, unknown = single.load_state_dict({k: v[0] for k, v in made.networks.items()}, strict=False)
    assert not absent
    assert not unknown
    assert not any(torch.equal(made.networks["block.conv1.weight"][0], weight) for weight in made.large[0])
    assert set(part(made.trained, "block.")) == {"conv1.weight", "conv2.weight"}


def test_what_cannot_work_is_refused(digits: ImageData, tmp_path: Path) -> None:
    build(digits, tmp_path)
    with pytest.raises(InputError, match="lr was"):
        build(digits, tmp_path, replace(TINY, lr=0.1))
    with pytest.raises(InputError, match="seed was"):
        build(digits, tmp_path, seed=1)
    (tmp_path / "train-000001.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="damaged"):
        build(digits, tmp_path)
    (tmp_path / "pairs.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="another kind"):
        build(digits, tmp_path)
    (tmp_path / "pairs.json").unlink()
    with pytest.raises(InputError, match=r"pairs\.json"):
        build(digits, tmp_path)
    with pytest.raises(InputError, match="jobs"):
        build(digits, tmp_path / "other", jobs=0)
    with pytest.raises(InputError, match="training images"):
        build(digits, tmp_path / "other", replace(TINY, images=5000))


def test_a_network_that_diverges_is_named(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"lower --pairs\.lr"):
        build(digits, tmp_path, replace(TINY, lr=1e30))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("count", 0), ("validation", 0), ("epochs", 0), ("batch_size", 0), ("group", 0), ("images", 1)),
        *(("lr", 0.0), ("lr", float("nan")), ("momentum", 1.0), ("planes", 5), ("planes", 0)),
    ],
)
def test_impossible_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"pairs.{option}"):
        PairOptions(**{option: value})
