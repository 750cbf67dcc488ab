"""Data sets by name: the citation graphs, the generated one, and those of other libraries."""

from __future__ import annotations

import gzip
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from stillroom.errors import InputError
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.sources import load_graphs

FIELDS = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")
PLANETOID = {
    "cora": {"nodes": 2708, "edges": 10556, "features": 1433, "classes": 7, "train_nodes": 140, "isolated_nodes": 0},
    "citeseer": {
        "nodes": 3327,
        "edges": 9104,
        "features": 3703,
        "classes": 6,
        "train_nodes": 120,
        "isolated_nodes": 48,
    },
}


@pytest.fixture
def planetoid(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shared_data / "planetoid"
    if not folder.is_dir():
        pytest.skip(f"no citation graphs at {folder}")
    monkeypatch.setenv("STILLROOM_DATA", str(shared_data))
    return folder


def same(one: Data, other: Data) -> bool:
    return all(torch.equal(one[name].to_dense(), other[name].to_dense()) for name in FIELDS)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", list(PLANETOID))
def test_citation_graphs_have_their_published_counts(planetoid: Path, name: str) -> None:
    data = load_graphs(GraphDataOptions(name=name))
    about = data.describe()
    assert about == {**about, **PLANETOID[name], "val_nodes": 500, "test_nodes": 1000, "self_loops": about["nodes"]}
    assert data.sparse
    assert int(data.graphs[0].x.values().shape[0]) == {"cora": 49216, "citeseer": 105165}[name]
    sums = data.graphs[0].x.to_dense().sum(1)
    assert torch.allclose(sums[sums > 0], torch.ones(()), atol=1e-5)
    assert about["homophily"] == pytest.approx({"cora": 0.81, "citeseer": 0.74}[name], abs=0.005)


@pytest.mark.shared_data
def test_citeseers_nodes_without_features_have_no_known_class(planetoid: Path) -> None:
    data = load_graphs(GraphDataOptions(name="citeseer"))
    assert int((data.graphs[0].y == -1).sum()) == 15
    assert {"48 isolated nodes", "15 nodes without features (all zero)", "15 nodes without a known label"} < set(
        data.notes
    )
    drawn = load_graphs(GraphDataOptions(name="citeseer", split="random", seed=3)).graphs[0]
    assert not bool((drawn.train_mask | drawn.val_mask | drawn.test_mask)[drawn.y == -1].any())


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["Cora", "CiteSeer"])
def test_pygs_own_files_give_the_same_graph_without_network(planetoid: Path, tmp_path: Path, name: str) -> None:
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    for file in (planetoid / "raw").glob(f"ind.{name.lower()}.*"):
        shutil.copy(file, raw)
    found = load_graphs(GraphDataOptions(name=f"pyg:{name}", root=tmp_path, allow_pickle=True))
    expected = load_graphs(GraphDataOptions(name=name.lower()))
    assert same(found.graphs[0], expected.graphs[0])
    assert found.notes == expected.notes
    assert found.describe() == {**expected.describe(), "name": f"pyg:{name}"}


@pytest.mark.shared_data
def test_options_of_a_citation_graph_are_honoured(planetoid: Path) -> None:
    plain = load_graphs(GraphDataOptions(name="cora", self_loops="remove", normalise="none", dense=True))
    graph = plain.graphs[0]
    assert (plain.sparse, graph.x.unique().tolist(), graph.edge_index.shape[1]) == (False, [0, 1], 10556)
    as_file = load_graphs(GraphDataOptions(name=str(planetoid / "cora.npz")))
    assert same(as_file.graphs[0], load_graphs(GraphDataOptions(name="cora")).graphs[0])
    masks = [
        load_graphs(GraphDataOptions(name="cora", split="random", seed=seed)).graphs[0].test_mask for seed in (0, 0, 1)
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    few = load_graphs(GraphDataOptions(name="cora", split="random", per_class=3, val=10, test=20)).describe()
    assert [few[f"{split}_nodes"] for split in ("train", "val", "test")] == [21, 10, 20]
    with pytest.raises(InputError, match="but class 6 has 180 labelled nodes"):
        load_graphs(GraphDataOptions(name="cora", split="random", per_class=200))


def test_the_generated_graph_takes_the_seed_of_the_data_unless_it_has_its_own() -> None:
    small: dict[str, Any] = {"nodes": 400, "val": 50, "test": 80}
    options = SBMOptions(**small)
    first, again, other = (load_graphs(GraphDataOptions(seed=seed), options).graphs[0] for seed in (1, 1, 2))
    own = load_graphs(GraphDataOptions(seed=2), SBMOptions(**small, seed=1)).graphs[0]
    assert same(first, again)
    assert same(first, own)
    assert not torch.equal(first.x, other.x)
    bare = load_graphs(GraphDataOptions(self_loops="remove"), options)
    assert bare.describe()["self_loops"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, r"data\.per_class is 0; it must be at least 1"),
        ({"val": 0}, r"data\.val is 0"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"split": "publik"}, r"unknown data\.split 'publik'; did you mean 'public'"),
        ({"self_loops": "none"}, r"unknown data\.self_loops"),
        ({"normalise": "row"}, r"unknown data\.normalise 'row'; did you mean 'rows'"),
        ({"name": "coar"}, "unknown graph data set 'coar'; did you mean 'cora'"),
        ({"name": "pubmed"}, "pubmed is here without its features; pyg:PubMed has them"),
        ({"name": "nowhere.npz"}, r"there is no file nowhere\.npz"),
        ({"split": "random"}, "sbm draws its own split"),
        ({"name": "pyg:Cora"}, "pyg:Cora is read from pickles, which can run code"),
        ({"name": "ogb:ogbn-arxiv"}, "ogb:ogbn-arxiv is read from pickles"),
        ({"name": "pyg:Cora", "allow_pickle": True}, r"pyg:Cora needs data\.root"),
        ({"name": "pyg:Coar", "allow_pickle": True, "root": Path()}, "'Coar'; did you mean 'Cora'"),
        ({"name": "pyg:TUDataset", "allow_pickle": True, "root": Path()}, r"other than a folder \(root, name\)"),
        ({"name": "pyg:KarateClub", "allow_pickle": True, "root": Path()}, r"other than a folder \(nothing\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_graphs(GraphDataOptions(**options))
    assert "\n" not in str(caught.value)


def test_without_the_folder_of_data_sets_the_line_says_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    with pytest.raises(InputError, match=r"set STILLROOM_DATA to the folder that holds planetoid/cora\.npz"):
        load_graphs(GraphDataOptions(name="cora"))
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"no data set 'cora' at .*cora\.npz"):
        load_graphs(GraphDataOptions(name="cora"))


