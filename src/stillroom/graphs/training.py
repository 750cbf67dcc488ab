"""Training a group of students under a method, and what is measured of it."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.graphs.evaluate import Evaluator, measure_name
from stillroom.graphs.loaders import SampledNodes, WholeGraphs
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.node_data import NodeData
from stillroom.graphs.online._method import Method
from stillroom.graphs.online.agreement import total
from stillroom.graphs.smoothing import dirichlet_energy, mean_average_distance
from stillroom.graphs.structure import edge_kernel, in_edge_log_softmax, structure_kl
from stillroom.graphs.task import GroupTask, InTurns, ask
from stillroom.training.evaluate import evaluation_mode, to_device
from stillroom.training.loop import Evaluate, fit
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Init",
    "LayerFigures",
    "SamplingOptions",
    "Setting",
    "TrainedGroup",
    "method_notes",
    "new_students",
    "rehearse",
    "train_group",
]

Init = Literal["independent", "copy"]

CHECKPOINT_SECONDS = 10.0  # an epoch on a small graph is shorter than writing a checkpoint


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How graphs become batches.

    Args:
        fanout: Neighbours drawn at every step away from recipe.batch_size training nodes, -1 for all: one number for
            each layer, that of the classes included. Without, graphs are taken whole.
        graphs_per_batch: Whole graphs in a batch, where there are several.

    Raises:
        InputError: A value is outside its range.
    """

    fanout: tuple[int, ...] = ()
    graphs_per_batch: int = 1

    def __post_init__(self) -> None:
        if any(size != -1 and size < 1 for size in self.fanout):
            raise InputError(f"sampling.fanout is {list(self.fanout)}; every number must be at least 1, or -1 for all")
        if self.graphs_per_batch < 1:
            raise InputError(f"sampling.graphs_per_batch is {self.graphs_per_batch}; it must be at least 1")
        if self.fanout and self.graphs_per_batch > 1:
            raise InputError("sampling.graphs_per_batch is for whole graphs; set it, or sampling.fanout")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every training on a data set has in common."""

    data: NodeData
    recipe: Recipe
    seed: int
    fabric: Fabric
    sampling: SamplingOptions = SamplingOptions()
    eval_every: int = 5
    resume: bool = False
    show_progress: bool = True
    tensorboard: bool = False

    def loader(self) -> WholeGraphs | SampledNodes:
        """Return the training batches."""
        if not self.sampling.fanout:
            return WholeGraphs(
                self.data.graphs,
                graphs_per_batch=self.sampling.graphs_per_batch,
                seed=self.seed,
                device=self.fabric.device,
            )
        return SampledNodes(
            self.data.graphs,
            fanout=self.sampling.fanout,
            batch_size=self.recipe.batch_size,
            seed=self.seed,
            device=self.fabric.device,
        )

    def evaluator(self) -> Evaluator:
        """Return what measures students."""
        layers = len(self.sampling.fanout) or None
        return Evaluator(self.data, device=self.fabric.device, layers=layers, batch_size=self.recipe.batch_size)


@dataclass(frozen=True)
class LayerFigures:
    """What the hidden layers of a group's students are like, a number for each layer.

    ``structure`` is the local-structure divergence of two students, mean over ordered pairs; NaN for a single student.
    ``similarity`` is the mean kernel of neighbours at Alignahead's scale, ``dirichlet`` and ``mad`` are the measures of
    over-smoothing, means over students.
    """

    structure: list[float]
    similarity: list[float]
    dirichlet: list[float]
    mad: list[float]


@dataclass(frozen=True)
class TrainedGroup:
    """A trained group, every student as it was at its best epoch on the validation nodes.

    Scores are percentages: accuracy, or micro-F1 where nodes have several labels.
    """

    students: list[nn.Module]
    history: list[dict[str, Any]]
    val: list[float]
    test: list[float]
    ensemble: float
    best_epochs: list[int]
    layers: LayerFigures
    seconds: float

    @property
    def chosen(self) -> int:
        """The student with the best validation score; the first of equals."""
        return max(range(len(self.val)), key=lambda m: self.val[m])

    @property
    def mean(self) -> float:
        """Mean test score of the students."""
        return sum(self.test) / len(self.test)

    @property
    def spread(self) -> float:
        """Standard deviation of the students' test scores; 0 for a single one."""
        if len(self.test) == 1:
            return 0.0
        return float(torch.tensor(self.test, dtype=torch.float64).std())

    def record(self) -> dict[str, Any]:
        """Return everything measured as plain data."""
        return {
            "val": self.val,
            "test": self.test,
            "test_mean": self.mean,
            "test_spread": self.spread,
            "test_chosen": self.test[self.chosen],
            "test_ensemble": self.ensemble,
            "best_epochs": self.best_epochs,
            "layers": vars(self.layers),
            "seconds": self.seconds,
        }


def new_students(
    data: NodeData, network: GNNOptions, count: int, *, init: Init = "independent", shared: bool = False
) -> list[nn.Module]:
    """Create students with weights from the global generator.

    Args:
        data: The graphs they will see.
        network: Their shape.
        count: How many.
        init: independent weights, or copies of the first student's.
        shared: Give all the same first layer.

    Raises:
        InputError: A number is out of range, or the network cannot be made.
    """
    if count < 1:
        raise InputError(f"students is {count}; it must be at least 1")
    if init not in ("independent", "copy"):
        raise InputError(f"init must be independent or copy, not {init!r}")
    first = GNN(data.num_features, data.classes, network)
    if data.sparse and not first.takes_sparse:
        raise InputError(f"{network.conv} does not take the sparse features of {data.name}; set data.dense")
    if init == "copy":
        students = [first, *(copy.deepcopy(first) for _ in range(count - 1))]
    else:
        students = [first, *(GNN(data.num_features, data.classes, network) for _ in range(count - 1))]
    if shared:
        for student in students[1:]:
            student.layers[0] = first.layers[0]
    return list(students)


