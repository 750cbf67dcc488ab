"""The job of ``stillroom defense fit``: a model and its guard in one directory that can be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from stillroom.data.images import ImageData, ImageSet, TensorImages
from stillroom.data.loaders import TrainLoader
from stillroom.defense.add import fit_reference
from stillroom.defense.calibrate import calibrate, draw_windows, honest_scores, two_halves, window_scores, windows_for
from stillroom.defense.contracts import Floats, Ints, Observed
from stillroom.defense.detection import separate
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.expected import fit_expected
from stillroom.defense.guard import Guard
from stillroom.defense.traffic import generated_images, noise_images
from stillroom.errors import InputError
from stillroom.models.create import create_model
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard, save_model, weights_hash
from stillroom.reports.page import Figure, Page, Section, environment, write_page
from stillroom.reports.plots import ACCENT, INK, MUTED, svg
from stillroom.reports.tables import Column, Table
from stillroom.training.fabric import Device, make_fabric, torch_device
from stillroom.training.loop import fit
from stillroom.training.recipe import PRESETS
from stillroom.training.run import RunDirectory
from stillroom.training.supervised import Supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["Fitted", "Victim", "fit_guard", "observe_set", "pixels_of", "train_victim"]

ARCHITECTURE = "resnet8"
STRANGERS = 2000  # images that no honest user would send, to show what the threshold is worth
HELD_OUT = 4096  # features of honest queries kept with the guard
WINDOWS = 1000  # of each kind, drawn for the report


@dataclass(frozen=True)
class Victim:
    """A classifier that is to be guarded: network, card, and where it is tapped (found when not given)."""

    model: nn.Module
    card: ModelCard
    taps: TapPaths | None = None


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit_guard` returns."""

    guard: Guard
    table: Table
    result: dict[str, Any]
    out: Path


