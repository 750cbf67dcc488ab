"""Published EDM checkpoints (VP, VE, iDDPM and EDM preconditioning): converted once to safetensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.diffusion.amed.feature import bottleneck
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers._inert_pickle import Record, read_inert, tensor_of
from stillroom.diffusion.denoisers.discrete_preconditioning import IDDPM
from stillroom.diffusion.denoisers.edm_networks import ADMUNet, SongUNet
from stillroom.diffusion.denoisers.edm_options import ADMOptions, SongOptions
from stillroom.diffusion.denoisers.preconditioning import EDM, VE, VP, Preconditioned
from stillroom.errors import InputError, unknown_name
from stillroom.models.stored import Fields, read_model, write_model
from stillroom.models.weights import load_weights

__all__ = ["convert_edm_pickle", "edm_checkpoint"]

KIND = ("stillroom-edm-checkpoint", 1)

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"

# What the pickles of the official code name. None of it is looked up: each becomes an inert record.
ALLOWED = frozenset(
    {
        PERSISTENT,
        "dnnlib.util.EasyDict",
        "collections.OrderedDict",
        "builtins.set",
        "__builtin__.set",
        "_codecs.encode",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.storage._load_from_bytes",
        "torch.device",
        "torch.Size",
        "torch.nn.modules.container.ModuleDict",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.Sequential",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
    }
)

# The classes of the official code, and the numbers of each preconditioning.
PRECONDITIONING: dict[str, tuple[Any, tuple[str, ...]]] = {
    "VPPrecond": (VP, ("beta_d", "beta_min", "M", "epsilon_t")),
    "VEPrecond": (VE, ("sigma_min", "sigma_max")),
    "iDDPMPrecond": (IDDPM, ("C_1", "C_2", "M")),
    "EDMPrecond": (EDM, ("sigma_min", "sigma_max", "sigma_data")),
}
NETWORKS: dict[str, tuple[Any, type[ADMOptions]]] = {
    "SongUNet": (SongUNet, SongOptions),
    "DhariwalUNet": (ADMUNet, ADMOptions),
}
# Arguments that matter in training only (and the precision, which is the user's choice here).
IGNORED = ("augment_dim", "dropout", "label_dropout", "use_fp16")


def edm_checkpoint(
    path: str | Path, *, allow_pickle: bool = False, device: torch.device | str = "cpu"
) -> DenoisingModel:
    """Load a published EDM checkpoint (Karras et al., Elucidating the Design Space, NeurIPS 2022) as a denoiser.

    Args:
        path: The official pickle, which is converted once into the folder of the same name without its suffix, or that
            folder. Later calls read the folder, also when given the pickle.
        allow_pickle: Permit reading a pickle. Even then nothing of it is executed.
        device: Where it computes.

    Returns:
        The model; its condition is [B] int64 classes where it has any, of which ``classes`` stands for "none".

    Raises:
        InputError: A file is missing, damaged or holds something else, or is a pickle and may not be one.
        OutputError: The converted model could not be written.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no EDM checkpoint {path}")
    if path.is_file() and path.suffix not in (".json", ".safetensors"):
        path = _converted(path, allow_pickle)
    elif path.suffix == ".safetensors":
        path = path.parent
    stored = read_model(path, KIND)
    told = Fields(stored.about, stored.file)
    network = _network(_options(told.table("network"), stored.file))
    load_weights(network, stored.state(), source=stored.weights)
    preconditioning = _preconditioning(told.table("preconditioning"), stored.file)
    network.eval().requires_grad_(False).to(device)
    options = network.options
    return DenoisingModel(
        denoiser=Preconditioned(EDMNetwork(network), preconditioning),
        shape=(options.in_channels, options.img_resolution, options.img_resolution),
        sigma_min=preconditioning.sigma_min,
        sigma_max=preconditioning.sigma_max,
        name=stored.file.parent.name,
        classes=options.label_dim,
        sigmas=tuple(preconditioning.levels.flip(0)[1:].tolist()) if isinstance(preconditioning, IDDPM) else None,
        feature=bottleneck(network, network.bottleneck),
        extra={"source": told.text("source"), "source_sha256": told.text("source_sha256")},
    )


