"""Where graphs come from: names, files, folders and other libraries, and what becomes of them by the user's options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stillroom.data.sources import data_root
from stillroom.data.split import random_stream
from stillroom.errors import InputError, unknown_name
from stillroom.graphs._checks import SPLITS, checked_labels
from stillroom.graphs._features import zero_rows
from stillroom.graphs._files import read_folder, read_npz
from stillroom.graphs._pyg import read_ogb, read_pyg
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.node_data import NodeData, Source, node_data
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.sbm import draw_graphs
from stillroom.graphs.splits import random_split

__all__ = ["load_graphs"]

_NAMES = ("sbm", "cora", "citeseer", "pyg:NAME", "ogb:NAME", "FILE.npz", "a folder with edges.csv and nodes.csv")
_SPLIT = 20  # purpose of the random stream
_PLAIN = SBMOptions()


def load_graphs(options: GraphDataOptions, sbm: SBMOptions = _PLAIN) -> NodeData:
    """Load a data set for node classification and apply the options: split, edges, self loops, normalisation.

    Args:
        options: Which data set, and what to do with it.
        sbm: What the generated one is like; unused by the others.

    Raises:
        InputError: The name is unknown, files are missing or damaged, or the data cannot honour an option.

    Example:
        >>> load_graphs(GraphDataOptions(), SBMOptions(nodes=2000)).describe()["train_nodes"]
        100
    """
    source = _read(options, sbm)
    if options.split == "random":
        source = source._replace(graphs=[_split_anew(source.graphs, options)])
    data = node_data(
        options.name,
        source.graphs,
        classes=source.classes,
        undirected=options.undirected,
        self_loops=options.self_loops,
        normalise=options.normalise,
        notes=source.notes,
    )
    if options.dense and data.sparse:
        for graph in data.graphs:
            graph.x = graph.x.to_dense()
        data = replace(data, notes=(*data.notes, "sparse features made dense"))
    return data


def _read(options: GraphDataOptions, sbm: SBMOptions) -> Source:
    name = options.name
    kind, colon, rest = name.partition(":")
    if name == "sbm":
        if options.split == "random":
            raise InputError(
                "sbm draws its own split, of sbm.per_class, sbm.val and sbm.test nodes; set data.split to public"
            )
        return draw_graphs(sbm, options.seed if sbm.seed is None else sbm.seed)
    if name in ("cora", "citeseer"):
        source = read_npz(_planetoid(name))
        return _without_featureless(source) if name == "citeseer" else source
    if name == "pubmed":
        raise InputError("pubmed is here without its features; pyg:PubMed has them (it needs data.allow_pickle)")
    if colon and kind in ("pyg", "ogb"):
        root = _agreed(options, kind)
        if kind == "ogb":
            return read_ogb(rest, root)
        source = read_pyg(rest, root)
        return _without_featureless(source) if rest == "CiteSeer" else source
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".npz":
        if not path.is_file():
            raise InputError(f"there is no file {path} (looked in {Path.cwd()})")
        return read_npz(path)
    raise unknown_name("graph data set", name, _NAMES)


def _planetoid(name: str) -> Path:
    root = data_root()
    if root is None:
        raise InputError(
            "no folder of data sets: neither STILLROOM_DATA nor ../shared/data is there; set STILLROOM_DATA to the "
            f"folder that holds planetoid/{name}.npz, or give the file itself"
        )
    file = root / "planetoid" / f"{name}.npz"
    if not file.is_file():
        raise InputError(
            f"no data set {name!r} at {file}; put it there, or set STILLROOM_DATA, or give the file itself"
        )
    return file


def _without_featureless(source: Source) -> Source:
    """Forget the class of CiteSeer's nodes without features: none is known, and the files say 0."""
    graph = source.graphs[0]
    masked = graph.train_mask | graph.val_mask | graph.test_mask
    y = graph.y.clone()
    y[zero_rows(graph.x) & ~masked] = -1
    graph.y = y
    return source


def _agreed(options: GraphDataOptions, kind: str) -> Path:
    if not options.allow_pickle:
        raise InputError(
            f"{options.name} is read from pickles, which can run code when opened; set data.allow_pickle if you trust "
            "the files and where they are downloaded from"
        )
    if options.root is None:
        raise InputError(f"{options.name} needs data.root, the folder {kind}'s data sets are in or are downloaded to")
    return options.root.expanduser()


def _split_anew(graphs: list[Data], options: GraphDataOptions) -> Data:
    if len(graphs) > 1:
        raise InputError(
            f"{options.name} has {len(graphs)} graphs, each with a part of its own; set data.split to public"
        )
    graph = graphs[0]
    y = checked_labels(graph.get("y"), options.name)
    masks = random_split(
        y,
        per_class=options.per_class,
        val=options.val,
        test=options.test,
        generator=random_stream(options.seed, _SPLIT),
    )
    named = {f"{split}_mask": mask for split, mask in zip(SPLITS, masks, strict=True)}
    return Data(x=graph.get("x"), edge_index=graph.get("edge_index"), y=y, **named)
