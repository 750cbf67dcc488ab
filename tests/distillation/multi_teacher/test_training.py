"""A student trained from several teachers: end to end, killed and resumed, and what is refused beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.cache import cached_teacher
from stillroom.distillation.methods import FAMILIES, method_class
from stillroom.distillation.multi_teacher._method import ManyTeachers
from stillroom.distillation.multi_teacher.corrupt import corrupted
from stillroom.distillation.multi_teacher.hard_buffer import HardBuffer
from stillroom.distillation.multi_teacher.task import MetaTask, build_method
from stillroom.distillation.multi_teacher.training import Master, head_of, rehearse_many, train_from_many
from stillroom.distillation.networks import Network, live_teacher, new_network, tap, twin
from stillroom.distillation.training import Setting, Trained, train_alone
from stillroom.errors import InputError
from stillroom.reports.tables import Table
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

NAMES = sorted(FAMILIES["multi_teacher"])
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.02)
OPTIONS: dict[str, dict[str, Any]] = {"mmkd": {"meta_freq": 2, "buffer_size": 32, "beta": 1.0}}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataOptions(name="digits", per_class=8))


@pytest.fixture(scope="module")
def setting(data: ImageData) -> Setting:
    # The test images are as few as the training images: the end of the training passes over them.
    return Setting(data=data, recipe=RECIPE, seed=0, fabric=make_fabric("cpu"), show_progress=False)


@pytest.fixture(scope="module")
def networks(data: ImageData) -> list[Network]:
    """A student and three teachers of different architectures, map sizes and widths, all fresh."""
    torch.manual_seed(0)
    return [new_network(name, data) for name in ("resnet8", "resnet8", "vgg8", "wrn_16_1")]


def masters_of(networks: Sequence[Network], method: ManyTeachers, setting: Setting) -> list[Master]:
    masters = []
    for k, network in enumerate(networks, 1):
        own = twin(network)
        device = setting.fabric.device
        head = head_of(own, setting.data, device=device) if method.needs_heads else None
        says, _ = live_teacher(own, setting.data, signals=method.signals, device=device)
        masters.append(Master(f"teacher {k} ({own.name})", says, head))
    return masters


def train(name: str, networks: Sequence[Network], setting: Setting, path: Path) -> Trained:
    method = method_class(name)(**OPTIONS.get(name, {}))
    masters = masters_of(networks[1:], method, setting)
    return train_from_many(twin(networks[0]), masters, method, setting, RunDirectory(path))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_from_teachers_of_different_architectures_and_leaves_them_as_they_are(
    name: str, networks: list[Network], setting: Setting, tmp_path: Path
) -> None:
    method = method_class(name)(**OPTIONS.get(name, {}))
    masters = masters_of(networks[1:], method, setting)
    before = [copy.deepcopy(master.says.model.state_dict()) for master in masters]
    trained = train_from_many(twin(networks[0]), masters, method, setting, RunDirectory(tmp_path))

    names = ["teacher 1 (resnet8)", "teacher 2 (vgg8)", "teacher 3 (wrn_16_1)"]
    weights = trained.measured["teacher_weights"]
    assert list(weights) == names
    assert sum(weights.values()) == pytest.approx(2.0 if name == "ebkd" else 1.0, abs=1e-5)
    assert len(trained.history) == 2
    (section,) = trained.sections
    assert section.title == "Teachers"
    table = section.parts[1]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == names

    fresh, after = networks[0].model.state_dict(), trained.network.model.state_dict()
    assert fresh.keys() == after.keys()
    assert not torch.equal(fresh["linear.weight"], after["linear.weight"])
    assert not trained.network.model._forward_hooks
    assert not list(method.parameters())
    for master, state in zip(masters, before, strict=True):
        assert not master.says.model.training
        for key, value in master.says.model.state_dict().items():
            assert torch.equal(value, state[key]), key


class KilledError(Exception):
    """Raised within a step."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training die in the ``step``-th call of its method from now on."""
    original: Callable[..., dict[str, Tensor]] = ManyTeachers.__call__
    seen = 0

    def counted(self: ManyTeachers, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        nonlocal seen
        seen += 1
        if seen == step:
            raise KilledError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ManyTeachers, "__call__", counted)


