"""Store a student as ``model.safetensors`` and ``model.json``, and load it as a plain module of PyG layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from torch import nn

from stillroom.errors import InputError
from stillroom.graphs.networks import GNN, GNNOptions, NodeClassifier
from stillroom.models.stored import Fields, read_model, write_model
from stillroom.models.weights import load_weights

__all__ = ["LoadedStudent", "StudentCard", "load_student", "save_student"]

KIND = ("stillroom-graph-student", 1)


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What is needed to use a stored student.

    ``network`` is its shape, ``None`` for a module of the user's own. ``graph`` says what became of the data before the
    student saw them (directions, self loops, normalisation): new graphs need the same. ``extra`` is kept as it is.
    """

    network: GNNOptions | None
    in_features: int
    classes: int
    multilabel: bool
    graph: Mapping[str, object] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


class LoadedStudent(NamedTuple):
    """A stored student, ``model(x, edge_index)`` -> logits [N, C], in evaluation mode, with its card."""

    model: nn.Module
    card: StudentCard


def save_student(directory: str | Path, network: nn.Module, card: StudentCard) -> None:
    """Write a student into a directory, each of the two files atomically.

    Args:
        directory: Created when missing.
        network: Returns logits and hidden layers; methods' own modules are not part of it.
        card: Its card; what it holds must be made of what JSON knows.

    Raises:
        InputError: The card holds what JSON does not know.
        OutputError: The disk is full or the directory not writable; files written before stay whole.
    """
    about = {
        "network": None if card.network is None else asdict(card.network),
        "in_features": card.in_features,
        "classes": card.classes,
        "multilabel": card.multilabel,
        "graph": dict(card.graph),
        "extra": dict(card.extra),
    }
    write_model(directory, network.state_dict(), KIND, about)


def load_student(path: str | Path, network: nn.Module | None = None) -> LoadedStudent:
    """Build a stored student and load its weights.

    Args:
        path: A run directory of ``stillroom graphs distill``, or its ``model.json``.
        network: For a student that was a module of your own: such a module, which the weights are loaded into.

    Returns:
        The student as a module that is called like any model of PyG, and its card.

    Raises:
        InputError: A file is missing, damaged, of another format, or does not fit the other.
        MissingExtraError: PyTorch Geometric is not installed.

    Example:
        >>> import tempfile, torch
        >>> options = GNNOptions(conv="sage", width=8)
        >>> card = StudentCard(network=options, in_features=5, classes=3, multilabel=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_student(folder, GNN(5, 3, options), card)
        ...     load_student(folder).model(torch.zeros(4, 5), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([4, 3])
    """
    stored = read_model(path, KIND)
    part = Fields(stored.about, stored.file)
    options = _options(stored.about.get("network"), stored.file)
    card = StudentCard(
        network=options,
        in_features=part.number("in_features"),
        classes=part.number("classes"),
        multilabel=stored.about.get("multilabel") is True,
        graph=part.table("graph"),
        extra=part.table("extra"),
    )
    if network is None:
        if options is None:
            raise InputError(f"{stored.file} is of a module of your own; pass one like it: load_student(path, network)")
        network = GNN(card.in_features, card.classes, options)
    load_weights(network, stored.state(), source=stored.weights)
    return LoadedStudent(NodeClassifier(network).eval(), card)


def _options(told: object, file: Path) -> GNNOptions | None:
    if told is None:
        return None
    known = {each.name for each in fields(GNNOptions)}
    if not isinstance(told, Mapping) or not set(told) <= known:
        raise InputError(f"{file} describes a network this version does not know; update stillroom")
    part = Fields(told, file)
    try:
        return GNNOptions(
            conv=part.text("conv"),
            residual=told.get("residual") is True,
            activation=part.text("activation"),  # type: ignore[arg-type]
            layers=part.number("layers"),
            width=part.number("width"),
            heads=part.number("heads"),
            out_heads=part.number("out_heads"),
            dropout=part.real("dropout"),
            attention_dropout=part.real("attention_dropout"),
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