def fit_guard(
    data: ImageData,
    victim: Victim | None = None,
    *,
    window: int = 16,
    target_fpr: float = 0.01,
    concentration: float | None = None,
    adjust: bool = True,
    shrinkage: float = 0.0,
    epochs: int = 15,
    seed: int = 0,
    device: Device = "auto",
    out: str | Path = "runs/guard",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Fitted:
    """Fit the detector of a classifier and calibrate its threshold; write both, ready to be served.

    The reference comes from the training images, without augmentation; the threshold from images the classifier was
    not trained on (the held-out split when there is one, else the test images).

    Args:
        data: What the classifier was trained for.
        victim: The classifier; a small one is trained on the data when not given.
        window: W, queries an account is judged by; many classes need long windows (256 for 100 classes).
        target_fpr: Share of honest windows the threshold may flag.
        concentration: Calibrate for users with class mixes of their own: concentration of the Dirichlet distribution
            they are drawn from, 0.3 for users interested in a few classes; the data's mix when not given.
        adjust: Take away what honest queries of the same classes and numbers have on average, so that the threshold
            holds whatever few or many classes an account asks about; the paper's score does not.
        shrinkage: Move each covariance by this share towards a multiple of the identity; the paper does not.
        epochs: Epochs of the classifier that is trained when none is given.
        seed: Seed of that training and of the windows drawn.
        device: Where to compute.
        out: The directory to write.
        config: The options as the command line knows them, kept in ``config.yaml``.
        show_progress: Show progress on standard error.
        resume: Continue a killed run in ``out``.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: A result could not be written.
    """
    # Linked accounts are judged by two tests, which share the false alarms of one.
    draws = max(4000, windows_for(target_fpr), windows_for(target_fpr / 2))
    asked = {"window": window, "target_fpr": target_fpr, "seed": seed, **(config or {}), "out": str(out)}
    run = RunDirectory.create(out, asked, overwrite=overwrite, resume=resume)
    if victim is None:
        victim = train_victim(
            data, ARCHITECTURE, epochs, seed, device, run=run, resume=resume, show_progress=show_progress
        )
    endpoint = _endpoint(victim, data, device)
    held_out = data.holdout or data.test
    known = observe_set(endpoint, data.train)
    reference = fit_reference(known.features, data.train.target.numpy(), len(data.classes), shrinkage=shrinkage)
    seen = observe_set(endpoint, held_out)
    labels: Ints = held_out.target.numpy()
    predicted = seen.logits.argmax(1).astype(np.int64)
    if len(labels) < 2 * window:
        raise InputError(
            f"{len(labels)} held-out images are too few for windows of {window}; give at least {2 * window}"
        )
    choosing, _ = two_halves(len(labels), seed)
    expected = None
    if adjust:
        expected = fit_expected(reference, seen.features[choosing], predicted[choosing], window=window, seed=seed)
    honest = honest_scores(
        reference,
        seen.features,
        seen.logits,
        window=window,
        expected=expected,
        labels=labels,
        concentration=concentration,
        draws=draws,
        seed=seed,
    )
    calibration = calibrate(honest, target_fpr=target_fpr)
    linked = calibrate(honest, target_fpr=target_fpr / 2)
    kept = np.random.default_rng((seed, 4)).permutation(len(labels))[:HELD_OUT]
    guard = Guard(
        reference=reference,
        expected=expected,
        window=window,
        calibration=calibration,
        linked=linked,
        held_out=seen.features[kept],
        held_out_classes=predicted[kept],
        weights_sha256=weights_hash(endpoint.model),
        classes=data.classes,
    )
    scores: dict[str, Floats] = {}
    for name, images in (
        ("generated images", generated_images(data.shape, STRANGERS, seed=seed)),
        ("noise", noise_images(data.shape, STRANGERS, seed=seed)),
    ):
        scores[name] = _scores(guard, endpoint.observe(images), seed)
    save_model(run.path, endpoint.model, victim.card)
    guard.save(run.path)
    found = {name: separate(honest.checking, attack, calibration.threshold) for name, attack in scores.items()}
    table = Table(
        [
            *(Column("queries"), Column("AUROC", ".4f"), Column("FPR at 95 % TPR [%]", ".2f")),
            Column("windows flagged [%]", ".1f"),
        ],
        [[name, x.auroc, 100 * x.fpr_at_95_tpr, 100 * x.detected] for name, x in found.items()],
    )
    accuracy = 100 * float((seen.logits.argmax(1) == labels).mean())
    result = {
        "data": data.describe(),
        "architecture": victim.card.architecture,
        "accuracy": accuracy,
        "window": window,
        "features": guard.width,
        "calibration": asdict(calibration),
        "separation": {name: asdict(x) for name, x in found.items()},
        "seed": seed,
        "out": str(run.path),
    }
    run.write_result(result)
    _write_report(run, guard, {"held-out images": honest.checking[:WINDOWS], **scores}, table, result, asked)
    return Fitted(guard, table, result, run.path)


def observe_set(endpoint: Endpoint, images: ImageSet) -> Observed:
    """Return features and logits of a set of images in memory.

    Raises:
        InputError: The set is streamed from disk.
    """
    return endpoint.observe(pixels_of(images))


def pixels_of(images: ImageSet) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the images [N, C, H, W] of a set in memory.

    Raises:
        InputError: The set is streamed from disk.
    """
    if not isinstance(images, TensorImages):
        raise InputError("the images do not fit in memory; take a share of them with data.fraction")
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = images.pixels.numpy()
    return pixels


def train_victim(
    data: ImageData,
    architecture: str,
    epochs: int,
    seed: int,
    device: Device,
    *,
    run: RunDirectory | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Victim:
    """Train a classifier on the data's labels, with the quick recipe.

    Raises:
        InputError: The architecture does not exist or cannot take the images.
    """
    fabric = make_fabric(device)
    recipe = replace(PRESETS["quick"], epochs=epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create_model(
            architecture, num_classes=len(data.classes), in_channels=data.shape[0], image_size=data.shape[1:]
        )
    loader = TrainLoader(
        data.train,
        batch_size=recipe.batch_size,
        seed=seed,
        augment=data.augment,
        mean=data.mean,
        std=data.std,
        device=fabric.device,
    )
    task = Supervised(model).to(fabric.device)
    fit(task, loader, recipe, seed=seed, run=run, fabric=fabric, resume=resume, label=f"train {architecture}",
        show_progress=show_progress)  # fmt: skip
    card = ModelCard(
        architecture=architecture,
        num_classes=len(data.classes),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        input_shape=data.shape,
    )
    return Victim(model.eval(), card)


def _endpoint(victim: Victim, data: ImageData, device: Device) -> Endpoint:
    card = victim.card
    if card.classes != data.classes:
        raise InputError(
            f"the model answers {', '.join(card.classes[:3])} ..., {data.name} has {', '.join(data.classes[:3])} ...; "
            "name the data it was trained on"
        )
    return Endpoint(victim.model, card, taps=victim.taps, device=torch_device(device))


def _scores(guard: Guard, seen: Observed, seed: int) -> Floats:
    stream = np.random.default_rng((seed, 1))
    windows = draw_windows(len(seen.logits), guard.window, WINDOWS, stream)
    classes = seen.logits.argmax(1).astype(np.int64)
    return window_scores(guard.reference, seen.features, classes, windows, guard.expected)


def _write_report(
    run: RunDirectory,
    guard: Guard,
    scores: Mapping[str, Floats],
    table: Table,
    result: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    calibration = guard.calibration

    def draw(figure: Canvas) -> None:
        axes = figure.subplots()
        everything = np.concatenate(list(scores.values()))
        low, high = float(np.quantile(everything, 0.001)), float(np.quantile(everything, 0.999))
        bins = np.linspace(low, high, 60).tolist()
        for (name, values), colour in zip(scores.items(), (ACCENT, INK, MUTED), strict=True):
            axes.hist(values, bins, color=colour, alpha=0.75, label=name)
        axes.axvline(calibration.threshold, color=INK, linewidth=1, linestyle="--", label="threshold")
        axes.set_xlabel("score of a window")
        axes.set_ylabel("windows")
        axes.legend(fontsize=9)

    said = (
        f"The threshold is {calibration.threshold:.4g}: chosen on {calibration.windows} windows so that "
        f"{100 * calibration.target_fpr:g} % of them lie above it; of as many windows of other held-out images "
        f"{100 * calibration.fpr:.2f} % do (95 % interval {100 * calibration.low:.2f} to "
        f"{100 * calibration.high:.2f} %)."
    )
    sections = [
        Section(
            title="Honest windows and strangers",
            text=said,
            parts=[Figure(svg(draw, 6.8, 3.2), f"Scores of windows of {guard.window} queries.")],
            note="A threshold is valid for this model, this window and this mix of classes only.",
        ),
        Section(
            title="What the detector tells apart",
            text="Windows of images that no honest user would send, against held-out images of the data.",
            parts=[table],
            note="Images of the data's own kind cannot be told apart by any detector of this sort.",
        ),
    ]
    page = Page(
        kind="guard",
        title=f"Guard of {result['architecture']} on {result['data']['name']}",
        headline=f"{result['accuracy']:.2f} % accuracy; threshold {calibration.threshold:.4g}",
        sections=sections,
        config=config,
        environment=environment(),
    )
    write_page(run.report, page)
