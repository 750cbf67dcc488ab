"""Training one network of the pipeline: a teacher or student on labels alone, or a student under a method."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.data.images import ImageData, ImageSet
from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.distillation.networks import Network, tap, twin
from stillroom.distillation.offline._method import Method, Weights
from stillroom.distillation.offline.task import OfflineTask
from stillroom.errors import InputError
from stillroom.models.composed import ReusedClassifier
from stillroom.reports.page import Section
from stillroom.training.contracts import Loader, Teacher
from stillroom.training.evaluate import accuracy, predictions
from stillroom.training.loop import Evaluate, Step, check_intervals, fit, supervised_step
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory
from stillroom.training.supervised import Supervised

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Setting", "Trained", "rehearse", "train_alone", "train_distilled"]

EVALUATION_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trainings of one run share."""

    data: ImageData
    recipe: Recipe
    seed: int
    fabric: Fabric
    views: int = 0
    eval_every: int = 1
    checkpoint_every: int | None = None
    resume: bool = False
    compile: bool = False
    show_progress: bool = True
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Refuse what would fail only after a part of the work is done."""
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must not be negative")
        check_intervals(self.eval_every, self.checkpoint_every)

    def train_loader(self) -> TrainLoader:
        """Return the augmented, shuffled training batches of this process."""
        return TrainLoader(
            self.data.train,
            batch_size=self.recipe.batch_size,
            seed=self.seed,
            augment=self.data.augment,
            mean=self.data.mean,
            std=self.data.std,
            device=self.fabric.device,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            views=self.views,
        )

    def eval_loader(self, images: ImageSet) -> EvalLoader:
        """Return plain batches of a held-out or test set."""
        return EvalLoader(
            images, batch_size=EVALUATION_BATCH, mean=self.data.mean, std=self.data.std, device=self.fabric.device
        )

    def evaluate(self) -> Evaluate:
        """Return the measurement of a task: test (and held-out) accuracy in percent and cross-entropy."""
        sets = {"test": self.data.test} | ({"holdout": self.data.holdout} if self.data.holdout is not None else {})
        loaders = {split: self.eval_loader(images) for split, images in sets.items()}

        def measure(task: nn.Module) -> dict[str, float]:
            return {
                f"{split}_{name}": value
                for split, loader in loaders.items()
                for name, value in accuracy(task.predict, loader, self.fabric).items()  # type: ignore[arg-type]
            }

        return measure

    def fit(
        self,
        task: nn.Module,
        loader: Loader,
        run: RunDirectory,
        *,
        label: str,
        step: Step = supervised_step,
        evaluate: Evaluate | None = None,
    ) -> list[dict[str, Any]]:
        """Train a task and return its history, see :func:`stillroom.training.loop.fit`.

        Args:
            task: Is trained in place.
            loader: Training batches.
            run: Where metrics and checkpoints go.
            label: What is trained, for the progress display.
            step: One update.
            evaluate: Measures the task; :meth:`evaluate` when not given.
        """
        return fit(
            task,
            loader,
            self.recipe,
            seed=self.seed,
            run=run,
            fabric=self.fabric,
            evaluate=evaluate or self.evaluate(),
            eval_every=self.eval_every,
            resume=self.resume,
            compile=self.compile,
            checkpoint_every=self.checkpoint_every,
            step=step,
            label=label,
            show_progress=self.show_progress,
            tensorboard=self.tensorboard,
        )

    def predict(self, model: nn.Module) -> Tensor:
        """Return a classifier's most likely class [N] for every test image, on the CPU."""
        logits, _ = predictions(model, self.eval_loader(self.data.test), self.fabric)
        return logits.argmax(1)


@dataclass(frozen=True)
class Trained:
    """A trained network ready to be deployed, how it got there, and what else its method has to show.

    Args:
        network: What is deployed.
        history: One record an epoch.
        measured: Further figures for ``result.json``, as plain data.
        others: Further networks to set beside it, images to logits ("ensemble of 4 peers").
        sections: Further sections of the report.
        notes: Sentences the reader of the report must know.
    """

    network: Network
    history: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    others: dict[str, nn.Module] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def test_accuracy(self) -> float:
        """Test accuracy after the last epoch, in percent."""
        return float(self.history[-1]["test_accuracy"])

    def best_on_holdout(self) -> dict[str, float] | None:
        """Return epoch, held-out and test accuracy of the epoch that is best on the held-out split, if there is one."""
        measured = [record for record in self.history if "holdout_accuracy" in record]
        if not measured:
            return None
        best = max(measured, key=lambda record: record["holdout_accuracy"])
        return {name: best[name] for name in ("epoch", "holdout_accuracy", "test_accuracy")}


def train_alone(network: Network, setting: Setting, run: RunDirectory, *, label: str) -> Trained:
    """Train a network on the labels with cross-entropy."""
    task = Supervised(network.model).to(setting.fabric.device)
    history = setting.fit(task, setting.train_loader(), run, label=label)
    return Trained(replace(network, model=network.model.eval()), history)


def rehearse(
    student: Network,
    teacher: Teacher,
    method: Method,
    weights: Weights,
    setting: Setting,
    *,
    teacher_classifier: nn.Linear | None,
    temperature: float,
) -> None:
    """Refuse a pair or a batch size that cannot work, before anything is trained or written.

    Raises:
        InputError: The method cannot work for this pair.
    """
    _task(twin(student), teacher, method, weights, setting, setting.train_loader(), teacher_classifier, temperature)


def train_distilled(
    student: Network,
    teacher: Teacher,
    method: Method,
    weights: Weights,
    setting: Setting,
    run: RunDirectory,
    *,
    teacher_classifier: nn.Linear | None,
    temperature: float = 4.0,
) -> Trained:
    """Train a student under a method and return what is deployed (the student, or what the method makes of it).

    Raises:
        InputError: The method cannot work for this pair.
    """
    loader = setting.train_loader()
    task = _task(student, teacher, method, weights, setting, loader, teacher_classifier, temperature)
    history = setting.fit(task, loader, run, label=f"student, {method.card.name}")
    return Trained(_deployed(task, student), history)


def _task(
    student: Network,
    teacher: Teacher,
    method: Method,
    weights: Weights,
    setting: Setting,
    loader: TrainLoader,
    teacher_classifier: nn.Linear | None,
    temperature: float,
) -> OfflineTask:
    return OfflineTask.build(
        tap(student, method.signals).to(setting.fabric.device),
        teacher,
        copy.deepcopy(method),
        weights,
        next(iter(loader.epoch(1))),
        teacher_classifier=teacher_classifier,
        train_target=setting.data.train.target,
        num_classes=len(setting.data.classes),
        seed=setting.seed,
        temperature=temperature,
    )


def _deployed(task: OfflineTask, student: Network) -> Network:
    trained = task.student.release().eval()
    sample = torch.zeros(2, *student.card.input_shape, device=next(trained.parameters()).device)
    model = task.method.deploy(trained, student.taps, sample).eval()
    if not isinstance(model, ReusedClassifier):
        return replace(student, model=model)
    assert isinstance(student.card.architecture, str)  # a student is created from a name
    card = replace(student.card, architecture=model.architecture(student.card.architecture))
    return Network(model, model.tap_paths(), card)