@pytest.mark.parametrize("name", ["camkd", "mmkd"])
@pytest.mark.parametrize("step", [3, 6])  # an epoch has 5; a checkpoint is written after 2, 4 and 5 of them
def test_a_killed_and_resumed_training_ends_bit_for_bit_the_same(
    name: str, step: int, networks: list[Network], setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(setting, checkpoint_every=2)
    networks = [networks[0], networks[1], networks[3]]
    assert len(setting.train_loader()) == 5
    whole = train(name, networks, setting, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(step + 1, patch)  # the rehearsal is the first
        with pytest.raises(KilledError):
            train(name, networks, setting, tmp_path / "killed")
    torch.manual_seed(99)  # whatever was drawn in between must not matter
    resumed = train(name, networks, replace(setting, resume=True), tmp_path / "killed")
    for key, value in whole.network.model.state_dict().items():
        assert torch.equal(value, resumed.network.model.state_dict()[key]), key
    assert resumed.measured == whole.measured
    last = [sorted((tmp_path / run / "checkpoints").glob("*.pt"))[-1] for run in ("whole", "killed")]
    states = [torch.load(file, weights_only=True)["task"] for file in last]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if isinstance(value, Tensor):
            assert torch.equal(value, states[1][key]), key
    if name == "mmkd":
        own, other = (state["_extra_state"]["meta_optimizer"]["state"] for state in states)
        assert own.keys() == other.keys() != set()
        for number, moments in own.items():
            assert all(torch.equal(value, other[number][key]) for key, value in moments.items())


@pytest.fixture
def meta_task(networks: list[Network], setting: Setting) -> tuple[MetaTask, torch.optim.SGD]:
    method = method_class("mmkd")(**OPTIONS["mmkd"])
    sample = next(iter(setting.train_loader().epoch(1)))
    student = tap(twin(networks[0]), method.signals)
    masters = masters_of(networks[1:], method, setting)
    built = build_method(student, masters, method, sample, seed=0)
    task = MetaTask(student, masters, built, sample, steps_per_epoch=5)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    return task, torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)


def test_a_meta_step_moves_the_weight_networks_and_nothing_else(
    meta_task: tuple[MetaTask, torch.optim.SGD], setting: Setting
) -> None:
    task, optimizer = meta_task
    batches = list(setting.train_loader().epoch(1))
    task.train()
    task.start_epoch(1)
    task.step(task, optimizer, batches[0], setting.fabric, RECIPE)
    before = copy.deepcopy(task.state_dict())
    momentum = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    after = task.meta_step(batches[1], optimizer)
    assert after.isfinite()
    for key, value in task.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, before[key]) != ("_weight." in key), key
    assert all(
        torch.equal(state["momentum_buffer"], own)
        for state, own in zip(optimizer.state.values(), momentum, strict=True)
    )
    assert all(parameter.grad is None for parameter in task.parameters())


def test_the_weight_networks_are_not_in_the_students_optimiser(
    meta_task: tuple[MetaTask, torch.optim.SGD],
) -> None:
    task, optimizer = meta_task
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in task.weighing.values()}
    assert held | {id(parameter) for parameter in task.weighing.values()} == {id(p) for p in task.parameters()}


def test_meta_steps_come_every_few_steps_and_at_the_end_of_an_epoch(
    meta_task: tuple[MetaTask, torch.optim.SGD], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, optimizer = meta_task
    due: list[int] = []
    monkeypatch.setattr(MetaTask, "meta_step", lambda self, batch, optimizer: due.append(self.done))
    task.train()
    for epoch in (1, 2):
        task.start_epoch(epoch)
        for batch in setting.train_loader().epoch(epoch):
            task.step(task, optimizer, batch, setting.fabric, RECIPE)
    assert due == [2, 4, 5] * 2
    assert isinstance(task.hard, HardBuffer)
    assert task.hard.full


def test_meta_steps_lower_the_loss_after_the_look_ahead(
    meta_task: tuple[MetaTask, torch.optim.SGD], setting: Setting
) -> None:
    task, optimizer = meta_task
    batches = list(setting.train_loader().epoch(1))
    task.train()
    task.start_epoch(1)
    task.step(task, optimizer, batches[0], setting.fabric, RECIPE)
    losses = torch.stack([task.meta_step(batches[1], optimizer) for _ in range(8)])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "wrn_16_1", "mobilenetv2", "shufflenet_v2"])
def test_a_head_turns_the_last_map_into_the_networks_own_logits(name: str, data: ImageData) -> None:
    torch.manual_seed(1)
    network = new_network(name, data)
    head = head_of(network, data, device=torch.device("cpu"))
    images = torch.randn(3, *data.shape)
    with torch.no_grad():
        says = tap(network, frozenset({"stages"})).eval()(images)
        torch.testing.assert_close(head(says.stages[-1]), says.logits)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert not head.training


def test_a_head_answers_in_the_datas_class_order(data: ImageData) -> None:
    network = new_network("resnet8", data)
    shuffled = replace(network, card=replace(network.card, classes=tuple(reversed(network.card.classes))))
    maps = torch.randn(2, *_last_map(network, data))
    with torch.no_grad():
        plain = head_of(network, data, device=torch.device("cpu"))(maps)
        turned = head_of(shuffled, data, device=torch.device("cpu"))(maps)
    torch.testing.assert_close(turned, plain.flip(1))


