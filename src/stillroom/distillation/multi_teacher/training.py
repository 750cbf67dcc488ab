"""Training a student from several teachers: what is refused beforehand, the training, and what it shows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.images import ImageData
from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.distillation.multi_teacher._method import ManyTeachers
from stillroom.distillation.multi_teacher.mmkd import MMKD
from stillroom.distillation.multi_teacher.task import Master, MetaTask, MultiTeacherTask, build_method
from stillroom.distillation.multi_teacher.weights import stack_logits
from stillroom.distillation.networks import Network, tap, twin
from stillroom.distillation.training import Setting, Trained
from stillroom.errors import InputError
from stillroom.models._trace import evaluating, logits_of
from stillroom.models.split import split
from stillroom.models.taps import Tapped
from stillroom.reports.page import Figure, Section
from stillroom.reports.plots import training_curves
from stillroom.reports.tables import Column, Table
from stillroom.training.evaluate import evaluation_mode
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import LiveTeacher, match_classes

__all__ = ["Master", "head_of", "rehearse_many", "train_from_many"]


class _Head(nn.Module):
    """The layers behind the last feature map, answering in the data's class order."""

    def __init__(self, layers: nn.Module, class_map: Tensor | None) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("class_map", class_map)
        self.class_map: Tensor | None

    def forward(self, feature_map: Tensor) -> Tensor:
        logits = logits_of(self.layers(feature_map))
        return logits if self.class_map is None else logits[:, self.class_map]


def head_of(
    network: Network, data: ImageData, *, device: torch.device, label_map: Mapping[str, str] | None = None
) -> nn.Module:
    """Return what a teacher makes of its last feature map: a frozen module from [B, C, h, w] to logits.

    It begins behind the last stage that is tapped and holds the network's own layers, not copies. Where a network has
    layers between that map and the classifier (the 1×1 expansion of MobileNetV2 and ShuffleNetV2, the last batch norm
    of WRN), they belong to the head.

    Args:
        network: The teacher.
        data: What it is used on; the logits come in its class order.
        device: Where it is used.
        label_map: Class name of the data -> class name of the teacher, where they differ.

    Raises:
        InputError: The network cannot be cut there, what it computes there is no map, or the classes do not match.
    """
    class_map = match_classes(network.card.classes, data.classes, label_map)
    at = network.taps.stages[-1] if network.taps.stages else None
    if at is None:
        raise InputError(f"{network.name} has no tapped stage, so it has no head to judge features by")
    where = next(network.model.parameters()).device
    sample = torch.zeros(2, *network.card.input_shape, device=where)
    trunk, branch = split(network.model, at, sample)
    tapped = Tapped(network.model, network.taps, {"stages"})
    with evaluating(network.model):
        feature_map, stage = trunk(sample), tapped(sample).stages[-1]
    tapped.release()
    if feature_map.shape != stage.shape or not torch.equal(feature_map, stage):
        raise InputError(
            f"the head of {network.name} reads {list(feature_map.shape)} (tokens, or channels last), no map "
            "[B, C, H, W]; this method takes convolutional teachers"
        )
    return _Head(branch, class_map).to(device).eval().requires_grad_(False)


def rehearse_many(student: Network, masters: Sequence[Master], method: ManyTeachers, setting: Setting) -> None:
    """Refuse networks, teachers or a recipe that cannot work, before anything is trained or written.

    Raises:
        InputError: The method cannot work for them.
    """
    _task(twin(student), masters, method, setting, setting.train_loader())


def train_from_many(
    student: Network, masters: Sequence[Master], method: ManyTeachers, setting: Setting, run: RunDirectory
) -> Trained:
    """Train a student under a multi-teacher method.

    Args:
        student: Is trained in place.
        masters: The teachers.
        method: A copy of it is trained.
        setting: Data, recipe and the rest.
        run: Where metrics and checkpoints go.

    Raises:
        InputError: The method cannot work for them.
    """
    loader = setting.train_loader()
    task = _task(student, masters, method, setting, loader)
    history = setting.fit(task, loader, run, label=f"student, {method.card.name}", step=task.step)
    means = {master.name: history[-1][f"train_weight_{k}"] for k, master in enumerate(masters)}
    section = _teachers(task, setting, loader, history)
    network = replace(student, model=task.student.release().eval())
    notes = task.method.notes(setting.recipe.epochs)
    return Trained(network, history, measured={"teacher_weights": means}, sections=(section,), notes=notes)


def _task(
    student: Network, masters: Sequence[Master], method: ManyTeachers, setting: Setting, loader: TrainLoader
) -> MultiTeacherTask:
    sample = next(iter(loader.epoch(1)))
    tapped = tap(student, method.signals).to(setting.fabric.device)
    built = build_method(tapped, masters, copy.deepcopy(method), sample, seed=setting.seed)
    if not isinstance(built, MMKD):
        return MultiTeacherTask(tapped, masters, built, sample)
    if setting.recipe.optimizer != "sgd":
        raise InputError(
            f"mmkd looks ahead by steps of sgd, and recipe.optimizer is {setting.recipe.optimizer!r}; set it to sgd"
        )
    if setting.fabric.world_size > 1:
        raise InputError(f"mmkd's meta step runs in one process, not in {setting.fabric.world_size}")
    return MetaTask(tapped, masters, built, sample, steps_per_epoch=len(loader))


def _teachers(
    task: MultiTeacherTask, setting: Setting, loader: TrainLoader, history: Sequence[Mapping[str, Any]]
) -> Section:
    """Show how much each teacher counted, over the training and where it is right or wrong."""
    names = [master.name for master in task.masters]
    panels = {}
    for title, part in (("mean weight", "weight"), ("mean weight of the feature map", "feature_weight")):
        if any(f"train_{part}_0" in record for record in history):
            panels[title] = {
                name: [record.get(f"train_{part}_{k}", float("nan")) for record in history]
                for k, name in enumerate(names)
            }
    # A cache knows the training images only.
    live = all(isinstance(master.says, LiveTeacher) for master in task.masters)
    seen = setting.eval_loader(setting.data.test) if live else loader
    weights, right = _weights(task, seen, 1 if live else setting.recipe.epochs)
    rows = [
        [name, 100 * hit.float().mean().item(), own.mean().item(), own[hit].mean().item(), own[~hit].mean().item()]
        for name, own, hit in zip(names, weights.T, right.T, strict=True)
    ]
    which = "test" if live else "training"
    columns = (
        Column("teacher"),
        Column(f"top-1 on the {which} images [%]", ".2f"),
        Column("mean weight", ".3f"),
        Column("where it is right", ".3f"),
        Column("where it is wrong", ".3f"),
    )
    return Section(
        title="Teachers",
        text="How much each teacher's answer counts: on average over each epoch, and after the training on the "
        f"{which} images, where the teacher is right and where it is wrong.",
        parts=(Figure(training_curves(panels), "Mean weight of each teacher over the epochs."), Table(columns, rows)),
    )


def _weights(task: MultiTeacherTask, loader: EvalLoader | TrainLoader, epoch: int) -> tuple[Tensor, Tensor]:
    """Return weights [N, K] of all samples and whether each teacher is right about them, on the CPU."""
    weights, right = [], []
    task.start_epoch(epoch)
    with evaluation_mode(task):
        for batch in loader.epoch(epoch):
            logits = stack_logits([master.says.signals(batch).logits for master in task.masters])
            weights.append(task.method.weigh(task.predict(batch.images), logits, batch.target).cpu())
            right.append((logits.argmax(-1) == batch.target).T.cpu())
    return torch.cat(weights), torch.cat(right)
