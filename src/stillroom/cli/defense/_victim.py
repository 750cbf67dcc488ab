"""The options every verb of the group shares: the classifier that is guarded, and the data it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from stillroom.cli._help import retitle
from stillroom.cli._parser import expand, plain, read_configs
from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.defense.fit import Victim

__all__ = ["SHORT", "add_data", "add_model", "arguments", "data_of", "victim_of"]

SHORT = {"--data": "--data.name"}


def arguments(argv: Sequence[str], lists: Sequence[str] = ()) -> list[str]:
    """Expand short forms and configuration files."""
    return read_configs(expand(argv, SHORT, lists), SHORT)


def add_model(parser: ArgumentParser, text: str) -> None:
    """Add the classifier."""
    from stillroom.distillation.networks import Normalisation

    group = parser.add_argument_group("model")
    group.add_argument("--model", type=str | None, default=None, help=text).metavar = "MODEL"
    said = "what a weights file was trained with; a run directory knows its own"
    group.add_argument("--model_normalisation", type=Normalisation, default="auto", help=said)


def add_data(parser: ArgumentParser) -> None:
    """Add the data."""
    parser.add_class_arguments(DataOptions, "data")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")


def data_of(options: Namespace) -> ImageData:
    """Load the data."""
    return load_data(DataOptions(**plain(options.data)))


def victim_of(options: Namespace, data: ImageData) -> Victim | None:
    """Load the classifier, or return nothing where none is named."""
    if options.model is None:
        return None
    from stillroom.distillation.networks import load_network

    network = load_network(options.model, data, normalisation=options.model_normalisation)
    return Victim(network.model, network.card, network.taps)
