"""Training a group of peers that teach each other, of which one is deployed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.data.batch import Batch
from stillroom.distillation.networks import Network, twin
from stillroom.distillation.online._method import Method
from stillroom.distillation.online.peers import branch_point
from stillroom.distillation.online.task import OnlineTask, PeerFigures, peer_figures
from stillroom.distillation.training import Setting, Trained
from stillroom.reports.page import Figure, Picture, Section
from stillroom.reports.plots import training_curves
from stillroom.reports.tables import Cell, Column, Table
from stillroom.training.evaluate import to_device
from stillroom.training.loop import Evaluate
from stillroom.training.run import RunDirectory

__all__ = ["rehearse_online", "train_online"]


def rehearse_online(members: Sequence[Network], method: Method, setting: Setting, *, branch: str | None) -> None:
    """Refuse a group that cannot work, before anything is trained or written; the members stay as they are.

    Args:
        members: Networks of one architecture, each with weights of its own; the one to deploy first.
        method: An online method.
        setting: Data, recipe, seed and devices.
        branch: Where the members part: ``auto`` for in front of the last stage, the path of a module for behind it,
            none for complete networks.

    Raises:
        InputError: Too few members, a place where the network cannot be cut, or a method that cannot work with it.
    """
    task, sample = _task([twin(member) for member in members], method, setting, branch)
    task.rehearse(sample)


def train_online(
    members: Sequence[Network], method: Method, setting: Setting, run: RunDirectory, *, branch: str | None
) -> Trained:
    """Train a group of peers and return the first one.

    Args:
        members: Networks of one architecture, each with weights of its own, trained in place; the one to deploy first.
        method: An online method; a copy of it is trained.
        setting: Data, recipe, seed and devices.
        run: Where metrics and checkpoints go.
        branch: Where the members part, see :func:`rehearse_online`.

    Returns:
        The deployed network; beside it the ensemble of the peers, accuracies and diversity, and their section of the
        report.

    Raises:
        InputError: The method cannot work with these networks.
        TrainingDivergedError: The loss or a weight is not finite.
    """
    task, _ = _task(members, method, setting, branch)
    label = f"{len(members)} members, {method.card.name}"
    history = setting.fit(task, setting.train_loader(), run, label=label, evaluate=_evaluate(setting))
    figures = peer_figures(task, setting.eval_loader(setting.data.test), setting.fabric)
    peers = len(figures.peers)
    ensemble = task.group.release(slice(len(members) - peers, None)).eval()
    place = None if branch is None else branch_point(members[0], branch)
    return Trained(
        network=replace(members[0], model=members[0].model.eval()),
        history=history,
        measured={"branch": place, "member_accuracy": list(figures.members), **figures.record()},
        others={f"ensemble of {peers} peers": ensemble} if peers > 1 else {},
        sections=(_section(method, history, figures, place),),
        notes=_notes(method, peers),
    )


def _task(members: Sequence[Network], method: Method, setting: Setting, branch: str | None) -> tuple[OnlineTask, Batch]:
    device = setting.fabric.device
    for member in members:
        member.model.to(device)
    sample = to_device(next(iter(setting.train_loader().epoch(1))), device)
    task = OnlineTask.build(
        members,
        copy.deepcopy(method),
        sample,
        branch=branch,
        epochs=setting.recipe.epochs,
        seed=setting.seed,
    )
    return task, sample


def _evaluate(setting: Setting) -> Evaluate:
    sets = {"test": setting.data.test, "holdout": setting.data.holdout}
    loaders = {split: setting.eval_loader(images) for split, images in sets.items() if images is not None}

    def measure(task: nn.Module) -> dict[str, float]:
        assert isinstance(task, OnlineTask)
        return {
            f"{split}_{name}": value
            for split, loader in loaders.items()
            for name, value in peer_figures(task, loader, setting.fabric).record().items()
        }

    return measure


def _section(method: Method, history: list[dict[str, Any]], figures: PeerFigures, place: str | None) -> Section:
    def curve(key: str, factor: float = 1.0) -> list[float]:
        return [factor * float(record.get(f"test_{key}", float("nan"))) for record in history]

    deployed = "leader" if method.has_leader else "peer 1"
    ensembles = {"ensemble": "ensemble of the peers", "gate": "gated ensemble"}
    accuracies = {"mean of the peers": curve("mean_accuracy")}
    accuracies |= {ensembles[name]: curve(f"{name}_accuracy") for name in figures.combined}
    accuracies[f"{deployed}, deployed"] = curve("accuracy")
    parts: list[Figure | Picture | Table] = [Figure(training_curves({"test top-1 [%]": accuracies}))]
    if figures.diversity is not None:
        apart = {"distance": {"two peers": curve("diversity")}}
        apart |= {"disagreement [%]": {"two peers": curve("disagreement", 100)}}
        parts.append(Figure(training_curves(apart)))
    others = range(1, len(figures.peers) + 1) if method.has_leader else range(2, len(figures.peers) + 1)
    names = [f"{deployed}, deployed", *(f"peer {number}" for number in others), "mean of the peers"]
    names += [ensembles[name] for name in figures.combined]
    reached = [*figures.members, figures.mean, *figures.combined.values()]
    rows: list[list[Cell]] = [[name, accuracy] for name, accuracy in zip(names, reached, strict=True)]
    shared = f"The members share everything up to and including {place}" if place else "The members share no layer"
    return Section(
        title="Peers",
        text=f"{shared}. The ensemble answers with the mean of the peers' logits. Distance is the mean Euclidean one "
        "between the class distributions of two peers, disagreement how often they answer different classes, both on "
        "the test set.",
        parts=[*parts, Table([Column("member"), Column("test top-1 [%]", ".2f")], rows)],
    )


def _notes(method: Method, peers: int) -> tuple[str, ...]:
    notes = []
    if method.has_leader and peers == 1:
        notes.append(
            "There is a single peer beside the leader: its target is its own answer, so it learns from the labels and "
            "from being imitated alone."
        )
    if method.card.standing == "reconstructed":
        notes.append(
            f"{method.card.name} is reconstructed from the paper's abstract: this is no replication of its results."
        )
    return tuple(notes)
