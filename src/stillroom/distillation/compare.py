"""Teachers, students and what a method adds, measured on the same test images; what the report says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.course import Course
from stillroom.distillation.networks import Network, live_teacher
from stillroom.distillation.training import Setting, Trained
from stillroom.models.cost import measure
from stillroom.reports.changes import ClassChanges, class_changes
from stillroom.reports.html import ModelRow
from stillroom.training.teacher import LiveTeacher

__all__ = ["ALONE", "DISTILLED", "Compared", "compare", "curves", "notes", "title"]

ALONE, DISTILLED = "student alone", "student distilled"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The networks side by side.

    Args:
        rows: Teachers, student alone (if trained), what the method adds, student distilled.
        changes: The best teacher and the distilled student class by class; none without a teacher.
        agreement: How far the first teacher is from itself in float32, where it was computed in something else.
    """

    rows: tuple[ModelRow, ...]
    changes: ClassChanges | None
    agreement: dict[str, float] | None


def compare(course: Course, teachers: Mapping[str, Network], alone: Trained | None, distilled: Trained) -> Compared:
    """Measure accuracy on the test images, size and time of every network."""
    setting = course.setting
    target, shape = setting.data.test.target, setting.data.shape
    rows: list[ModelRow] = []

    def add(name: str, architecture: str, model: nn.Module, answer: Tensor) -> None:
        accuracy = (answer == target).float().mean().item()
        rows.append(ModelRow(name=name, architecture=architecture, accuracy=accuracy, **asdict(measure(model, shape))))

    live = {name: _live(network, course) for name, network in teachers.items()}
    answers = {name: _answers(teacher, setting) for name, teacher in live.items()}
    for name, network in teachers.items():
        add(name, network.name, network.model, answers[name])
    if alone is not None:
        add(ALONE, alone.network.name, alone.network.model, setting.predict(alone.network.model))
    for name, model in distilled.others.items():
        add(name, distilled.network.name, model, setting.predict(model))
    last = setting.predict(distilled.network.model)
    add(DISTILLED, distilled.network.name, distilled.network.model, last)
    if not teachers:
        return Compared(rows=tuple(rows), changes=None, agreement=None)
    best = max(rows[: len(teachers)], key=lambda row: row.accuracy).name
    agreement = None
    if course.teacher_precision != "32":
        agreement = next(iter(live.values())).agreement(_images(setting))._asdict()
    changes = class_changes(setting.data.classes, target, answers[best], last)
    return Compared(rows=tuple(rows), changes=changes, agreement=agreement)


def _live(network: Network, course: Course) -> LiveTeacher:
    """Return a teacher that says nothing but its logits."""
    setting = course.setting
    return live_teacher(
        network,
        setting.data,
        signals=frozenset(),
        device=setting.fabric.device,
        precision=course.teacher_precision,
        label_map=course.label_map,
    )[0]


def _answers(teacher: LiveTeacher, setting: Setting) -> Tensor:
    """Return the teacher's most likely class [N] for every test image, in the data's class order."""
    loader = setting.eval_loader(setting.data.test)
    return torch.cat([teacher.predict(batch.images).argmax(1).cpu() for batch in loader])


def _images(setting: Setting) -> Tensor:
    images: Tensor = next(iter(setting.eval_loader(setting.data.test))).images
    return images


def title(student: Network, teachers: Sequence[Network], data: str, method: str) -> str:
    """Say in a few words what was distilled."""
    source = f" from {' and '.join(network.name for network in teachers)}" if teachers else ""
    return f"{student.name} distilled{source} on {data} by {method}"


def curves(histories: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Return what the plots of a report show, an epoch a value."""
    measured = {"test top-1 [%]": "test_accuracy", "training top-1 [%]": "train_accuracy"}
    return {
        title: {
            name: [float(record.get(key, float("nan"))) for record in history] for name, history in histories.items()
        }
        for title, key in measured.items()
    }


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return the sentences a reader of the report must know."""
    said = [
        "Accuracies are those of the last epoch on the test set; no epoch was chosen on it.",
        "One seed: small differences may be chance; stillroom bench compares over several.",
    ]
    if (best := result["best_on_holdout"]) is not None:
        said.append(
            f"Best epoch by the held-out split: {best['epoch']} ({best['holdout_accuracy']:.2f} % held out, "
            f"{best['test_accuracy']:.2f} % test)."
        )
    if (agreement := result["teacher_agreement"]) is not None:
        said.append(
            f"The teacher ran in bfloat16: the class of float32 on {100 * agreement['top1']:.2f} % of a test batch, "
            f"largest logit difference {agreement['max_difference']:.3g}."
        )
    return [*said, *result["notes"]]
