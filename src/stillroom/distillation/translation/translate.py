"""The job: make pairs of blocks, train a translator on them, and measure what translated blocks are worth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stillroom.data.images import ImageData, TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.translation._report import at_once_table, headline, write_report
from stillroom.distillation.translation.evaluate import check_steps, compare, count_flops
from stillroom.distillation.translation.kt import KT
from stillroom.distillation.translation.pairs import PairOptions, check_pairs, in_memory, make_pairs
from stillroom.distillation.translation.training import train_translator
from stillroom.distillation.translation.translator import Translator
from stillroom.errors import InputError
from stillroom.hyperparameters import method_options
from stillroom.models.stored import Fields, read_model, write_model
from stillroom.models.weights import load_weights
from stillroom.reports.page import environment
from stillroom.reports.tables import Table
from stillroom.training.fabric import Device, make_fabric
from stillroom.training.loop import check_intervals
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

__all__ = ["DATA", "METHOD", "RECIPE", "Translated", "load_translator", "translate"]

DATA = DataOptions(holdout=0.1, augment="none")  # the networks' own mirroring is an option of the pairs
METHOD = KT(layers=4, channels=32, hidden_tokens=128, hidden_channels=128)  # what trains on a CPU in seconds
RECIPE = Recipe(epochs=100, batch_size=32, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="cosine")

KIND = ("stillroom-translator", 1)

# Options that change no result, and may differ when a run is resumed.
MAY_CHANGE = frozenset({"out", "device", "jobs", "checkpoint_every", "pairs.folder"})

PAPER_PAIRS = 300_000


@dataclass(frozen=True)
class Translated:
    """What :func:`translate` returns: the translator in evaluation mode, and what stands in ``result.json``."""

    translator: Translator
    table: Table
    result: dict[str, Any]
    out: Path
    writes: bool  # False on all but the first of several processes


def translate(
    *,
    data: str | DataOptions = DATA,
    method: KT = METHOD,
    pairs: PairOptions = PairOptions(),  # noqa: B008 - frozen
    recipe: Recipe = RECIPE,
    steps: Sequence[int] = (0, 1, 5, 20, 100),
    out: str | Path = "runs/translation",
    seed: int = 0,
    device: Device = "auto",
    jobs: int = 1,
    eval_every: int = 10,
    checkpoint_every: int | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Translated:
    """Train a network that writes small blocks' weights from large blocks' weights, and judge what it writes.

    W. Sun et al., "Knowledge Translation: A New Pathway for Model Compression", 2024. Many networks are trained first,
    each with a large block and then with a small one in its place; the pairs of blocks are what the translator learns
    from. It is judged on networks that are not among them: their translated blocks are inserted as they are, and
    trained on, beside random ones and others.

    Args:
        data: The data set and its options; the epoch is chosen on its held-out part, the last one is taken without.
        method: Sizes and augmentation of the translator.
        pairs: How many networks, and how each is trained.
        recipe: Epochs, optimiser and learning rates of the translator.
        steps: Measure the blocks after so many steps of SGD; the first is 0.
        out: The run directory.
        seed: Seed of all networks, of the translator and of every order.
        device: Where to train.
        jobs: Processes that train networks, on a CPU.
        eval_every: Epochs between evaluations on the held-out images.
        checkpoint_every: Steps between checkpoints within an epoch; every epoch ends with one.
        show_progress: Show progress on standard error.
        resume: Continue the killed run in ``out``, to the same result.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        TrainingDivergedError: A loss became NaN or infinite.
        OutputError: A result could not be written.
    """
    options = DataOptions(name=data, holdout=DATA.holdout, augment="none") if isinstance(data, str) else data
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    if options.augment not in ("auto", "none") or options.views:
        raise InputError(
            "kt mirrors images by pairs.flip and knows no other augmentation; leave data.augment and views"
        )
    check_intervals(eval_every, checkpoint_every)
    check_steps(steps)
    config = {
        "data": asdict(options),
        "method": {"name": method.card.name, **method_options(method)},
        "pairs": asdict(pairs),
        "recipe": asdict(recipe),
        "steps": list(steps),
        "out": str(out),
        "seed": seed,
        "device": device,
        "jobs": jobs,
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
    }
    images = load_data(options)
    train_images = in_memory(images)
    fabric = make_fabric(device)
    if fabric.world_size > 1:
        raise InputError("kt runs in one process; use jobs=... for several, not torchrun")
    folder = Path(pairs.folder) if pairs.folder else Path(out) / "pairs"
    if pairs.folder or not overwrite:  # else the folder is emptied first
        check_pairs(images, pairs, folder, seed=seed, jobs=jobs)
    run = RunDirectory.create(
        out,
        config,
        overwrite=overwrite,
        resume=resume,
        keep=[folder] if pairs.folder else [],
        may_change=MAY_CHANGE,
        fabric=fabric,
    )
    made = make_pairs(images, pairs, folder, seed=seed, device=fabric.device, jobs=jobs, show_progress=show_progress)
    translator, history, kept = train_translator(
        made,
        method,
        recipe,
        seed=seed,
        run=run,
        fabric=fabric,
        held_out=_pixels(images.holdout),
        group=pairs.group,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        resume=resume,
        show_progress=show_progress,
    )
    save_translator(run.path, translator, method, pairs.planes)
    test = _pixels(images.test)
    assert test is not None
    comparison = compare(
        translator,
        made,
        (train_images.pixels, train_images.target),
        test,
        options=pairs,
        steps=steps,
        seed=seed,
        device=fabric.device,
        show_progress=show_progress,
    )
    flops = count_flops(translator, images.shape, len(images.classes), pairs)
    result: dict[str, Any] = {
        "data": images.describe(),
        "method": config["method"],
        "pairs": pairs.count,
        "validation": pairs.validation,
        "steps_per_network": _steps(pairs, len(train_images)),
        "translator_parameters": sum(parameter.numel() for parameter in translator.parameters()),
        "kept": kept,
        "train_loss": history[-1]["train_loss"],
        "at_once": {name: values.tolist() for name, values in comparison.at_once.items()},
        "steps": list(steps),
        "after": {f"{start}, {loss}": values.tolist() for (start, loss), values in comparison.after.items()},
        "headline": headline(comparison),
        "flops": asdict(flops),
        "seed": seed,
        "notes": _notes(pairs, images),
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    command = shlex.join(
        ["stillroom", "distill", "--method", "kt", "--config", str(run.config), "--out", "NEW_DIRECTORY"]
    )
    write_report(run.report, comparison, flops, history, config, result, command)
    return Translated(translator, at_once_table(comparison), result, Path(out), run.writes)


def _pixels(images: Any) -> tuple[Tensor, Tensor] | None:
    if images is None:
        return None
    assert isinstance(images, TensorImages)
    return images.pixels, images.target


def _steps(pairs: PairOptions, images: int) -> int:
    """Return the steps of SGD a network is trained for, and its small block again."""
    return pairs.epochs * -(-min(pairs.images or images, images) // pairs.batch_size)


def _notes(pairs: PairOptions, images: ImageData) -> list[str]:
    notes = []
    if pairs.count < PAPER_PAIRS:
        notes.append(
            f"The translator saw {pairs.count:,} pairs; the paper's {PAPER_PAIRS:,}, of networks trained for 10 epochs "
            "on all of MNIST. Far fewer pairs may teach it little more than the mean of the small blocks."
        )
    if images.holdout is None:
        notes.append("No training images are held out: the last epoch is kept. Set data.holdout to choose one.")
    return notes


def save_translator(directory: str | Path, translator: Translator, method: KT, planes: int) -> None:
    """Write a translator as ``model.safetensors`` and ``model.json``.

    Raises:
        OutputError: A file cannot be written.
    """
    about = {"planes": planes, "method": method_options(method)}
    write_model(directory, translator.state_dict(), KIND, about)


def load_translator(directory: str | Path) -> Translator:
    """Read a stored translator, in evaluation mode.

    Args:
        directory: A run of :func:`translate`, or where :func:`save_translator` wrote.

    Raises:
        InputError: The files are missing, damaged, or of another kind.
    """
    stored = read_model(directory, KIND)
    fields = Fields(stored.about, stored.file)
    options: Mapping[str, Any] = fields.table("method")
    try:
        method = KT(**options)
    except TypeError as error:
        raise InputError(f"{stored.file}: {error}") from None
    translator = method.build(fields.number("planes"))
    load_weights(translator, stored.state(), source=stored.weights)
    return translator.eval()
