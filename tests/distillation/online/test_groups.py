"""Groups of peers: what they share, what they say, what reaches them, and where they cannot part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillation.method_inputs import HostReads
from distillation.pipeline_networks import vit
from stillroom.data.batch import Batch
from stillroom.distillation.methods import FAMILIES, method_class
from stillroom.distillation.networks import Network, twin
from stillroom.distillation.online._method import Method
from stillroom.distillation.online.clilr import CLILR
from stillroom.distillation.online.dml import DML
from stillroom.distillation.online.independent import Independent
from stillroom.distillation.online.okddip import OKDDip
from stillroom.distillation.online.okdmde import OKDMDE
from stillroom.distillation.online.one import ONE
from stillroom.distillation.online.peers import Ensemble, PeerGroup
from stillroom.distillation.online.task import OnlineTask
from stillroom.errors import InputError
from stillroom.models.cost import count_flops, count_parameters
from stillroom.models.create import create_model
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard
from stillroom.models.taps import find_taps

CLASSES = 5
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = Batch(IMAGES, torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(6))
NAMES = sorted(FAMILIES["online"])
BRANCHED = [(name, "auto") for name in NAMES] + [(name, None) for name in NAMES if name not in ("one", "clilr")]


def network(model: nn.Module, taps: TapPaths | None = None) -> Network:
    card = ModelCard(
        architecture="test",
        num_classes=CLASSES,
        classes=tuple("abcde"),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        input_shape=(3, 16, 16),
    )
    return Network(model, taps or find_taps(model, IMAGES[:1]), card)


def members(count: int, name: str = "resnet8") -> list[Network]:
    torch.manual_seed(0)
    if name == "vit":
        return [network(vit(CLASSES, 3, 16)) for _ in range(count)]
    return [network(create_model(name, num_classes=CLASSES, in_channels=3, image_size=16)) for _ in range(count)]


def task_of(method: Method, peers: Sequence[Network], branch: str | None = "auto", batch: Batch = BATCH) -> OnlineTask:
    return OnlineTask.build(peers, method, batch, branch=branch, epochs=10, seed=0)


@pytest.mark.parametrize("name", ["resnet8", "vit", "mobilenetv2", "wrn_16_1"])
def test_branches_share_the_trunk_and_nothing_else(name: str) -> None:
    peers = members(3, name)
    group = PeerGroup.form(peers, Independent(), IMAGES[:2], "auto")
    assert group.trunk is not None
    trunk = count_parameters(group.trunk)
    branches = [count_parameters(member) for member in group.members]
    assert trunk > 0
    assert branches == [branches[0]] * 3
    assert trunk + branches[0] == count_parameters(peers[0].model)
    assert count_parameters(group) == trunk + sum(branches)


@pytest.mark.parametrize("name", ["resnet8", "vit", "wrn_16_1"])
@pytest.mark.parametrize("branch", ["auto", None])
def test_every_member_says_what_its_parts_say(name: str, branch: str | None) -> None:
    peers = members(3, name)
    expected = [twin(peer).model.eval() for peer in peers]
    group = PeerGroup.form(peers, OKDMDE(), IMAGES[:2], branch).eval()
    with torch.no_grad():
        said = group(IMAGES)
        torch.testing.assert_close(group.first(IMAGES), expected[0](IMAGES))
        if branch is None:
            for number, model in enumerate(expected):
                torch.testing.assert_close(said.logits[:, number], model(IMAGES))
        else:
            assert group.trunk is not None
            features = group.trunk(IMAGES)
            for number, member in enumerate(group.members):
                torch.testing.assert_close(said.logits[:, number], member.model(features))
        torch.testing.assert_close(said.logits[:, 0], expected[0](IMAGES))
    assert said.maps is not None
    assert said.maps.shape[:2] == (6, 3)
    assert said.maps.ndim == 5
    assert [weight.shape[0] for weight in said.classifiers] == [CLASSES] * 3


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_the_gate_reads_the_trunk_as_a_map(name: str) -> None:
    task = task_of(ONE(), members(2, name))
    said = task.say(IMAGES)
    assert said.trunk is not None
    assert said.trunk.ndim == 4
    assert task.method.gate.linear.in_features == said.trunk.shape[1]  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "branch"), BRANCHED)
def test_a_step_moves_every_member_and_the_first_network_in_place(name: str, branch: str | None) -> None:
    peers = members(4)
    before = [twin(peer) for peer in peers]
    task = task_of(method_class(name)(), peers, branch).train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task(BATCH)["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.parameters())
    optimizer.step()
    task.eval()
    with torch.no_grad():
        torch.testing.assert_close(task.predict(IMAGES), peers[0].model.eval()(IMAGES))
    for peer, old in zip(peers, before, strict=True):
        assert not torch.equal(peer.model.get_parameter("linear.weight"), old.model.get_parameter("linear.weight"))
        trunk_moved = not torch.equal(peer.model.get_parameter("conv1.weight"), old.model.get_parameter("conv1.weight"))
        assert trunk_moved == (peer is peers[0] or branch is None)


@pytest.mark.parametrize(("name", "branch"), [("okdmde", None), ("one", "auto"), ("clilr", "auto")])
def test_a_compiled_step_is_the_eager_one(name: str, branch: str | None) -> None:
    torch.compiler.reset()
    task = task_of(method_class(name)(), members(3), branch).train()
    compiled = torch.compile(task_of(method_class(name)(), members(3), branch).train(), backend="eager", fullgraph=True)
    expected, found = task(BATCH), compiled(BATCH)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_steps_reduce_the_loss_and_return_parts_without_graph(name: str) -> None:
    task = task_of(method_class(name)(), members(3)).train()
    task.start_epoch(10)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        parts = task(BATCH)
        parts["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(parts["loss"].detach())
        assert not any(value.requires_grad for key, value in parts.items() if key != "loss")
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reads_nothing_on_the_host(name: str) -> None:
    task = task_of(method_class(name)(), members(3)).train()
    with HostReads() as reads:
        task(BATCH)["loss"].backward()
    assert reads.found == []


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gives_a_full_precision_loss(name: str) -> None:
    task = task_of(method_class(name)(), members(3)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = task(BATCH)
    parts["loss"].backward()
    assert parts["loss"].dtype is torch.float32
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.parameters())


def test_rescaling_divides_the_gradient_of_the_trunk_alone() -> None:
    class Unscaled(CLILR):
        def at_trunk(self, features: Tensor, members: int) -> Tensor:
            return features

    # Without ramp-up gradients differ by the rescaling alone.
    tasks = [task_of(kind(rampup=0), members(4)).train() for kind in (CLILR, Unscaled)]
    for task in tasks:
        task(BATCH)["loss"].backward()
    scaled, plain = (dict(task.named_parameters()) for task in tasks)
    for name, parameter in scaled.items():
        factor = 4.0 if "trunk" in name else 1.0
        assert parameter.grad is not None
        torch.testing.assert_close(factor * parameter.grad, plain[name].grad, rtol=1e-4, atol=1e-6)


def test_the_ramp_up_follows_the_epochs() -> None:
    task = task_of(OKDDip(rampup=4), members(3))
    weights = []
    for epoch in (1, 3, 5, 9):
        task.start_epoch(epoch)
        weights.append(float(task.weight))
    assert weights == pytest.approx([0.006738, 0.286505, 1.0, 1.0], rel=1e-4)
    task = task_of(DML(), members(3))
    task.start_epoch(1)
    assert float(task.weight) == 1


def test_the_own_modules_start_from_the_seed_alone_and_draw_nothing() -> None:
    def query(seed: int, draws: int) -> Tensor:
        peers = members(3)
        torch.rand(draws)
        before = torch.get_rng_state()
        task = OnlineTask.build(peers, OKDDip(), BATCH, branch="auto", epochs=1, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return task.state_dict()["method.attention.query.weight"]

    assert torch.equal(query(3, 0), query(3, 5))
    assert not torch.equal(query(3, 0), query(4, 0))


def test_the_ensemble_runs_what_is_shared_once() -> None:
    peers = members(4)
    group = PeerGroup.form(peers, OKDDip(), IMAGES[:2], "auto").eval()
    with torch.no_grad():
        expected = group(IMAGES).logits[:, 1:].mean(1)
    assert group.trunk is not None
    trunk, branch = count_parameters(group.trunk), count_parameters(group.members[0])
    ensemble = group.release(slice(1, None)).eval()
    assert isinstance(ensemble, Ensemble)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(IMAGES), expected)
    assert count_parameters(ensemble) == trunk + 3 * branch
    one = count_flops(peers[0].model, (3, 16, 16))
    assert one < count_flops(ensemble, (3, 16, 16)) < 3 * one
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in peers[0].model.modules())


class Overwriting(nn.Module):
    """Its second stage begins by overwriting what the first one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.two = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2, padding=1))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.two(self.one(x)).mean((2, 3)))
        return logits


