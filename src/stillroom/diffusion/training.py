"""Train a small diffusion model of images: EDM's loss, a moving average of the weights, exact resume, a report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.data.images import ImageData, ImageSet
from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.diffusion.images import as_pixels, draw_noise, drawn_class, tile
from stillroom.diffusion.network import EDMDenoiser, NetworkOptions
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import Heun
from stillroom.diffusion.store import DenoiserCard, save_denoiser
from stillroom.diffusion.task import DenoisingTask, NoiseOptions, denoising_step, edm_loss
from stillroom.errors import InputError
from stillroom.reports.page import Figure, Page, Section, environment, picture, write_page
from stillroom.reports.plots import training_curves
from stillroom.training.evaluate import to_device
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.loop import check_intervals, fit
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DATA", "MAY_CHANGE", "RECIPE", "Trained", "train"]

DATA = DataOptions(augment="none")  # what is shifted in training would be shifted in samples
RECIPE = Recipe(epochs=40, optimizer="adamw", lr=2e-3, weight_decay=0.0, schedule="cosine", clip_norm=1.0)

# Options that change no result, and may differ when a run is resumed.
MAY_CHANGE = frozenset({"out", "device", "checkpoint_every", "tensorboard"})

CENTRE, SPREAD = 0.5, 0.5  # pixels in 0..1 become -1..1
TEST_IMAGES = 2000  # that the denoising error is measured on, at most
TEST_BATCH = 250
PICTURES = 64  # in the report
# EDM's sampler for CIFAR-10 (Karras et al., NeurIPS 2022, table 1): slow and good, so that the model shows, not it.
STEPS = 17


@dataclass(frozen=True)
class Trained:
    """What :func:`train` returns: the averaged model, in evaluation mode, and what stands in ``result.json``."""

    denoiser: EDMDenoiser
    result: dict[str, Any]
    out: Path
    writes: bool  # False on all but the first of several processes


def train(
    *,
    data: str | DataOptions = DATA,
    conditional: bool = False,
    network: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    noise: NoiseOptions = NoiseOptions(),  # noqa: B008 - frozen
    recipe: Recipe = RECIPE,
    half: bool = False,
    out: str | Path = "runs/diffusion",
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
) -> Trained:
    """Train a denoiser on images, in the way of Karras et al., Elucidating the Design Space, NeurIPS 2022.

    The run directory holds the averaged model, as :func:`~stillroom.diffusion.load.load_denoiser` reads it.

    Args:
        data: The data set and its options.
        conditional: Train a class-conditional model, which is shown no class for some of the images.
        network: Widths and depths of the U-Net.
        noise: Noise levels, label dropout and decay of the moving average.
        recipe: Epochs, optimiser and learning rates.
        half: Store the weights in float16, half as large.
        out: The run directory.
        seed: Seed of initial weights, order and noise.
        device: Where to train.
        precision: Number format of the training's forward pass; weights stay in float32.
        compile: Compile the whole forward pass of the training step.
        eval_every: Epochs between measurements of the denoising error on test images.
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
    options = DataOptions(name=data, augment=DATA.augment) if isinstance(data, str) else data
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    check_intervals(eval_every, checkpoint_every)
    config = {
        "data": asdict(options),
        "conditional": conditional,
        "network": asdict(network),
        "noise": asdict(noise),
        "recipe": asdict(recipe),
        "half": half,
        "out": str(out),
        "seed": seed,
        "device": device,
        "precision": precision,
        "compile": compile,
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
        "tensorboard": tensorboard,
    }
    images = load_data(options, least_classes=2 if conditional else 1)
    classes = images.classes if conditional else ()
    fabric = make_fabric(device, precision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = EDMDenoiser(images.shape, len(classes), network).to(memory_format=torch.channels_last)
    task = DenoisingTask(denoiser.to(fabric.device), noise)
    loader = TrainLoader(
        images.train,
        batch_size=recipe.batch_size,
        seed=seed,
        augment=images.augment,
        mean=(CENTRE,) * images.shape[0],
        std=(SPREAD,) * images.shape[0],
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        views=options.views,
    )
    run = RunDirectory.create(out, config, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE, fabric=fabric)
    history = fit(
        task,
        loader,
        recipe,
        seed=seed,
        run=run,
        fabric=fabric,
        evaluate=_test_loss(images.test, noise, seed, fabric),
        eval_every=eval_every,
        resume=resume,
        compile=compile,
        checkpoint_every=checkpoint_every,
        step=denoising_step,
        label=f"{options.name}, denoiser",
        show_progress=show_progress,
        tensorboard=tensorboard,
    )
    average = task.ema.module.eval()
    assert isinstance(average, EDMDenoiser)
    last = history[-1]
    result: dict[str, Any] = {
        "data": images.describe(),
        "parameters": sum(parameter.numel() for parameter in average.parameters()),
        "epochs": recipe.epochs,
        "steps": int(task.ema.updates),
        "train_loss": last["train_loss"],
        "test_loss": last["test_loss"],
        "seed": seed,
        "environment": environment(),
        "out": str(out),
    }
    if fabric.is_global_zero:
        facts = {name: result[name] for name in ("epochs", "steps", "train_loss", "test_loss", "seed")}
        card = DenoiserCard(network=network, shape=images.shape, classes=classes, extra={"data": options.name, **facts})
        save_denoiser(run.path, average, card, half=half)
        run.write_result(result)
        _report(run, average, images, history, config, result)
    fabric.barrier()
    return Trained(average, result, Path(out), run.writes)


def _test_loss(
    images: ImageSet, noise: NoiseOptions, seed: int, fabric: Fabric
) -> Callable[[nn.Module], dict[str, float]]:
    """Return the measurement of a task: the averaged model's denoising loss on test images under the same noise."""
    chosen = images.subset(torch.arange(min(TEST_IMAGES, len(images))))
    channels = images.shape[0]
    loader = EvalLoader(
        chosen,
        batch_size=TEST_BATCH,
        mean=(CENTRE,) * channels,
        std=(SPREAD,) * channels,
        device=fabric.device,
    )

    def measure(task: nn.Module) -> dict[str, float]:
        assert isinstance(task, DenoisingTask)
        average = task.ema.module
        assert isinstance(average, EDMDenoiser)
        generator = torch.Generator().manual_seed(seed)  # not the training's, which must not notice
        total = torch.zeros((), device=fabric.device)
        for batch in loader:
            clean, target, _ = to_device(batch, fabric.device)
            level = torch.exp(torch.randn(len(clean), generator=generator) * noise.std + noise.mean)
            noisy = torch.randn(clean.shape, generator=generator) * level[:, None, None, None]
            sigma = level.to(clean.device)
            with fabric.autocast():
                denoised = average(clean + noisy.to(clean.device), sigma, target if average.classes else None)
            total += edm_loss(denoised.float(), clean, sigma, average.options.sigma_data) * len(clean)
        return {"test_loss": total.item() / len(chosen)}

    return measure


def _report(
    run: RunDirectory,
    denoiser: EDMDenoiser,
    images: ImageData,
    history: list[dict[str, Any]],
    config: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Write the page: a picture of samples beside training images, the curve of the loss."""
    card = DenoiserCard(network=denoiser.options, shape=denoiser.shape)
    sigmas = schedule("polynomial", STEPS + 1, card.sigma_min, card.sigma_max)
    sampler = Sampler(Heun(), tuple(sigmas.tolist()), denoise_to_zero=True)
    device = next(denoiser.parameters()).device
    drawn = [drawn_class(seed, denoiser.classes) for seed in range(PICTURES)] if denoiser.classes else None
    condition = None if drawn is None else torch.tensor(drawn, device=device)
    samples = sampler(denoiser, draw_noise(range(PICTURES), denoiser.shape).to(device), condition)
    channels = denoiser.shape[0]
    real = next(
        iter(EvalLoader(images.test, batch_size=PICTURES, mean=(CENTRE,) * channels, std=(SPREAD,) * channels))
    ).images
    losses = {
        "training": [record["train_loss"] for record in history],
        "test, averaged model": [record.get("test_loss", float("nan")) for record in history],
    }
    write_page(
        run.report,
        Page(
            kind="diffusion model",
            title=f"A denoiser of {images.name}, {result['parameters']:,} parameters",
            headline=f"After {result['epochs']} epochs the denoising loss on test images is {result['test_loss']:.4g}.",
            sections=[
                Section(
                    title="Samples",
                    parts=[picture(tile(as_pixels(samples)), f"Seeds 0 to {PICTURES - 1}, {sampler.nfe} evaluations.")],
                ),
                Section(title="Test images, for comparison", parts=[picture(tile(as_pixels(real)))]),
                Section(
                    title="Training",
                    parts=[Figure(training_curves({"denoising loss": losses}), "One value per epoch.")],
                    note="Loss weighted by noise level as in EDM; an untrained model has about 1.",
                ),
            ],
            config=config,
            environment=environment(),
            command=shlex.join(
                ["stillroom", "diffusion", "train", "--config", str(run.config), "--out", "NEW_DIRECTORY"]
            ),
        ),
    )