class EDMNetwork(nn.Module):
    """A network of an EDM checkpoint with classes as numbers; it computes in float32 whatever the samples' type.

    Args:
        network: The network.
    """

    def __init__(self, network: SongUNet | ADMUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the network's output.

        Shapes:
            x: [B, C, H, W]; noise: [B].
            condition: [B] or [1], int64; ``classes`` stands for none, as ``None`` does for all.

        Raises:
            InputError: The samples have another shape than the network's, or an unconditional one got a condition.
        """
        options = self.network.options
        shape = (options.in_channels, options.img_resolution, options.img_resolution)
        if tuple(x.shape[1:]) != shape:
            raise InputError(f"the model denoises samples of shape {shape}, got {tuple(x.shape[1:])}")
        label = None
        if condition is not None:
            if not options.label_dim:
                raise InputError("the model is unconditional, but a condition was given")
            columns = torch.arange(options.label_dim, device=x.device)
            label = (condition.reshape(-1, 1) == columns).float().expand(len(x), -1)
        output: Tensor = self.network(x.float(), noise.float(), label)
        return output


def convert_edm_pickle(path: str | Path, folder: str | Path) -> None:
    """Convert an official pickle to ``model.safetensors`` and ``model.json``; its embedded code is ignored.

    The moving average of the weights (``ema``) is taken.

    Args:
        path: The pickle.
        folder: Where to write; created when missing.

    Raises:
        InputError: The file is missing or damaged, holds no network of a known kind, or names what no checkpoint needs.
        OutputError: The result could not be written.
    """
    path = Path(path)
    root = read_inert(path, ALLOWED)
    kind, state = _persistent(root["ema"] if isinstance(root, dict) and "ema" in root else root, path)
    if kind not in PRECONDITIONING:
        raise unknown_name(f"preconditioning in {path}:", kind, PRECONDITIONING)
    inner = _member(state, "_modules").get("model")
    network, inner_state = _persistent(inner, path)
    about = {
        "preconditioning": {"kind": kind, **{name: _finite(state.get(name)) for name in PRECONDITIONING[kind][1]}},
        "network": {"kind": network, **_arguments(inner_state, path)},
        "source": path.name,
        "source_sha256": _digest(path),
    }
    weights = {name: tensor_of(value, f"{name!r} in {path}").float() for name, value in _tensors(inner_state, path)}
    options = _options(Fields(about, path).table("network"), path)
    _preconditioning(Fields(about, path).table("preconditioning"), path)
    load_weights(_network(options), weights, source=path)
    write_model(folder, weights, KIND, about)


def _converted(path: Path, allow_pickle: bool) -> Path:
    """Return the folder of a pickle's conversion, which is made first where it is missing or of another pickle."""
    folder = path.with_suffix("")
    if folder == path:
        raise InputError(f"{path} has no suffix, which the folder of its conversion takes off; name it {path.name}.pkl")
    if folder.exists():
        about = read_model(folder, KIND).about  # another folder is never written into
        if about.get("source_sha256") == _digest(path):
            return folder
    if not allow_pickle:
        raise InputError(f"{path} is a pickle; add --allow_pickle to convert it once to {folder}/model.safetensors")
    convert_edm_pickle(path, folder)
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _persistent(value: Any, path: Path) -> tuple[str, Mapping[str, Any]]:
    """Return class name and state of an object that the official code stored together with its source."""
    meta = value.args[0] if isinstance(value, Record) and value.origin == PERSISTENT and value.args else None
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise InputError(f"{path} holds no network stored by the official EDM code")
    return str(meta.get("class_name")), meta["state"]


def _member(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = state.get(name)
    return value if isinstance(value, dict) else {}


def _arguments(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if state.get("_init_args"):
        raise InputError(f"{path} holds a network built with unnamed arguments, which this reader does not know")
    arguments = _member(state, "_init_kwargs")
    return {name: value for name, value in arguments.items() if name not in IGNORED}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tensors(state: Mapping[str, Any], path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk over the weights of a stored module and of those within it, with their names in a state dict."""
    for name, value in [*_member(state, "_parameters").items(), *_member(state, "_buffers").items()]:
        # Filters follow from the options; augmentation labels are there in training only.
        if value is not None and name != "resample_filter" and not prefix.startswith("map_augment."):
            yield prefix + name, value
    for name, module in _member(state, "_modules").items():
        if module is not None:
            inner = _persistent(module, path)[1] if module.origin == PERSISTENT else module.state
            yield from _tensors(inner if isinstance(inner, dict) else {}, path, f"{prefix}{name}.")


def _options(arguments: Mapping[str, Any], path: Path) -> ADMOptions:
    """Read a network's arguments: whole numbers, lists of them, or names."""
    kind = str(arguments.get("kind"))
    if kind not in NETWORKS:
        raise unknown_name(f"network in {path}:", kind, NETWORKS)
    known = NETWORKS[kind][1]
    defaults = {field.name: field.default for field in fields(known)}
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "kind":
            continue
        if name not in defaults:
            raise unknown_name(f"argument of the network in {path}:", name, defaults)
        default = 0 if defaults[name] is MISSING else defaults[name]
        if isinstance(value, list | tuple) and isinstance(default, tuple):
            value = tuple(value)
        items = value if isinstance(value, tuple) else (value,)
        wanted: type = str if isinstance(default, str) else int
        if isinstance(value, tuple) != isinstance(default, tuple) or not all(type(item) is wanted for item in items):
            raise InputError(f"{path}: the network's {name!r} is {value!r:.60}, not of the type of {default!r}")
        values[name] = value
    missing = [name for name, default in defaults.items() if default is MISSING and name not in values]
    if missing:
        raise InputError(f"{path}: the network lacks {missing[0]!r}")
    return known(**values)


def _network(options: ADMOptions) -> SongUNet | ADMUNet:
    with torch.random.fork_rng(devices=[]):  # the weights are overwritten: nothing is drawn from the user's generator
        return SongUNet(options) if isinstance(options, SongOptions) else ADMUNet(options)


def _preconditioning(values: Mapping[str, Any], path: Path) -> VP | VE | IDDPM | EDM:
    kind = str(values.get("kind"))
    if kind not in PRECONDITIONING:
        raise unknown_name(f"preconditioning in {path}:", kind, PRECONDITIONING)
    cls, names = PRECONDITIONING[kind]
    numbers = {}
    for name in names:
        value = values.get(name)
        if value is None and name == "sigma_max":
            value = math.inf  # JSON knows no infinity
        if isinstance(value, bool) or not isinstance(value, int | float) or (name == "M" and not 1 <= value <= 10**6):
            raise InputError(f"{path}: the preconditioning's {name!r} is {value!r:.60}, not a number that makes sense")
        numbers[name] = int(value) if name == "M" else float(value)
    if kind == "EDMPrecond":  # published without limits; these are those of its training and its sampler
        numbers["sigma_min"] = max(numbers["sigma_min"], 0.002)
        numbers["sigma_max"] = min(numbers["sigma_max"], 80.0)
    made: VP | VE | IDDPM | EDM = cls(**numbers)
    return made
