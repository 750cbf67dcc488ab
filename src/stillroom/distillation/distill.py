"""The main job: a student trained by any method beside the same student alone, measured and reported side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.choices import NOT_FOR, Spec, as_method, as_recipe, as_teachers, as_weights, name_of
from stillroom.distillation.compare import ALONE, DISTILLED, compare, curves, notes, title
from stillroom.distillation.course import Course
from stillroom.distillation.data_free.training import as_teacher_sees
from stillroom.distillation.methods import AnyMethod, family_of
from stillroom.distillation.networks import (
    Network,
    Normalisation,
    inputs,
    load_network,
    new_network,
    to_be_trained,
    twin,
)
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.distillation.options import short_training
from stillroom.distillation.training import Setting, Trained, train_alone
from stillroom.errors import InputError
from stillroom.hyperparameters import method_options
from stillroom.models.store import save_model
from stillroom.reports.html import ModelRow, Report, write_report
from stillroom.reports.page import environment
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["MAY_CHANGE", "Distilled", "distill", "new_students"]

# Options that change no result, and may differ when a run is resumed.
MAY_CHANGE = frozenset({"out", "device", "checkpoint_every", "tensorboard", "show_progress"})


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns.

    ``rows`` are the compared networks in the order teachers, student alone (if trained), what a method adds (the
    ensemble of the peers), student distilled; ``accuracy`` in a row is a fraction. ``result`` is what stands in
    ``result.json``.
    """

    model: nn.Module
    rows: tuple[ModelRow, ...]
    result: dict[str, Any]
    out: Path
    writes: bool  # False on all but the first of several processes


