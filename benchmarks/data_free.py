"""Data-free distillation under one budget: every method gets the same number of synthesis and of student steps.

    python benchmarks/data_free.py mnist
    python benchmarks/data_free.py cifar10 --seeds 1 --width 32

`mnist` trains its teacher (resnet20) first, on the training images; no student sees them. `cifar10` takes the trained
resnet56-jpeg and is judged on the JPEG test images. CSD spends half of its synthesis on the initial bank. Finished
cells are kept in --out, and a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.distillation.data_free.cmi import CMI
from stillroom.distillation.data_free.csd import CSD
from stillroom.distillation.data_free.dafl import DAFL
from stillroom.distillation.data_free.deepinversion import DeepInversion
from stillroom.distillation.data_free.training import Method, as_teacher_sees, rehearse_data_free, train_data_free
from stillroom.distillation.data_free.zskt import ZSKT
from stillroom.distillation.networks import Network, load_network, new_network
from stillroom.distillation.training import Setting, train_alone
from stillroom.files import write_bytes_atomic, write_json_atomic
from stillroom.models.store import save_model
from stillroom.reports.page import environment
from stillroom.reports.tables import Column, Table, markdown, mean_ci
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

METHODS = ("csd", "csd without customisation", "cmi", "deepinversion", "dafl", "zskt")
REAL = "real images, labels"
COLUMNS = [
    Column("method"),
    Column("top-1 [%], mean", ".2f"),
    Column("± 95 %", ".2f"),
    Column("each seed [%]"),
    Column("images made", ",d"),
    Column("teacher's first choice [%]", ".1f"),
    Column("seconds a seed", ".0f"),
]


def method_of(name: str, options: argparse.Namespace) -> Method:
    """Return a method whose synthesis and student steps are those of the budget."""
    rounds, kd_steps, g_steps = options.rounds, options.kd_steps, options.g_steps
    size = {"synthesis_batch": options.synthesis_batch}
    if name.startswith("csd"):
        weight = {"csd": 0.0} if "without" in name else {}
        half = g_steps // 2
        return CSD(
            kd_steps=kd_steps,
            g_steps=half,
            initial_rounds=rounds // 2,
            initial_g_steps=g_steps,
            width=options.width,
            **size,
            **weight,
        )
    if name == "cmi":
        return CMI(kd_steps=kd_steps, g_steps=g_steps, width=options.width, **size)
    if name == "deepinversion":
        return DeepInversion(kd_steps=kd_steps, g_steps=g_steps, **size)
    turns = {"kd_steps": max(1, kd_steps // g_steps), "g_steps": max(1, g_steps // kd_steps)}
    kind = {"dafl": DAFL, "zskt": ZSKT}[name]
    return kind(ep_steps=kd_steps, width=options.width, **turns, **size)


def teacher_of(options: argparse.Namespace, data: ImageData, setting: Setting) -> Network:
    """Load the teacher, or train MNIST's."""
    if options.teacher is not None:
        return load_network(options.teacher, data, normalisation="imagenet" if options.task == "cifar10" else "auto")
    if options.task == "cifar10":
        weights = data_root() / "cifar10-resnets" / "resnet56-jpeg.safetensors"  # type: ignore[operator]
        return load_network(f"resnet56_a@{weights}", data, normalisation="imagenet")
    place = options.out / "teacher"
    if not (place / "model.json").is_file():
        torch.manual_seed(0)
        recipe = Recipe(epochs=options.teacher_epochs, batch_size=128, lr=0.1, schedule="cosine")
        longer = replace(setting, recipe=recipe, resume=True)
        trained = train_alone(new_network("resnet20", data), longer, RunDirectory(place), label="teacher")
        save_model(place, trained.network.model, trained.network.card)
    return load_network(str(place), data)


