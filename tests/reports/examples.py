"""Reports as a run would fill them."""

from __future__ import annotations

import numpy as np

from stillroom.reports.changes import class_changes
from stillroom.reports.html import BenchReport, ModelRow, Report

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TEACHER = ModelRow(
    name="teacher",
    architecture="resnet56",
    accuracy=0.9437,
    parameters=855_770,
    flops=251_487_488,
    latency_ms=9.81,
    size_mb=3.46,
)
ALONE = ModelRow(
    name="student alone",
    architecture="resnet8",
    accuracy=0.8731,
    parameters=78_042,
    flops=24_893_696,
    latency_ms=1.42,
    size_mb=0.32,
)
DISTILLED = ModelRow(
    name="student distilled",
    architecture="resnet8",
    accuracy=0.8854,
    parameters=78_042,
    flops=24_893_696,
    latency_ms=1.43,
    size_mb=0.32,
)


def make_report(classes: tuple[str, ...] = CLASSES, samples: int = 2000) -> Report:
    generator = np.random.default_rng(0)
    target = generator.integers(len(classes), size=samples)

    def predictions(accuracy: float) -> np.ndarray:
        neighbour = (target + generator.choice([1, 1, 2, 5], size=samples)) % len(classes)
        return np.where(generator.random(samples) < accuracy - 0.02 * (target % 3), target, neighbour)

    epochs = np.arange(1, 31)
    return Report(
        title="resnet8 from resnet56 with simkd on cifar10",
        models=[TEACHER, ALONE, DISTILLED],
        curves={
            "test top-1 [%]": {
                "student alone": list(87.3 - 45 * np.exp(-epochs / 6)),
                "student distilled": list(88.5 - 40 * np.exp(-epochs / 5)),
            },
            "training loss": {
                "student alone": list(0.3 + 1.8 * np.exp(-epochs / 7)),
                "student distilled": list(0.2 + 1.2 * np.exp(-epochs / 5)),
            },
        },
        changes=class_changes(classes, target, predictions(0.95), predictions(0.87)),
        config={
            "teacher": "resnet56",
            "data": {"name": "cifar10", "augment": "crop-flip", "fraction": 1.0},
            "training": {"epochs": 30, "milestones": [15, 21, 27], "lr": 0.05},
            "seed": 0,
        },
        environment={"stillroom": "0.1.0", "torch": "2.6.0", "device": "cpu"},
        command="stillroom distill --teacher resnet56 --student resnet8 --method simkd --data cifar10 --seed 0",
        notes=["Latency was measured with one thread."],
    )


def make_bench() -> BenchReport:
    return BenchReport(
        title="Eight methods on few-label MNIST",
        accuracies={
            "alone": [0.9012, 0.8954, 0.9101],
            "kd": [0.9120, 0.9088, 0.9150],
            "simkd": [0.9301, 0.9266, 0.9340],
            "rld": [0.9177, 0.9150, 0.9181],
            "at": [0.8990, 0.8901, 0.9080],
        },
        seeds=[0, 1, 2],
        teacher_accuracy=0.9512,
        config={"data": {"name": "mnist", "fraction": 0.02}},
        environment={"torch": "2.6.0"},
        command="stillroom bench --methods alone,kd,simkd,rld,at --seeds 3",
    )
