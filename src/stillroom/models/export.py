"""Export of a trained classifier, each format re-loaded and compared with the network before it counts."""

from __future__ import annotations

import contextlib
import copy
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

__all__ = ["ExportError", "Exported", "Format", "export_model"]

Format = Literal["onnx", "torch"]
Predict = Callable[[Tensor], Tensor]

FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
BATCH_SIZES = (1, 5)  # both differ from the batch the network is traced with
TOLERANCE = 1e-4  # of the largest logit, at least of 1: other kernels add in another order


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
    shape: Sequence[int],
    directory: Path,
    formats: Sequence[Format] = ("onnx", "torch"),
) -> list[Exported]:
    """Write a classifier as ONNX (``model.onnx``) and as a ``torch.export`` program (``model.pt2``).

    Both take any batch size. Each is written aside, loaded again (ONNX by onnxruntime) and compared with the network
    on random normalised images in two batch sizes; only then does it take its place, so a failed export leaves
    whatever stood there. The network itself stays as it is.

    Args:
        model: Takes images [B, C, H, W] and returns logits [B, K].
        shape: Shape of one image, (C, H, W).
        directory: Where the files go.
        formats: Which to write.

    Raises:
        InputError: A format is unknown.
        MissingExtraError: ONNX is asked for and its packages are not installed.
        ExportError: The network cannot be exported, or the export answers differently.
        OutputError: The files cannot be written.
    """
    writers: dict[Format, Callable[[nn.Module, Tensor, Path], Predict]] = {"onnx": _write_onnx, "torch": _write_torch}
    for name in formats:
        if name not in writers:
            raise unknown_name("export format", name, get_args(Format))
    if "onnx" in formats:
        _need_onnx()
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    example, *images = (torch.randn(size, *shape, generator=generator) for size in (2, *BATCH_SIZES))
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    exported = []
    for name in formats:
        target = directory / FILES[name]
        with output_errors(target), tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as aside:
            written = Path(aside) / target.name
            try:
                with _quiet():
                    predict = writers[name](network, example, written)
            except (OSError, InputError):
                raise
            except Exception as error:  # torch.export and torch.onnx fail with errors of many kinds
                raise ExportError(f"the network cannot be exported as {name}: {_first_line(error)}") from error
            difference = _compare(name, network, predict, images)
            os.replace(written, target)
        exported.append(
            Exported(format=name, path=target, size_mb=target.stat().st_size / 1e6, max_difference=difference)
        )
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
        if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
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


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> Predict:
    import onnxruntime

    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return predict


def _write_torch(network: nn.Module, example: Tensor, path: Path) -> Predict:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    loaded: Predict = torch.export.load(path).module()
    return loaded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off standard output, and their warnings to themselves."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
