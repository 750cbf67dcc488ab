"""Training a group end to end: what is measured and deployed, resuming, and what is refused before the start."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.methods import method_class
from stillroom.distillation.networks import Network, new_network
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.diversity import disagreement, diversity
from stillroom.distillation.online.okddip import OKDDip
from stillroom.distillation.online.okdmde import OKDMDE
from stillroom.distillation.online.one import ONE
from stillroom.distillation.online.training import rehearse_online, train_online
from stillroom.distillation.training import Setting, Trained
from stillroom.errors import InputError
from stillroom.reports.page import Page, write_page
from stillroom.training.evaluate import predictions
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

VIT = "distillation.pipeline_networks:vit"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataOptions(name="digits", per_class=10, holdout=0.2))


def setting(data: ImageData, **options: Any) -> Setting:
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05)
    given: dict[str, Any] = {"data": data, "recipe": recipe, "seed": 0, "show_progress": False}
    return Setting(**{**given, "fabric": make_fabric("cpu"), **options})


def peers(data: ImageData, count: int = 4, name: str = "resnet8") -> list[Network]:
    torch.manual_seed(0)
    return [new_network(name, data) for _ in range(count)]


def logits_of(model: torch.nn.Module, chosen: Setting) -> tuple[Tensor, Tensor]:
    return predictions(model, chosen.eval_loader(chosen.data.test), chosen.fabric)


def words(trained: Trained, folder: Path) -> str:
    page = folder / "page.html"
    write_page(page, Page(kind="test", title="t", headline="h", sections=trained.sections))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))


@pytest.mark.parametrize(
    ("name", "branch", "network"),
    [
        ("okddip", "auto", "resnet8"),
        ("okddip", "layer1", "resnet8"),
        ("okddip", None, "resnet8"),
        ("okdmde", "auto", VIT),
        ("dml", None, "resnet8"),
        ("one", "auto", VIT),
        ("clilr", "auto", "resnet8"),
        ("independent", "auto", "resnet8"),
    ],
)
def test_what_is_measured_is_what_the_networks_answer(
    data: ImageData, tmp_path: Path, name: str, branch: str | None, network: str
) -> None:
    chosen, method = setting(data), method_class(name)()
    trained = train_online(peers(data, name=network), method, chosen, RunDirectory(tmp_path / "run"), branch=branch)
    deployed, target = logits_of(trained.network.model, chosen)
    accuracy = 100 * (deployed.argmax(1) == target).float().mean().item()
    last = trained.history[-1]
    assert [record["epoch"] for record in trained.history] == [1, 2]
    assert trained.test_accuracy == pytest.approx(accuracy)
    assert trained.measured["accuracy"] == trained.measured["member_accuracy"][0] == last["test_accuracy"]
    ((title, ensemble),) = trained.others.items()
    assert title == ("ensemble of 3 peers" if method.has_leader else "ensemble of 4 peers")
    joint, _ = logits_of(ensemble, chosen)
    joint_accuracy = 100 * (joint.argmax(1) == target).float().mean().item()
    assert last["test_ensemble_accuracy"] == pytest.approx(joint_accuracy, abs=0.4)  # ties of rounding
    own = trained.measured["member_accuracy"][method.has_leader :]
    assert last["test_mean_accuracy"] == pytest.approx(sum(own) / len(own))
    every = torch.stack([logits_of(_member(ensemble, n), chosen)[0] for n in range(len(own))], 1)
    assert last["test_diversity"] == pytest.approx(diversity(every).item(), rel=1e-3)
    assert last["test_disagreement"] == pytest.approx(disagreement(every).item(), abs=4e-3)
    assert ("test_gate_accuracy" in last) == (name == "one")
    assert {key.removeprefix("test_") for key in last if key.startswith("test_")} == {
        key.removeprefix("holdout_") for key in last if key.startswith("holdout_")
    }
    assert trained.best_on_holdout() is not None
    said = words(trained, tmp_path)
    assert f"{accuracy:.2f}" in said
    assert ("leader, deployed" if method.has_leader else "peer 1, deployed") in said
    assert trained.measured["branch"] == {"auto": "blocks.2" if network == VIT else "layer2"}.get(str(branch), branch)
    assert any("reconstructed" in note for note in trained.notes) == (name == "okdmde")


def _member(ensemble: Any, number: int) -> torch.nn.Module:
    part = ensemble.members[number]
    return part if ensemble.trunk is None else torch.nn.Sequential(ensemble.trunk, part)


def test_a_leader_with_one_peer_trains_and_says_what_that_means(data: ImageData, tmp_path: Path) -> None:
    trained = train_online(peers(data, 2), OKDDip(), setting(data), RunDirectory(tmp_path / "run"), branch="auto")
    assert trained.others == {}
    assert "test_diversity" not in trained.history[-1]
    assert any("single peer" in note for note in trained.notes)
    assert "leader" in words(trained, tmp_path)


def test_epochs_without_evaluation_are_left_out_of_the_curves(data: ImageData, tmp_path: Path) -> None:
    chosen = setting(data, eval_every=2)
    trained = train_online(peers(data, 3), OKDDip(), chosen, RunDirectory(tmp_path / "run"), branch="auto")
    assert ["test_accuracy" in record for record in trained.history] == [False, True]


def test_half_precision_trains(data: ImageData, tmp_path: Path) -> None:
    chosen = setting(data, fabric=make_fabric("cpu", "bf16-mixed"))
    trained = train_online(peers(data), OKDMDE(), chosen, RunDirectory(tmp_path / "run"), branch="auto")
    assert 0 <= trained.test_accuracy <= 100


def test_the_method_that_is_handed_over_stays_as_it_was(data: ImageData, tmp_path: Path) -> None:
    method = OKDDip()
    train_online(peers(data, 3), method, setting(data), RunDirectory(tmp_path / "run"), branch="auto")
    assert list(method.parameters()) == []


class Killed(BaseException):
    """Stands for a kill: nothing on the way catches it."""


def killed(plain: type[Method], at: int) -> Method:
    """Return the method, dying in the step of that number."""
    left = at

    class Dying(plain):  # type: ignore[misc, valid-type]
        def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return super().forward(said, target, weight)

    return Dying(rampup=1)


@pytest.mark.parametrize(("plain", "at"), [(OKDMDE, 2), (OKDMDE, 9), (ONE, 8)])
def test_a_killed_and_resumed_group_ends_with_the_same_weights(
    data: ImageData, tmp_path: Path, plain: Any, at: int
) -> None:
    recipe = Recipe(epochs=2, batch_size=12, lr=0.05)  # 80 images: 6 steps an epoch
    chosen = setting(data, recipe=recipe, checkpoint_every=2)
    expected = train_online(peers(data, 3), plain(rampup=1), chosen, RunDirectory(tmp_path / "a"), branch="auto")
    with pytest.raises(Killed):
        train_online(peers(data, 3), killed(plain, at), chosen, RunDirectory(tmp_path / "b"), branch="auto")
    again = replace(chosen, resume=True)
    torch.manual_seed(5)
    found = train_online(peers(data, 3), plain(rampup=1), again, RunDirectory(tmp_path / "b"), branch="auto")
    for key, value in expected.network.model.state_dict().items():
        assert torch.equal(found.network.model.state_dict()[key], value), key
    ours, theirs = (next(iter(trained.others.values())).state_dict() for trained in (expected, found))
    assert all(torch.equal(theirs[key], value) for key, value in ours.items())
    assert found.measured == expected.measured


def test_a_rehearsal_changes_nothing_and_draws_nothing(data: ImageData, tmp_path: Path) -> None:
    members = peers(data, 3)
    before = [{key: value.clone() for key, value in member.model.state_dict().items()} for member in members]
    random = torch.get_rng_state()
    rehearse_online(members, OKDDip(), setting(data), branch="auto")
    assert torch.equal(random, torch.get_rng_state())
    for member, state in zip(members, before, strict=True):
        assert all(torch.equal(member.model.state_dict()[key], value) for key, value in state.items())
        assert not any(module._forward_hooks for module in member.model.modules())


@pytest.mark.parametrize(
    ("method", "count", "branch", "batch", "words"),
    [
        (OKDDip(), 1, "auto", 16, "needs at least 1 peer beside the leader"),
        (OKDDip(), 3, "layer9", 16, "no module 'layer9'"),
        (ONE(), 3, None, 16, "shared trunk"),
        (ONE(), 3, "auto", 1, "larger batch"),
    ],
)
def test_a_rehearsal_refuses_what_cannot_work(
    data: ImageData, method: Method, count: int, branch: str | None, batch: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        rehearse_online(
            peers(data, count), method, setting(data, recipe=Recipe(epochs=1, batch_size=batch)), branch=branch
        )