def cell(name: str, seed: int, teacher: Network, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Train one student and return what it reached; a finished cell is read."""
    run = RunDirectory(options.out / name.replace(" ", "-").replace(",", "") / f"seed-{seed}")
    if run.result.is_file():
        found: dict[str, Any] = json.loads(run.result.read_text())
        return found
    run.path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    student = new_network(options.student, setting.data)
    setting = replace(setting, seed=seed, resume=True)
    started = time.monotonic()
    if name == REAL:
        # As many student steps as the others have, in as many epochs as they have rounds.
        share = options.kd_steps * options.batch_size
        order = torch.randperm(len(setting.data.train), generator=torch.Generator().manual_seed(seed))
        images = setting.data.train.subset(order[:share])
        alone = replace(setting, data=replace(setting.data, train=images))
        trained = train_alone(student, alone, run, label=name)
    else:
        method = method_of(name, options)
        rehearse_data_free(student, teacher, method, setting)
        trained = train_data_free(student, teacher, method, setting, run)
        write_bytes_atomic(run.path / "images.png", base64.b64decode(trained.sections[0].parts[0].png))  # type: ignore[union-attr]
    result = {
        "accuracy": trained.test_accuracy,
        "seconds": time.monotonic() - started,
        **trained.measured,
        "history": trained.history,
    }
    run.write_result(result)
    print(f"{name}, seed {seed}: {result['accuracy']:.2f} %", file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("mnist", "cifar10"))
    parser.add_argument("--methods", nargs="*", default=[REAL, *METHODS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--g_steps", type=int, default=200, help="steps of the synthesis per round")
    parser.add_argument("--kd_steps", type=int, default=150, help="steps of the student per round")
    parser.add_argument("--synthesis_batch", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="of the generators; the paper's is 64")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--teacher", default=None, help="run directory or NAME@WEIGHTS; resnet20, or resnet56-jpeg")
    parser.add_argument("--teacher_epochs", type=int, default=1)
    parser.add_argument("--student", default=None, help="resnet8 for mnist, resnet20 for cifar10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.student = options.student or {"mnist": "resnet8", "cifar10": "resnet20"}[options.task]
    options.out = options.out or Path("runs/data_free") / options.task

    data = load_data(DataOptions(name=options.task))
    recipe = Recipe(
        epochs=options.rounds, batch_size=options.batch_size, lr=options.lr, weight_decay=1e-4, schedule="cosine"
    )
    setting = Setting(
        data=data,
        recipe=recipe,
        seed=0,
        fabric=make_fabric(options.device),
        eval_every=max(1, options.rounds // 5),
        show_progress=not options.quiet,
    )
    teacher = teacher_of(options, data, setting)
    teacher.model.to(setting.fabric.device)
    answers = as_teacher_sees(setting, teacher).predict(teacher.model.eval())
    reached = (answers == data.test.target).float().mean().item()
    print(f"teacher {teacher.name}: {100 * reached:.2f} %", file=sys.stderr, flush=True)
    rows, results = [], {}
    for name in options.methods:
        cells = [cell(name, seed, teacher, setting, options) for seed in range(options.seeds)]
        accuracies = [found["accuracy"] for found in cells]
        results[name] = cells
        mean, half = mean_ci(accuracies)
        agreement = cells[0].get("teacher_agreement")
        rows.append(
            [
                name,
                mean,
                half,
                ", ".join(f"{value:.2f}" for value in accuracies),
                cells[0].get("images_synthesised"),
                None if agreement is None else 100 * agreement,
                sum(found["seconds"] for found in cells) / len(cells),
            ]
        )
    budget = {name: str(value) for name, value in vars(options).items()}
    told = {"teacher_accuracy": 100 * reached, "budget": budget, "environment": environment(), "results": results}
    write_json_atomic(options.out / "data_free.json", told)
    print(f"Teacher {teacher.name}: {100 * reached:.2f} %.\n")
    print(markdown(Table(COLUMNS, rows)))


if __name__ == "__main__":
    main()
