"""Train a group of students under a method, beside the same students on their own, and report both."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.errors import InputError
from stillroom.graphs.evaluate import measure_name
from stillroom.graphs.methods import method_class
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.node_data import NodeData
from stillroom.graphs.online._method import Method
from stillroom.graphs.online.independent import Independent
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.report import distill_page, group_table
from stillroom.graphs.sources import load_graphs
from stillroom.graphs.store import StudentCard, save_student
from stillroom.graphs.training import (
    Init,
    SamplingOptions,
    Setting,
    TrainedGroup,
    method_notes,
    new_students,
    rehearse,
    train_group,
)
from stillroom.hyperparameters import method_options
from stillroom.reports.page import environment, write_page
from stillroom.reports.tables import Table
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.loop import check_intervals
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

__all__ = ["NETWORK", "RECIPE", "Distilled", "distill"]

NETWORK = GNNOptions()
RECIPE = Recipe(epochs=200, batch_size=1024, optimizer="adam", lr=0.005, weight_decay=5e-4, schedule="constant")
MAY_CHANGE = {"out", "device", "tensorboard"}


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns: the chosen student, all of the group, the table, and what is in ``result.json``."""

    model: nn.Module
    group: TrainedGroup
    alone: TrainedGroup | None
    table: Table
    result: dict[str, Any]
    out: Path


def distill(
    *,
    method: str | Method = "oad",
    students: int | Sequence[nn.Module] = 4,
    init: Init = "independent",
    network: GNNOptions = NETWORK,
    data: str | GraphDataOptions | NodeData = "sbm",
    sbm: SBMOptions | None = None,
    sampling: SamplingOptions | None = None,
    recipe: Recipe = RECIPE,
    baseline: bool = True,
    out: str | Path = "runs/graphs",
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "32",
    eval_every: int = 5,
    tensorboard: bool = False,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Distilled:
    """Train students of a graph neural network that teach each other, and the same students on their own.

    Every student is kept as it was at its best epoch on the validation nodes; the one that is best there is exported.
    No choice is made on the test nodes.

    Args:
        method: The method, see ``stillroom methods``.
        students: How many; in Python also modules of your own that return (logits, hidden layers), which are copied.
        init: independent gives every student weights of its own, copy those of the first to all (as Alignahead's code).
        network: Shape of the students.
        data: The data set and its options; in Python also graphs that are loaded already.
        sbm: What the generated graph is like.
        sampling: How graphs become batches.
        recipe: Epochs, optimiser and learning rates.
        baseline: Also train the same students on the labels alone, from the same weights.
        out: The run directory.
        seed: Seed of initial weights, order, sampled neighbours and dropout.
        device: Where to train.
        precision: Precision of the training.
        eval_every: Epochs between evaluations.
        tensorboard: Also log to TensorBoard files.
        show_progress: Show progress on standard error.
        resume: Continue the killed run in ``out``, to the same result.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        TrainingDivergedError: The loss became NaN or infinite.
        OutputError: A result could not be written.
    """
    chosen = method_class(method)() if isinstance(method, str) else method
    sampling, sbm = sampling or SamplingOptions(), sbm or SBMOptions()
    check_intervals(eval_every, None)
    options = GraphDataOptions(name=data) if isinstance(data, str) else data
    graphs = options if isinstance(options, NodeData) else load_graphs(options, sbm)
    fabric = make_fabric(device, precision)
    own = None if isinstance(students, int) else [copy.deepcopy(student) for student in students]
    if own and chosen.shares_first_layer:
        raise InputError(
            f"{chosen.card.name} gives its students one first layer in common, which modules of your own do not have; "
            "pass their number and network=..."
        )
    config: dict[str, Any] = {
        "method": {"name": chosen.card.name, **method_options(chosen)},
        "students": students if isinstance(students, int) else [type(student).__name__ for student in students],
        "init": init,
        "network": None if own is not None else asdict(network),
        "data": {"name": options.name} if isinstance(options, NodeData) else asdict(options),
        "sbm": asdict(sbm),
        "sampling": asdict(sampling),
        "recipe": asdict(recipe),
        "baseline": baseline,
        "out": str(out),
        "seed": seed,
        "device": device,
        "precision": precision,
        "eval_every": eval_every,
        "tensorboard": tensorboard,
    }
    setting = Setting(
        data=graphs,
        recipe=recipe,
        seed=seed,
        fabric=fabric,
        sampling=sampling,
        eval_every=eval_every,
        resume=resume,
        show_progress=show_progress,
        tensorboard=tensorboard,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        count = len(own) if own is not None else int(students)  # type: ignore[arg-type]
        members = own or new_students(graphs, network, count, init=init, shared=chosen.shares_first_layer)
        alike = [copy.deepcopy(member) for member in members]
        rehearse(members, chosen, setting)
    run = RunDirectory.create(out, config, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE, fabric=fabric)
    alone: TrainedGroup | None = None
    if baseline and chosen.card.name != Independent.card.name:
        alone = train_group(alike, Independent(), setting, run.part("alone"), "alone")
    group = train_group(members, chosen, setting, run, chosen.card.name)
    measure = measure_name(graphs.multilabel)
    about = graphs.describe()
    best = group.students[group.chosen]
    card = StudentCard(
        network=best.options if type(best) is GNN else None,
        in_features=graphs.num_features,
        classes=graphs.classes,
        multilabel=graphs.multilabel,
        graph=_graph(options, graphs),
        extra={
            "method": config["method"],
            "seed": seed,
            "data": graphs.name,
            "measure": measure,
            "val": group.val[group.chosen],
            "test": group.test[group.chosen],
        },
    )
    save_student(run.path, best, card)
    groups = {f"{chosen.card.name}": group} if alone is None else {"alone": alone, chosen.card.name: group}
    table = group_table(groups, measure)
    result: dict[str, Any] = {
        "data": about,
        "method": config["method"],
        "measure": measure,
        "seed": seed,
        "groups": {name: each.record() for name, each in groups.items()},
        "chosen": group.chosen,
        "notes": method_notes(chosen, recipe),
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    command = shlex.join(["stillroom", "graphs", "distill", "--config", str(run.config), "--out", "NEW_DIRECTORY"])
    write_page(run.report, distill_page(chosen.card, groups, result, config, command))
    return Distilled(best, group, alone, table, result, Path(out))


def _graph(options: GraphDataOptions | NodeData, graphs: NodeData) -> dict[str, object]:
    """Say what became of the data before the students saw them."""
    said: dict[str, object] = {"notes": list(graphs.notes)}
    if isinstance(options, NodeData):
        return said
    return {**said, "undirected": options.undirected, "self_loops": options.self_loops, "normalise": options.normalise}
