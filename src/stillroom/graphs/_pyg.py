"""Data sets of PyTorch Geometric and of the Open Graph Benchmark, by name; their files are pickles or become such."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import InputError, unknown_name
from stillroom.graphs._checks import SPLITS
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.node_data import Source

__all__ = ["PYG", "read_ogb", "read_pyg"]

_PICKLES = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own switch

# Name -> class and what it takes besides the folder. Other names are classes that take the folder only.
PYG: dict[str, tuple[str, dict[str, str]]] = {
    **{name: ("Planetoid", {"name": name}) for name in ("Cora", "CiteSeer", "PubMed")},
    **{name: ("Amazon", {"name": name}) for name in ("Computers", "Photo")},
    **{name: ("Coauthor", {"name": name}) for name in ("CS", "Physics")},
    **{name: ("WikipediaNetwork", {"name": name}) for name in ("Chameleon", "Squirrel")},
    **{name: ("WebKB", {"name": name}) for name in ("Cornell", "Texas", "Wisconsin")},
    **{
        name: ("HeterophilousGraphDataset", {"name": name})
        for name in ("Roman-empire", "Amazon-ratings", "Minesweeper", "Tolokers", "Questions")
    },
    **{name: (name, {}) for name in ("Actor", "AmazonProducts", "CoraFull", "Flickr", "PPI", "Reddit", "Reddit2")},
    **{name: (name, {}) for name in ("WikiCS", "Yelp")},
}


def read_pyg(name: str, root: Path) -> Source:
    """Read a data set of PyTorch Geometric from its folder; where that is empty the library downloads the files.

    Args:
        name: A name of the table, or a class of ``torch_geometric.datasets`` that takes nothing but the folder.
        root: The folder its files lie in, under ``NAME/raw``.

    Raises:
        InputError: The name is unknown, the files are neither there nor to be had, or hold no graph of labelled nodes.
    """
    kind, options = _pyg_class(name)
    # The classes that take a name make a folder of that name themselves.
    folder = root if "name" in options else root / name
    if name == "PPI":
        graphs = []
        for split in SPLITS:
            for graph in _load(kind, name, {"root": str(folder), "split": split}):
                graph[f"{split}_mask"] = torch.ones(len(graph.y), dtype=torch.bool)
                graphs.append(graph)
        return Source(graphs)
    return _first_split(_load(kind, name, {"root": str(folder), **options}))


def read_ogb(name: str, root: Path) -> Source:
    """Read a node property data set of the Open Graph Benchmark, by its own package.

    W. Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020.

    Raises:
        InputError: The package is not installed, the name is unknown, or the files are neither there nor to be had.
    """
    try:
        nodeproppred = importlib.import_module("ogb.nodeproppred")
    except ModuleNotFoundError as error:
        package = (error.name or "ogb").partition(".")[0]
        raise InputError(f"{package} is not installed; it comes with: pip install ogb") from error
    mend = f"; its files belong into {root / name.replace('-', '_')}, which must be absent or complete"
    # The package prints, asks and exits as it sees fit; what is printed must not mix with a result.
    with _one_line(f"ogb:{name}", mend), _pickles_allowed(), redirect_stdout(sys.stderr):
        dataset = nodeproppred.PygNodePropPredDataset(name=name, root=str(root))
        graph, index = dataset[0], dataset.get_idx_split()
    if not isinstance(graph, Data) or graph.get("x") is None or graph.get("y") is None:
        raise InputError(f"ogb:{name} is not one graph with features and labels of the nodes; choose ogbn-arxiv, say")
    y = graph.y
    if y.is_floating_point():  # the largest set marks what is unknown as NaN
        y = torch.where(y.isnan(), -1, y).long()
    graph = Data(x=graph.x, edge_index=graph.edge_index, y=y)
    for split, key in zip(SPLITS, ("train", "valid", "test"), strict=True):
        mask = torch.zeros(len(y), dtype=torch.bool)
        mask[index[key]] = True
        graph[f"{split}_mask"] = mask
    return Source([graph])


def _pyg_class(name: str) -> tuple[type[Any], Mapping[str, str]]:
    datasets = importlib.import_module("torch_geometric.datasets")
    if name in PYG:
        kind_name, options = PYG[name]
        return getattr(datasets, kind_name), options
    if name not in datasets.__all__:
        raise unknown_name("data set of PyTorch Geometric", name, PYG)
    kind = getattr(datasets, name)
    needed = [
        parameter.name
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    if needed != ["root"]:
        raise InputError(
            f"pyg:{name} needs other than a folder ({', '.join(needed) or 'nothing'}); load it in Python and pass its "
            "graphs to stillroom.graphs.node_data.node_data"
        )
    return kind, {}


def _load(kind: type[Any], name: str, options: Mapping[str, str]) -> list[Data]:
    def download(self: Any) -> None:
        try:
            kind.download(self)
        except Exception as error:  # each data set fails in the way of the package it downloads with
            files = ", ".join(Path(file).name for file in self.raw_paths)
            raise InputError(
                f"pyg:{name} could not be downloaded ({_reason(error)}); put {files} into {self.raw_dir}"
            ) from error

    with _one_line(f"pyg:{name}"):
        # The library says where the files belong only while it misses them.
        own = type(kind.__name__, (kind,), {"download": download}) if hasattr(kind, "download") else kind
        dataset = own(**options)
        graphs = [dataset[place] for place in range(len(dataset))]
    for graph in graphs:
        if not isinstance(graph, Data) or graph.get("y") is None or graph.get("x") is None:
            raise InputError(f"pyg:{name} holds no graphs with features and labels of their nodes")
    return graphs


def _first_split(graphs: list[Data]) -> Source:
    """Take the first of several splits a data set brings."""
    found: list[Data] = []
    splits = 1
    for graph in graphs:
        kept = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)
        for name in (f"{split}_mask" for split in SPLITS):
            mask = graph.get(name)
            if mask is not None and mask.dim() == 2:
                splits = max(splits, mask.shape[1])
                mask = mask[:, 0]
            if mask is not None:
                kept[name] = mask.bool()
        found.append(kept)
    return Source(found, None, (f"the first of its {splits} splits",) if splits > 1 else ())


@contextmanager
def _one_line(place: str, mend: str = "") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the other package stumbled over
        raise InputError(f"{place} could not be read: {_reason(error)}{mend}") from error


@contextmanager
def _pickles_allowed() -> Iterator[None]:
    """Let the benchmark's package read its own files, which torch refuses by default; the user has agreed to it."""
    before = os.environ.get(_PICKLES)
    os.environ[_PICKLES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PICKLES]
        else:
            os.environ[_PICKLES] = before


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