class Headless(nn.Module):
    """Answers without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.two = nn.Conv2d(8, CLASSES, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).mean((2, 3))


def single_stage() -> list[Network]:
    return [replace(peer, taps=peer.taps._replace(stages=("layer3",))) for peer in members(2)]


def different() -> list[Network]:
    return [*members(1), *members(1, "resnet14")]


STAGES = TapPaths(("one", "two"), classifier="head")


@pytest.mark.parametrize(
    ("method", "peers", "branch", "words"),
    [
        (OKDDip(), lambda: members(1), "auto", "okddip needs at least 1 peer beside the leader, 2 networks in all"),
        (OKDMDE(), lambda: members(2), "auto", "okdmde needs at least 2 peers beside the leader, 3 networks in all"),
        (DML(), lambda: members(1), None, "dml needs at least 2 peers"),
        (CLILR(), lambda: members(1), "auto", "clilr needs at least 2 peers"),
        (ONE(), lambda: members(3), None, "one needs branches on a shared trunk; give --branch"),
        (CLILR(), lambda: members(3), None, "clilr needs branches on a shared trunk"),
        (OKDDip(), lambda: members(3), "layer4", "no module 'layer4' to be cut at; did you mean 'layer"),
        (OKDDip(), lambda: members(3), "layer1.0.conv1", "cannot be cut|cut at the end of a stage"),
        (OKDDip(), single_stage, "auto", "one stage only"),
        (OKDDip(), different, None, "one architecture"),
        (OKDDip(), lambda: [twin(members(1)[0])] * 2, "auto", "start from the same weights"),
        (OKDDip(), lambda: [network(Overwriting(), STAGES) for _ in range(3)], "one", "overwrites what they share"),
        (OKDMDE(), lambda: [network(Headless(), TapPaths(("one", "two"))) for _ in range(3)], "auto", "has none"),
        (
            OKDDip(),
            lambda: [network(Headless(), TapPaths(("one", "two"))) for _ in range(3)],
            "auto",
            "no final linear",
        ),
        (OKDDip(factor=65), lambda: members(3), "auto", "factor is 65; it must be between 1 and the 64 features"),
    ],
)
def test_groups_that_cannot_work_are_refused_in_one_line(
    method: Method, peers: Any, branch: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        task_of(method, peers(), branch)
    assert "\n" not in str(raised.value)


def test_the_gate_cannot_be_trained_on_single_samples() -> None:
    single = Batch(*(tensor[:1] for tensor in BATCH))
    with pytest.raises(InputError, match="use a larger batch"):
        task_of(ONE(), members(2), batch=single)