def distill(
    *,
    student: Spec = "resnet8",
    teacher: Spec | Sequence[Spec] | None = None,
    data: str | DataOptions = "digits",
    method: str | AnyMethod = "kd",
    recipe: str | Recipe = "quick",
    weights: Convention | Weights | Mapping[str, float] = "simkd",
    temperature: float = 4.0,
    peers: int = 4,
    branch: str = "auto",
    baseline: bool | None = None,
    teacher_epochs: int | None = None,
    teacher_normalisation: Normalisation = "auto",
    teacher_precision: TeacherPrecision = "32",
    teacher_cache: str | Path | None = None,
    label_map: Mapping[str, str] | None = None,
    student_taps: Sequence[str] = (),
    teacher_taps: Sequence[str] = (),
    out: str | Path = "runs/distill",
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "32",
    compile: bool = False,
    eval_every: int = 1,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Distilled:
    """Train a student by a method and compare it with its teachers and with the same student trained alone.

    Accuracies are those of the last epoch on the test set. With ``data.holdout`` a best epoch is named as well, chosen
    on the held-out part of the training data.

    Args:
        student: Network to train: a zoo name (resnet8), timm:NAME, torchvision:NAME, package.module:factory, each
            optionally followed by @WEIGHTS to start from: a file, or pretrained for what timm and torchvision publish;
            in Python also a module, which is copied.
        teacher: Network to learn from: a name as for the student (trained first, on the labels), NAME@WEIGHTS, or the
            directory of an earlier run. Methods for several teachers take any number, with one --teacher for each (in
            Python a list).
        data: The data set and its options. Data-free methods see its test images only, to measure with.
        method: The method, see ``stillroom methods``.
        recipe: Epochs, optimiser and learning rates, or the name of a preset.
        weights: Weights of the objective's terms: the SimKD and SemCKD repositories' convention or the CRD benchmark's.
        temperature: Temperature of the classical KD term beside a method's own.
        peers: Students that are trained together, the deployed one among them.
        branch: Where peers part: auto in front of the last stage, none for whole networks that share nothing, or the
            path of the last module they share.
        baseline: Also train the student alone, with the same seed and recipe; data-free methods do not unless asked,
            as it takes the training images.
        teacher_epochs: Epochs of a teacher that has to be trained; the recipe's when not given. With weights given,
            the teacher starts from them and adapts to the data for so many epochs.
        teacher_normalisation: What a teacher loaded from weights was normalised with: the data's own mean and standard
            deviation, ImageNet's, or one half each; auto is what published weights say, else the data's. A run
            directory knows its own.
        teacher_precision: Compute the teacher in float32 or bfloat16; its agreement with float32 is printed.
        teacher_cache: Folder for the teacher's logits and pooled features, computed once per sample and view and found
            again by later runs; needs data.augment none or data.views.
        label_map: Student class name -> teacher class name, where they differ.
        student_taps: Module paths of the student's stages; chosen automatically when not given.
        teacher_taps: Module paths of the teacher's stages.
        out: The run directory.
        seed: Seed of initial weights, order, augmentation and dropout.
        device: Where to train.
        precision: Precision of the student's training.
        compile: Compile the whole forward pass of the training step.
        eval_every: Epochs between evaluations.
        checkpoint_every: Steps between checkpoints within an epoch; every epoch ends with one.
        tensorboard: Also log to TensorBoard files.
        show_progress: Show progress on standard error.
        resume: Continue the killed run in ``out``, to the same result.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        TrainingDivergedError: The loss became NaN or infinite.
        OutputError: A result could not be written.
    """
    options = DataOptions(name=data) if isinstance(data, str) else data
    chosen = as_method(method)
    family = family_of(chosen.card.name)
    teachers = as_teachers(teacher, chosen)
    recipe = as_recipe(recipe, student)
    objective = as_weights(weights, chosen) if isinstance(chosen, Method) else None
    alone_too = family != "data_free" if baseline is None else baseline
    config: dict[str, Any] = {
        "student": name_of(student),
        "teacher": [name_of(spec) for spec in teachers],
        "data": asdict(options),
        "method": {"name": chosen.card.name, **method_options(chosen)},
        "recipe": asdict(recipe),
        "weights": None if objective is None else weights if isinstance(weights, str) else asdict(objective),
        "temperature": temperature,
        "peers": peers,
        "branch": branch,
        "baseline": alone_too,
        "teacher_epochs": teacher_epochs,
        "teacher_normalisation": teacher_normalisation,
        "teacher_precision": teacher_precision,
        "teacher_cache": None if teacher_cache is None else str(teacher_cache),
        "label_map": None if label_map is None else dict(label_map),
        "student_taps": list(student_taps),
        "teacher_taps": list(teacher_taps),
        "out": str(out),
        "seed": seed,
        "device": device,
        "precision": precision,
        "compile": compile,
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
        "tensorboard": tensorboard,
    }
    if family != "multi_teacher" and teachers:
        config["teacher"] = config["teacher"][0]
    for name in NOT_FOR[family]:
        del config[name]
    images = load_data(options)
    fabric = make_fabric(device, precision)
    trains_first = [to_be_trained(spec, teacher_epochs) for spec in teachers]
    setting = Setting(
        data=images,
        recipe=recipe,
        seed=seed,
        fabric=fabric,
        views=options.views,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        resume=resume,
        compile=compile,
        show_progress=show_progress,
        tensorboard=tensorboard,
    )
    with torch.random.fork_rng():
        # Networks are created before anything is written: a wrong name leaves no half-made run behind.
        torch.manual_seed(seed)
        if family == "data_free":
            masters = _masters(teachers, trains_first, images, teacher_taps, teacher_normalisation)
            seen = as_teacher_sees(setting, masters[0]).data
            students = new_students(student, seen, taps=student_taps)
        else:
            seen = images
            students = new_students(student, seen, peers if family == "online" else 1, taps=student_taps)
            masters = _masters(teachers, trains_first, images, teacher_taps, teacher_normalisation)
    alike = twin(students[0])  # the student alone starts from the very weights the distilled one starts from
    course = Course(
        method=chosen,
        setting=replace(setting, data=seen),
        weights=objective,
        temperature=temperature,
        teacher_precision=teacher_precision,
        teacher_cache=None if teacher_cache is None else Path(teacher_cache),
        label_map=label_map,
        branch=None if branch == "none" else branch,
    )
    course.rehearse(students, masters)
    run = RunDirectory.create(
        out,
        config,
        overwrite=overwrite,
        resume=resume,
        keep=inputs(student, *teachers),
        may_change=MAY_CHANGE,
        fabric=fabric,
    )
    names = ["teacher"] if len(masters) == 1 else [f"teacher {number}" for number in range(1, len(masters) + 1)]
    histories: dict[str, list[dict[str, Any]]] = {}
    for number, first in enumerate(trains_first):
        if first:
            part = run.part(names[number].replace(" ", "-"))
            schooling = replace(
                setting, recipe=replace(recipe, epochs=teacher_epochs or recipe.epochs), seed=seed + number
            )
            trained = train_alone(masters[number], schooling, part, label=names[number])
            masters[number], histories[names[number]] = trained.network, trained.history
            _save(trained.network, part, {"seed": seed + number})
    alone: Trained | None = None
    if alone_too:
        alone = train_alone(
            alike, replace(setting, data=replace(images, mean=seen.mean, std=seen.std)), run.part("alone"), label=ALONE
        )
        histories[ALONE] = alone.history
    distilled = course.train(students, masters, run)
    histories[DISTILLED] = distilled.history
    facts: dict[str, Any] = {"method": chosen.card.name, "seed": seed}
    if objective is not None:
        facts["weights"] = asdict(objective)
    _save(distilled.network, run, {**facts, "test_accuracy": distilled.test_accuracy})

    compared = compare(course, dict(zip(names, masters, strict=True)), alone, distilled)
    result: dict[str, Any] = {
        "data": images.describe(),
        "method": config["method"],
        "weights": None if objective is None else asdict(objective),
        "seed": seed,
        "models": [asdict(row) for row in compared.rows],
        "best_on_holdout": distilled.best_on_holdout(),
        "measured": distilled.measured,
        "teacher_agreement": compared.agreement,
        "notes": [*short_training(chosen, recipe.epochs), *distilled.notes],
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    if fabric.is_global_zero:
        write_report(
            run.report,
            Report(
                title=title(students[0], masters, images.name, chosen.card.name),
                models=compared.rows,
                curves=curves(histories),
                changes=compared.changes,
                sections=distilled.sections,
                config=config,
                environment=environment(),
                command=shlex.join(["stillroom", "distill", "--config", str(run.config), "--out", "NEW_DIRECTORY"]),
                notes=notes(result),
            ),
        )
    fabric.barrier()
    return Distilled(distilled.network.model, compared.rows, result, Path(out), run.writes)


def new_students(student: Spec, data: ImageData, count: int = 1, *, taps: Sequence[str] = ()) -> list[Network]:
    """Create so many students with weights of their own; the first has those it would have without the others."""
    if count < 1:
        raise InputError(f"peers is {count}; it must be at least 2")
    return [new_network(student, data, taps=taps) for _ in range(count)]


def _masters(
    specs: Sequence[Spec],
    trains_first: Sequence[bool],
    data: ImageData,
    taps: Sequence[str],
    normalisation: Normalisation,
) -> list[Network]:
    """Load the teachers that are trained and create the others."""
    masters = []
    for spec, first in zip(specs, trains_first, strict=True):
        if isinstance(spec, str) and not first:
            masters.append(load_network(spec, data, taps=taps, normalisation=normalisation))
        else:
            masters.append(new_network(spec, data, taps=taps, normalisation="data" if first else normalisation))
    return masters


def _save(network: Network, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    if run.writes:
        save_model(run.path, network.model, replace(network.card, extra=dict(facts)))
