"""Read weights files without executing anything they hold, and load them strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.errors import InputError, nearest

__all__ = ["classes_in_weights", "first_line", "load_weights", "read_weights"]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pth``/``.pt`` without unpickling anything but tensors.

    A common prefix ``module.`` (left by DataParallel) is taken off; a checkpoint that keeps the weights under
    ``state_dict`` or ``model`` is looked into.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    path = Path(path)
    state: object
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights file {path} is damaged or no safetensors file: {first_line(error)}") from error
    elif path.suffix in (".pth", ".pt"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise InputError(
                f"weights file {path} is damaged or holds more than tensors; save its state_dict as safetensors"
            ) from error
        for key in ("state_dict", "model"):
            if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
                state = state[key]
    else:
        raise InputError(f"weights file {path} must end in .safetensors, .pth or .pt")
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights file {path} holds no state dict (names and tensors)")
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load a state dict strictly; nothing is loaded unless everything fits.

    Args:
        model: The network.
        state: Names and tensors.
        source: Where they come from, for the message.

    Raises:
        InputError: Names the first key that is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    name = type(model).__name__
    for key, value in own.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):  # younger than many published files; torch fills it in
                continue
            raise InputError(f"weights {source} do not fit {name}: {key!r} is missing{nearest(key, state)}")
        if state[key].shape != value.shape:
            raise InputError(
                f"weights {source} do not fit {name}: {key!r} has shape {list(state[key].shape)}, "
                f"the network needs {list(value.shape)}"
            )
    for key in state:
        if key not in own:
            raise InputError(f"weights {source} do not fit {name}: {key!r} is unexpected{nearest(key, own)}")
    model.load_state_dict(dict(state))


def classes_in_weights(path: str | Path) -> int | None:
    """Return the number of classes of a weights file: the rows of its final linear layer, ``None`` when unclear.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights file {path} is damaged or no safetensors file: {first_line(error)}") from error
    else:
        shapes = {key: tuple(value.shape) for key, value in read_weights(path).items()}
    linear = [key for key, shape in shapes.items() if key.endswith("weight") and len(shape) == 2]
    heads = [key for key in linear if re.match(r"(module\.)?(fc|head|heads|linear|classifier|last_linear)\.", key)]
    if len(linear) > 1 and not heads:
        return None
    # safetensors sorts keys as text; numbers among them must count as numbers.
    last = max(heads or linear, key=lambda key: [int(p) if p.isdigit() else -1 for p in key.split(".")], default=None)
    return shapes[last][0] if last else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