def ppi(root: Path) -> None:
    """Files of the protein set's form: two graphs of four nodes in each of its parts."""
    raw = root / "PPI" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        np.save(raw / f"{split}_feats.npy", rng.standard_normal((8, 3)))
        np.save(raw / f"{split}_labels.npy", rng.integers(0, 2, (8, 4)))
        np.save(raw / f"{split}_graph_id.npy", np.repeat([1, 2], 4))
        links = [{"source": s, "target": s + 1} for s in (0, 1, 2, 4, 5, 6)]
        nodes = [{"id": node} for node in range(8)]
        text = json.dumps({"directed": False, "multigraph": False, "graph": {}, "nodes": nodes, "links": links})
        (raw / f"{split}_graph.json").write_text(text)


def test_the_protein_graphs_each_have_one_part(tmp_path: Path) -> None:
    ppi(tmp_path)
    data = load_graphs(GraphDataOptions(name="pyg:PPI", root=tmp_path, allow_pickle=True))
    assert (len(data.graphs), data.multilabel, data.classes) == (6, True, 4)
    parts = [[bool(graph[f"{split}_mask"].all()) for split in ("train", "val", "test")] for graph in data.graphs]
    assert parts == [[True, False, False]] * 2 + [[False, True, False]] * 2 + [[False, False, True]] * 2
    assert data.graphs[0].edge_index.shape[1] == 2 * 3 + 4
    with pytest.raises(InputError, match="has 6 graphs, each with a part of its own"):
        load_graphs(GraphDataOptions(name="pyg:PPI", root=tmp_path, allow_pickle=True, split="random"))


def test_without_network_the_line_says_where_the_files_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens: the download fails at once
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        InputError, match=r"pyg:PPI could not be downloaded \(.*\); put train_feats\.npy, .* into "
    ) as caught:
        load_graphs(GraphDataOptions(name="pyg:PPI", root=tmp_path, allow_pickle=True))
    assert str(caught.value).endswith(str(tmp_path / "PPI" / "raw"))
    assert "\n" not in str(caught.value)


def test_damaged_files_of_another_library_are_one_line(tmp_path: Path) -> None:
    ppi(tmp_path)
    (tmp_path / "PPI" / "raw" / "train_graph.json").write_text("{")
    with pytest.raises(InputError, match="pyg:PPI could not be read: ") as caught:
        load_graphs(GraphDataOptions(name="pyg:PPI", root=tmp_path, allow_pickle=True))
    assert "\n" not in str(caught.value)


def benchmark(root: Path) -> None:
    """Files of the form of ogbn-arxiv: a path of six nodes."""
    arrays = {
        "RELEASE_v1.txt": None,
        "raw/edge.csv.gz": [(node, node + 1) for node in range(5)],
        "raw/node-feat.csv.gz": [(node - 2.5, 1.0) for node in range(6)],
        "raw/node-label.csv.gz": [(node % 2,) for node in range(6)],
        "raw/node_year.csv.gz": [(2010,)] * 6,
        "raw/num-node-list.csv.gz": [(6,)],
        "raw/num-edge-list.csv.gz": [(5,)],
        **{f"split/time/{split}.csv.gz": [(2 * place,), (2 * place + 1,)] for place, split in enumerate(PARTS)},
    }
    for name, rows in arrays.items():
        file = root / "ogbn_arxiv" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(",".join(map(str, row)) + "\n" for row in rows or ())
        file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else b"")


PARTS = ("train", "valid", "test")


def test_the_graph_benchmark_is_read_by_its_own_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = GraphDataOptions(name="ogb:ogbn-arxiv", root=tmp_path, allow_pickle=True)
    if find_spec("ogb") is None:
        with pytest.raises(InputError, match="ogb is not installed; it comes with: pip install ogb"):
            load_graphs(options)
        return
    benchmark(tmp_path)
    for _ in range(2):  # from the raw files, then from what the package has made of them
        graph = load_graphs(options).graphs[0]
        assert graph.y.tolist() == [0, 1] * 3
        assert [graph[f"{split}_mask"].nonzero().flatten().tolist() for split in ("train", "val", "test")] == [
            *([0, 1], [2, 3], [4, 5])
        ]
        assert (graph.num_edges, graph.x.shape) == (16, (6, 2))
    assert capsys.readouterr().out == ""
