"""The main job: a teacher, a student alone and a distilled student, trained, measured and reported side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.cache import cached_teacher
from stillroom.distillation.methods import method_class
from stillroom.distillation.networks import (
    Network,
    Normalisation,
    cacheable,
    inputs,
    live_teacher,
    load_network,
    new_network,
    to_be_trained,
    twin,
)
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.distillation.options import method_options, short_training
from stillroom.distillation.training import Setting, Trained, rehearse, train_alone, train_distilled
from stillroom.errors import InputError, unknown_name
from stillroom.models.cost import measure
from stillroom.models.store import save_model
from stillroom.reports.changes import class_changes
from stillroom.reports.html import ModelRow, Report, write_report
from stillroom.reports.page import environment
from stillroom.training.contracts import Teacher
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.recipe import PRESETS, Recipe, default_lr
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import LiveTeacher
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["MAY_CHANGE", "Distilled", "as_method", "as_recipe", "as_weights", "distill"]

# Options that change no result, and may differ when a run is resumed.
MAY_CHANGE = frozenset({"out", "device", "checkpoint_every", "tensorboard", "show_progress"})

TEACHER, ALONE, DISTILLED = "teacher", "student alone", "student distilled"


@dataclass(frozen=True)
class Distilled:
    """What :func:`distill` returns.

    ``rows`` are the compared networks in the order teacher, student alone (if trained), student distilled;
    ``accuracy`` in a row is a fraction. ``result`` is what stands in ``result.json``.
    """

    model: nn.Module
    rows: tuple[ModelRow, ...]
    result: dict[str, Any]
    out: Path
    writes: bool  # False on all but the first of several processes


def distill(
    *,
    student: str | nn.Module = "resnet8",
    teacher: str | nn.Module = "resnet20",
    data: str | DataOptions = "digits",
    method: str | Method = "kd",
    recipe: str | Recipe = "quick",
    weights: Convention | Weights | Mapping[str, float] = "simkd",
    temperature: float = 4.0,
    baseline: bool = True,
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
    """Distil a student from a teacher and compare both with the same student trained alone.

    Accuracies are those of the last epoch on the test set. With ``data.holdout`` a best epoch is named as well, chosen
    on the held-out part of the training data.

    Args:
        student: Network to train: a zoo name (resnet8), timm:NAME, torchvision:NAME, package.module:factory, each
            optionally followed by @WEIGHTS to start from: a file, or pretrained for what timm and torchvision publish;
            in Python also a module, which is copied.
        teacher: Network to learn from: a name as for the student (trained first, on the labels), NAME@WEIGHTS, or the
            directory of an earlier run.
        data: The data set and its options.
        method: The distillation method, see ``stillroom methods``.
        recipe: Epochs, optimiser and learning rates, or the name of a preset.
        weights: Weights of the objective's terms: the SimKD and SemCKD repositories' convention or the CRD benchmark's.
        temperature: Temperature of the classical KD term beside a method's own.
        baseline: Also train the student alone, with the same seed and recipe.
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
    recipe = as_recipe(recipe, student)
    objective = as_weights(weights, chosen)
    config = {
        "student": _name(student),
        "teacher": _name(teacher),
        "data": asdict(options),
        "method": {"name": chosen.card.name, **method_options(chosen)},
        "recipe": asdict(recipe),
        "weights": weights if isinstance(weights, str) else asdict(objective),
        "temperature": temperature,
        "baseline": baseline,
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
    images = load_data(options)
    fabric = make_fabric(device, precision)
    with torch.random.fork_rng():
        # Networks are created before anything is written: a wrong name leaves no half-made run behind.
        torch.manual_seed(seed)
        pupil = new_network(student, images, taps=student_taps)
        alike = twin(pupil)  # the student alone starts from the very weights the distilled one starts from
        trained_before = not to_be_trained(teacher, teacher_epochs)
        if trained_before and isinstance(teacher, str):
            master = load_network(teacher, images, taps=teacher_taps, normalisation=teacher_normalisation)
        else:
            stated: Normalisation = teacher_normalisation if trained_before else "data"
            master = new_network(teacher, images, taps=teacher_taps, normalisation=stated)
    signals = chosen.signals if teacher_cache is None else cacheable(master, chosen.signals)

    def ask(network: Network) -> tuple[LiveTeacher, nn.Linear | None]:
        return live_teacher(
            network, images, signals=signals, device=fabric.device, precision=teacher_precision, label_map=label_map
        )

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
    live, classifier = ask(master if trained_before else twin(master))
    rehearse(
        pupil,
        live,
        chosen,
        objective,
        setting,
        teacher_classifier=classifier,
        temperature=temperature,
        cached=teacher_cache is not None,
    )
    run = RunDirectory.create(
        out,
        config,
        overwrite=overwrite,
        resume=resume,
        keep=inputs(student, teacher),
        may_change=MAY_CHANGE,
        fabric=fabric,
    )
    histories: dict[str, list[dict[str, Any]]] = {}
    if not trained_before:
        longer = replace(recipe, epochs=teacher_epochs or recipe.epochs)
        trained = train_alone(master, replace(setting, recipe=longer), run.part("teacher"), label="teacher")
        master, histories[TEACHER] = trained.network, trained.history
        _save(trained.network, run.part("teacher"), {"seed": seed})
        live, classifier = ask(master)
    says: Teacher = live
    if teacher_cache is not None:
        says = cached_teacher(live, setting, Path(teacher_cache), needs=chosen.signals)
    alone: Trained | None = None
    if baseline:
        alone = train_alone(alike, setting, run.part("alone"), label="student alone")
        histories[ALONE] = alone.history
    distilled = train_distilled(
        pupil, says, chosen, objective, setting, run, teacher_classifier=classifier, temperature=temperature
    )
    histories[DISTILLED] = distilled.history
    facts = {"method": chosen.card.name, "weights": asdict(objective), "seed": seed}
    _save(distilled.network, run, {**facts, "test_accuracy": distilled.test_accuracy})

    target = images.test.target
    answers = {TEACHER: live_answers(live, setting), DISTILLED: setting.predict(distilled.network.model)}
    if alone is not None:
        answers[ALONE] = setting.predict(alone.network.model)
    networks = {TEACHER: master} | ({ALONE: alone.network} if alone else {}) | {DISTILLED: distilled.network}
    rows = tuple(
        ModelRow(
            name=name,
            architecture=network.name,
            accuracy=(answers[name] == target).float().mean().item(),
            **asdict(measure(network.model, images.shape)),
        )
        for name, network in networks.items()
    )
    result: dict[str, Any] = {
        "data": images.describe(),
        "method": config["method"],
        "weights": asdict(objective),
        "seed": seed,
        "models": [asdict(row) for row in rows],
        "best_on_holdout": distilled.best_on_holdout(),
        "teacher_agreement": None,
        "notes": short_training(chosen, recipe.epochs),
        "environment": environment(),
        "out": str(out),
    }
    if teacher_precision != "32":
        result["teacher_agreement"] = live.agreement(_images(setting))._asdict()
    run.write_result(result)
    if fabric.is_global_zero:
        write_report(
            run.report,
            Report(
                title=f"{pupil.name} distilled from {master.name} on {images.name} by {chosen.card.name}",
                models=rows,
                curves=_curves(histories),
                changes=class_changes(images.classes, target, answers[TEACHER], answers[DISTILLED]),
                config=config,
                environment=environment(),
                command=shlex.join(["stillroom", "distill", "--config", str(run.config), "--out", "NEW_DIRECTORY"]),
                notes=_notes(result),
            ),
        )
    fabric.barrier()
    return Distilled(distilled.network.model, rows, result, Path(out), run.writes)


def as_method(method: str | Method) -> Method:
    """Return the method itself, or the one of that name with the paper's hyperparameters."""
    return method_class(method)() if isinstance(method, str) else method


def as_recipe(recipe: str | Recipe, student: str | nn.Module) -> Recipe:
    """Return the recipe itself, or the preset of that name with the literature's learning rate for the student."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in PRESETS:
        raise unknown_name("recipe", recipe, PRESETS)
    preset, usual = PRESETS[recipe], default_lr(_name(student))
    # 0.01 for students that need it; a preset's own rate else.
    return replace(preset, lr=usual) if preset.optimizer == "sgd" and usual < Recipe().lr else preset


def as_weights(weights: Convention | Weights | Mapping[str, float], method: Method) -> Weights:
    """Return the weights themselves (also as a mapping ce, kd, method), or the method's under that convention."""
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, Mapping):
        if set(weights) != {"ce", "kd", "method"}:
            raise InputError(f"weights need the keys ce, kd and method, got {', '.join(sorted(weights)) or 'none'}")
        return Weights(**{name: float(value) for name, value in weights.items()})
    if weights not in method.presets:
        raise unknown_name("weights", weights, method.presets)
    return method.presets[weights]