def _last_map(network: Network, data: ImageData) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(tap(network, frozenset({"stages"})).eval()(torch.zeros(2, *data.shape)).stages[-1].shape[1:])


def test_a_transformer_has_no_head_for_maps(data: ImageData) -> None:
    network = new_network("distillation.pipeline_networks:vit", data)
    with pytest.raises(InputError, match=r"cannot be cut|no map \[B, C, H, W\]"):
        head_of(network, data, device=torch.device("cpu"))


def test_a_corrupted_teacher_is_confident_and_never_answers_what_it_did(data: ImageData) -> None:
    torch.manual_seed(2)
    network = new_network("resnet8", data)
    bad = corrupted(network, seed=0)
    images = torch.randn(20, *data.shape)
    with torch.no_grad():
        own, other = network.model.eval()(images), bad.model.eval()(images)
    torch.testing.assert_close(own.sort(1).values, other.sort(1).values)
    assert not (own.argmax(1) == other.argmax(1)).any()
    assert torch.equal(network.classifier.weight.sort(0).values, bad.classifier.weight.sort(0).values)


def test_camkd_gives_a_corrupted_teacher_less_weight_than_the_good_one(
    data: ImageData, setting: Setting, networks: list[Network], tmp_path: Path
) -> None:
    larger = replace(setting, recipe=Recipe(epochs=8, batch_size=16, lr=0.05))
    good = train_alone(twin(networks[1]), larger, RunDirectory(tmp_path / "good"), label="good").network
    trained = train("camkd", [networks[0], good, corrupted(good, seed=1)], setting, tmp_path / "run")
    first, second = trained.measured["teacher_weights"].values()
    assert first > 0.6 > 0.4 > second


def test_cached_teachers_serve_the_methods_on_logits(networks: list[Network], setting: Setting, tmp_path: Path) -> None:
    setting = replace(setting, data=replace(setting.data, augment="none"))
    method = method_class("aekd")()
    live = masters_of(networks[1:], method, setting)
    cached = [replace(m, says=cached_teacher(m.says, setting, tmp_path / "cache", needs=frozenset())) for m in live]
    runs = [
        train_from_many(twin(networks[0]), masters, method, setting, RunDirectory(tmp_path / kind))
        for kind, masters in (("live", live), ("cached", cached))
    ]
    for record, other in zip(*(run.history for run in runs), strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert "training images" in runs[1].sections[0].text
    assert "test images" in runs[0].sections[0].text


def refused(method: ManyTeachers, networks: Sequence[Network], setting: Setting, **changes: Any) -> str:
    masters = changes.pop("masters", None)
    with pytest.raises(InputError) as caught:
        rehearse_many(
            networks[0],
            masters_of(networks[1:], method, setting) if masters is None else masters,
            method,
            replace(setting, **changes),
        )
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_work_is_refused_in_one_line(networks: list[Network], setting: Setting, data: ImageData) -> None:
    aver, camkd, mmkd = (method_class(name)() for name in ("aver", "camkd", "mmkd"))
    assert refused(aver, networks, setting, masters=[]) == "aver learns from several teachers; give at least one"
    twice = masters_of([networks[1], networks[1]], aver, setting)
    twins = [replace(master, name="A") for master in twice]
    assert "two teachers are named 'A'" in refused(aver, networks, setting, masters=twins)

    class Other(nn.Module):
        def signals(self, batch: Any) -> Any:
            return twice[0].says.signals(batch)._replace(logits=torch.zeros(16, 7))

    fewer = [twice[0], Master("B", Other())]
    assert "B answers for 7 classes, the student for 10" in refused(aver, networks, setting, masters=fewer)
    headless = [replace(master, head=None) for master in masters_of(networks[1:], camkd, setting)]
    assert "comes without one" in refused(camkd, networks, setting, masters=headless)
    adam = replace(RECIPE, optimizer="adam", lr=1e-3)
    assert "set it to sgd" in refused(mmkd, networks, setting, recipe=adam)
    odd = replace(RECIPE, batch_size=12)
    assert "multiple of recipe.batch_size, 12" in refused(mmkd, networks, setting, recipe=odd)


def test_a_rehearsal_changes_neither_student_nor_random_numbers(networks: list[Network], setting: Setting) -> None:
    method = method_class("mmkd")(**OPTIONS["mmkd"])
    before, state = copy.deepcopy(networks[0].model.state_dict()), torch.get_rng_state()
    masters = masters_of(networks[1:], method, setting)
    rehearse_many(networks[0], masters, method, setting)
    assert all(torch.equal(value, before[key]) for key, value in networks[0].model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
