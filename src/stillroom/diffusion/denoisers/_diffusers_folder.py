"""Find the parts of a diffusers model on disk or on the hub, and load them from safetensors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from stillroom.errors import InputError, MissingExtraError
from stillroom.models.weights import first_line

__all__ = ["find_folder", "import_diffusers", "load_part", "read_config"]

# Stem of the weights' files, and of the pickles that older versions wrote.
STEMS = {"diffusers": ("diffusion_pytorch_model",) * 2, "transformers": ("model", "pytorch_model")}


def import_diffusers() -> ModuleType:
    """Return the package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise MissingExtraError("diffusers", "diffusion") from None
    module: ModuleType = diffusers
    return module


def find_folder(source: str | Path, allow_pickle: bool) -> Path:
    """Return the folder of a local model, or of one of the Hugging Face hub after fetching it.

    Raises:
        InputError: There is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; name the folder of a diffusers pipeline or model")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise InputError(f"there is no folder {source}, and it is no id of the Hugging Face hub (owner/name)")
    return _fetch(str(source), allow_pickle)


def _fetch(name: str, allow_pickle: bool) -> Path:
    diffusers = import_diffusers()
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            hf_hub_download(name, "model_index.json")
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:  # a bare model
            patterns = ["*.json", "*.safetensors", *(["*.bin"] if allow_pickle else [])]
            return Path(snapshot_download(name, allow_patterns=patterns))
        # Safetensors where there are any; pickles are sorted out when the parts are loaded.
        return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=None if allow_pickle else True))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(f"there is no folder {name}, and the hub does not give it: {first_line(error)}") from error


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: The file is missing or holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file} is missing; the folder is no complete diffusers model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged or not readable: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} is damaged: it holds no JSON object")
    return value


def load_part(cls: Any, folder: Path, *, dtype: torch.dtype, allow_pickle: bool) -> nn.Module:
    """Load a network of diffusers or transformers, complete and in evaluation mode.

    Args:
        cls: Its class.
        folder: Its folder.
        dtype: Of its weights.
        allow_pickle: Take a pickle where there are no safetensors (read with ``weights_only``).

    Raises:
        InputError: A file is missing or damaged, or the weights do not fill the network.
    """
    library = str(cls.__module__).partition(".")[0]
    read_config(folder / "config.json")
    options = _weights(folder, *STEMS[library], allow_pickle)
    options["dtype" if library == "transformers" else "torch_dtype"] = dtype
    if library == "diffusers":
        options["low_cpu_mem_usage"] = False
    try:
        model, info = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be loaded as {cls.__name__}: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"the weights in {folder} do not fill {cls.__name__}: {missing[0]!r} is missing")
    network: nn.Module = model.eval().requires_grad_(False)
    return network


def _weights(folder: Path, stem: str, pickled: str, allow_pickle: bool) -> dict[str, Any]:
    """Say which of the files to load: the plain ones before a variant such as fp16, safetensors before pickles."""
    for extension in ("safetensors", "bin") if allow_pickle else ("safetensors",):
        base = stem if extension == "safetensors" else pickled
        found: dict[str, Any] = {"use_safetensors": extension == "safetensors"}
        names = {file.name for file in folder.iterdir()}
        if names & {f"{base}.{extension}", f"{base}.{extension}.index.json"}:
            return found
        pattern = rf"{re.escape(base)}\.(\w+)(-\d+-of-\d+)?\.{extension}"
        variants = sorted({match[1] for name in names if (match := re.fullmatch(pattern, name))})
        if variants:
            return {**found, "variant": variants[0]}
    if not allow_pickle and any(folder.glob(f"{pickled}*.bin")):
        raise InputError(f"{folder} holds its weights as a pickle; convert them to safetensors, or add --allow_pickle")
    raise InputError(f"{folder / stem}.safetensors is missing; the folder is no complete diffusers model")
