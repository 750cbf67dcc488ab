"""Export of a trained classifier, each format re-loaded and compared with the network before it counts."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.errors import FailureError, InputError, MissingExtraError, unknown_name
from stillroom.files import output_errors
from stillroom.models.store import ModelCard, load_model, save_model

__all__ = ["ExportError", "Exported", "Format", "export_model"]

Format = Literal["safetensors", "onnx", "torch"]
Predict = Callable[[Tensor], Tensor]

FILES: dict[Format, tuple[str, ...]] = {
    "safetensors": ("model.safetensors", "model.json"),
    "onnx": ("model.onnx",),
    "torch": ("model.pt2",),
}
BATCH_SIZES = (1, 5)  # both differ from the batch the network is traced with
# Other kernels add in another order: part of the largest logit, and what rounding leaves of a logit of zero.
RELATIVE, ABSOLUTE = 1e-4, 1e-6


class ExportError(FailureError):
    """The network cannot be written in this format, or what was written answers differently."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One exported file that answers as the network does."""

    format: Format
    path: Path
    size_mb: float  # in 10^6 bytes
    max_difference: float  # largest absolute difference of a logit, over all compared images


def export_model(
    model: nn.Module,
    card: ModelCard,
    directory: Path,
    formats: Sequence[Format] = ("safetensors", "onnx", "torch"),
) -> list[Exported]:
    """Write a classifier as safetensors with its card, as ONNX and as a ``torch.export`` program.

    ONNX and ``torch.export`` take any batch size, and carry the card's classes and normalisation as metadata. Each
    format is written aside, loaded again (ONNX by onnxruntime) and compared with the network on random normalised
    images in two batch sizes; only then does it take its place, so a failed export leaves whatever stood there. The
    network itself stays as it is.

    Args:
        model: Takes images [B, C, H, W] and returns logits [B, K].
        card: Its card; ``input_shape`` is the shape of one image.
        directory: Where the files go: ``model.safetensors`` and ``model.json``, ``model.onnx``, ``model.pt2``.
        formats: Which to write.

    Raises:
        InputError: A format is unknown.
        MissingExtraError: ONNX is asked for and its packages are not installed.
        ExportError: The network cannot be exported, or the export answers differently.
        OutputError: The files cannot be written.
    """
    for name in formats:
        if name not in WRITERS:
            raise unknown_name("export format", name, get_args(Format))
    if "onnx" in formats:
        _need_onnx()
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    example, *images = (torch.randn(size, *card.input_shape, generator=generator) for size in (2, *BATCH_SIZES))
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    exported = []
    for name in formats:
        with output_errors(directory), tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as aside:
            try:
                with _quiet():
                    predict = WRITERS[name](network, card, example, Path(aside))
            except (OSError, InputError, FailureError):
                raise
            except Exception as error:  # torch.export and torch.onnx fail with errors of many kinds
                raise ExportError(f"the network cannot be exported as {name}: {_first_line(error)}") from error
            difference = _compare(name, network, predict, images)
            for file in FILES[name]:
                os.replace(Path(aside) / file, directory / file)
        written = [directory / file for file in FILES[name]]
        size = sum(file.stat().st_size for file in written) / 1e6
        exported.append(Exported(format=name, path=written[0], size_mb=size, max_difference=difference))
    return exported


def _compare(name: str, network: nn.Module, predict: Predict, batches: Sequence[Tensor]) -> float:
    worst = 0.0
    for images in batches:
        with torch.no_grad():
            expected = network(images)
            answer = predict(images)
        if answer.shape != expected.shape:
            raise ExportError(
                f"the {name} export answers {tuple(answer.shape)} where the network answers {tuple(expected.shape)}; "
                "nothing was kept"
            )
        difference = (answer - expected).abs().max().item()
        # Written so that NaN fails.
        if not difference <= ABSOLUTE + RELATIVE * expected.abs().max().item():
            raise ExportError(
                f"the {name} export differs from the network by {difference:.3g} at batch size {len(images)}; "
                "nothing was kept"
            )
        worst = max(worst, difference)
    return worst


def _first_line(error: BaseException) -> str:
    """Return the first line of what an error began with; exporters wrap it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _need_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "onnx") from error


def _about(card: ModelCard) -> dict[str, str]:
    """Return what a user of an exported file must know, each entry as JSON."""
    facts = {"classes": card.classes, "mean": card.mean, "std": card.std, "input_shape": card.input_shape}
    return {name: json.dumps(value) for name, value in facts.items()}


def _write_safetensors(network: nn.Module, card: ModelCard, example: Tensor, folder: Path) -> Predict:
    save_model(folder, network, card)
    # The card is our own: if it names a user's function, that is the one the network was built by.
    return load_model(folder, allow_import=True).model


def _write_onnx(network: nn.Module, card: ModelCard, example: Tensor, folder: Path) -> Predict:
    import onnxruntime

    path = folder / "model.onnx"
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # it is with dynamo=True
    program.model.metadata_props.update(_about(card))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return predict


def _write_torch(network: nn.Module, card: ModelCard, example: Tensor, folder: Path) -> Predict:
    path = folder / "model.pt2"
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files={f"{name}.json": value for name, value in _about(card).items()})
    loaded: Predict = torch.export.load(path).module()
    return loaded


Writer = Callable[[nn.Module, ModelCard, Tensor, Path], Predict]
WRITERS: dict[Format, Writer] = {"safetensors": _write_safetensors, "onnx": _write_onnx, "torch": _write_torch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off standard output, and their warnings to themselves."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