def live_answers(teacher: LiveTeacher, setting: Setting) -> Tensor:
    """Return the teacher's most likely class [N] for every test image, in the data's class order."""
    loader = setting.eval_loader(setting.data.test)
    return torch.cat([teacher.predict(batch.images).argmax(1).cpu() for batch in loader])


def _name(spec: str | nn.Module) -> str:
    return spec if isinstance(spec, str) else type(spec).__qualname__


def _save(network: Network, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    if run.writes:
        save_model(run.path, network.model, replace(network.card, extra=dict(facts)))


def _images(setting: Setting) -> Tensor:
    images: Tensor = next(iter(setting.eval_loader(setting.data.test))).images
    return images


def _curves(histories: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    measured = {"test top-1 [%]": "test_accuracy", "training top-1 [%]": "train_accuracy"}
    return {
        title: {
            name: [float(record.get(key, float("nan"))) for record in history] for name, history in histories.items()
        }
        for title, key in measured.items()
    }


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = [
        "Accuracies are those of the last epoch on the test set; no epoch was chosen on it.",
        "One seed: small differences may be chance; stillroom bench compares over several.",
    ]
    if (best := result["best_on_holdout"]) is not None:
        notes.append(
            f"Best epoch by the held-out split: {best['epoch']} ({best['holdout_accuracy']:.2f} % held out, "
            f"{best['test_accuracy']:.2f} % test)."
        )
    if (agreement := result["teacher_agreement"]) is not None:
        notes.append(
            f"The teacher ran in bfloat16: the class of float32 on {100 * agreement['top1']:.2f} % of a test batch, "
            f"largest logit difference {agreement['max_difference']:.3g}."
        )
    return [*notes, *result["notes"]]
