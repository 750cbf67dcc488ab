"""Read a research checkpoint's pickle as data: nothing in it is imported, called or executed."""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.models.weights import first_line

__all__ = ["Record", "read_inert", "tensor_of"]


class Record(dict[Any, Any]):
    """What stands in for an object of a pickle: which global made it, from what arguments, and its state.

    It is a dict because some objects (ordered dicts, say) are filled key by key.
    """

    origin = ""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.args, self.state = args, None

    def __new__(cls, *args: Any) -> Record:
        made: Record = super().__new__(cls)
        made.args, made.state = args, None  # a pickle may make an object without initialising it
        return made

    def __setstate__(self, state: Any) -> None:
        # Also keeps a pickle from setting attributes: of objects, and of classes, on which this call fails.
        self.state = state

    __hash__ = object.__hash__  # type: ignore[assignment]


def read_inert(path: Path, allowed: Collection[str]) -> Any:
    """Return a pickle's content with every object that is not plain data replaced by a :class:`Record`.

    The classes that stand in for the pickle's globals are made for this one reading; nothing done to them outlives it.

    Args:
        path: The file.
        allowed: The globals it may name, as ``module.name``.

    Raises:
        InputError: The file is missing or damaged, or names another global.
    """
    classes: dict[str, type[Record]] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> type[Record]:
            origin = f"{module}.{name}"
            if origin not in allowed:
                raise InputError(f"{path} is refused: it names {origin}, which no known checkpoint needs")
            if origin not in classes:
                classes[origin] = type("Record", (Record,), {"origin": origin})
            return classes[origin]

    try:
        with path.open("rb") as file:
            return Reader(file).load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be a checkpoint") from None
    except Exception as error:  # a damaged pickle can raise anything; it never runs more than the reader
        raise InputError(f"{path} is damaged or no pickle: {first_line(error)}") from error


def tensor_of(value: Any, what: str) -> Tensor:
    """Build the tensor that a record describes; the bytes of its storage are read with ``weights_only``.

    Args:
        value: A record of a tensor or a parameter.
        what: Its name, for the message.

    Raises:
        InputError: It describes none.
    """
    if isinstance(value, Record) and value.origin == "torch._utils._rebuild_parameter" and value.args:
        value = value.args[0]
    try:
        storage, offset, size, stride = value.args[:4]
        data = storage.args[0]
        if isinstance(data, Record):  # protocol 2 spells bytes as text: _codecs.encode(text, "latin1")
            data = data.args[0].encode("latin1")
        raw = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        typed = raw if isinstance(raw, torch.storage.TypedStorage) else None
        if typed is None or value.origin != "torch._utils._rebuild_tensor_v2":
            raise TypeError("no storage")
        flat = torch.empty(0, dtype=typed.dtype).set_(typed)
        return flat.as_strided(tuple(size), tuple(stride), offset).clone()
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{what} of the checkpoint is no tensor that can be read: {first_line(error)}") from None