def rehearse(students: Sequence[nn.Module], method: Method, setting: Setting) -> None:
    """Refuse what cannot work, before anything is trained or written; the students stay as they are.

    Raises:
        InputError: The method cannot work for these students, or the students for these graphs.
    """
    if setting.fabric.world_size > 1:
        raise InputError(f"graphs are trained in one process, not in {setting.fabric.world_size}; run without torchrun")
    steps = {len(student.layers) for student in students if isinstance(student, GNN)}
    fanout = setting.sampling.fanout
    if fanout and steps and steps != {len(fanout)}:
        raise InputError(
            f"sampling.fanout has {len(fanout)} numbers and the network {max(steps)} layers with that of the classes; "
            "give one for each"
        )
    _task([copy.deepcopy(student) for student in students], method, setting)


def train_group(
    students: Sequence[nn.Module], method: Method, setting: Setting, run: RunDirectory, label: str
) -> TrainedGroup:
    """Train a group of students and measure each at its best epoch on the validation nodes.

    Args:
        students: Return logits and hidden layers; trained in place.
        method: A copy of it is trained.
        setting: Data, recipe, seed and devices.
        run: Where metrics and checkpoints go.
        label: What is trained, for the progress display.

    Raises:
        InputError: The method cannot work for these students.
        TrainingDivergedError: The loss or a weight is not finite.
        OutputError: A result could not be written.
    """
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(setting.seed)
        task = _task(students, method, setting)
    loader, evaluator = setting.loader(), setting.evaluator()
    history = fit(
        task,
        InTurns(loader, len(students)) if task.method.in_turns else loader,
        setting.recipe,
        seed=setting.seed,
        run=run,
        fabric=setting.fabric,
        evaluate=_measure(evaluator, measure_name(setting.data.multilabel)),
        eval_every=setting.eval_every,
        resume=setting.resume,
        checkpoint_seconds=CHECKPOINT_SECONDS,
        step=task.step,
        undecayed=list(task.method.adversaries()),
        label=label,
        unit="nodes",
        show_progress=setting.show_progress,
        tensorboard=setting.tensorboard,
    )
    best = list(task.best)
    answers = evaluator(best)
    seconds = sum(record["seconds"] for record in history) or time.monotonic() - started
    return TrainedGroup(
        students=[student.eval() for student in best],
        history=history,
        val=answers["val"].scores(),
        test=answers["test"].scores(),
        ensemble=answers["test"].ensemble(),
        best_epochs=task.best_epoch.tolist(),
        layers=layer_figures(best, evaluator),
        seconds=seconds,
    )


def method_notes(method: Method, recipe: Recipe) -> list[str]:
    """Say what a reader must know of a method's result."""
    notes = []
    if method.card.standing == "reconstructed":
        notes.append(f"{method.card.name} is completed by us from an abstract: this is no replication of its results.")
    if method.warmup_epochs >= recipe.epochs:
        notes.append(
            f"The warm-up of {method.card.name} lasts {method.warmup_epochs} epochs and the training {recipe.epochs}: "
            "the students never learn from each other; shorten warmup_epochs."
        )
    return notes


def layer_figures(students: Sequence[nn.Module], evaluator: Evaluator) -> LayerFigures:
    """Measure the hidden layers of students on the evaluator's sample; layers that not all have are left out."""
    batch = evaluator.sample
    with evaluation_mode(*students):
        hidden = [ask(student, batch.x, batch.edge_index).hidden for student in students]
        layers = list(zip(*hidden, strict=False))

        def mean(values: Sequence[Tensor]) -> float:
            return float(total(values) / len(values)) if values else float("nan")

        structure, similarity = [], []
        for layer in layers:
            kernels = [edge_kernel(each, batch.edge_index) for each in layer]
            logs = [in_edge_log_softmax(each, batch.edge_index, batch.x.shape[0]) for each in kernels]
            pairs = itertools.permutations(logs, 2)
            structure.append(
                mean([structure_kl(p, q, batch.edge_index, batch.x.shape[0], nodes=batch.complete) for p, q in pairs])
            )
            similarity.append(mean([each.mean() for each in kernels]))
        return LayerFigures(
            structure=structure,
            similarity=similarity,
            dirichlet=[mean([dirichlet_energy(each, batch.edge_index) for each in layer]) for layer in layers],
            mad=[mean([mean_average_distance(each, batch.edge_index) for each in layer]) for layer in layers],
        )


def _task(students: Sequence[nn.Module], method: Method, setting: Setting) -> GroupTask:
    device = setting.fabric.device
    sample = to_device(next(iter(setting.loader().epoch(1))), device)
    return GroupTask(
        [student.to(device) for student in students],
        copy.deepcopy(method),
        sample,
        epochs=setting.recipe.epochs,
        multilabel=setting.data.multilabel,
    )


def _measure(evaluator: Evaluator, name: str) -> Evaluate:
    def measure(task: nn.Module) -> dict[str, Any]:
        assert isinstance(task, GroupTask)
        answers = evaluator(list(task.students))
        val, losses = answers["val"].scores(), answers["val"].losses()
        test = answers["test"].scores()
        task.keep_best(val, losses)
        return {
            f"val_{name}": sum(val) / len(val),
            f"test_{name}": sum(test) / len(test),
            "val_loss": sum(losses) / len(losses),
            "test_ensemble": answers["test"].ensemble(),
            "test_each": test,
        }

    return measure
