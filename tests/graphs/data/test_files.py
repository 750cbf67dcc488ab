"""Graphs of the user's own: npz files and folders of CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.graphs._files import read_folder, read_npz
from stillroom.graphs.options import GraphDataOptions
from stillroom.graphs.sources import load_graphs

NODES = "id,label,split,a,b\np,cat,train,1,2\nq,dog,train,3,4\nr,cat,val,5,6\ns,,,7,8\nt,dog,test,-1e3,.5\n"
EDGES = "source,target\np,q\nq,r\n"
ARRAYS: dict[str, Any] = {
    "edge_index": np.array([[0, 1], [1, 2]], dtype=np.uint16),
    "y": np.array([0, 1, -1], dtype=np.int8),
    "x_data": np.ones(2),
    "x_indices": np.array([1, 0], dtype=np.int32),
    "x_indptr": np.array([0, 1, 1, 2], dtype=np.int32),
    "x_shape": np.array([3, 2]),
    "train_mask": np.array([True, False, False]),
    "num_classes": np.array(3),
}


def folder(path: Path, nodes: str | bytes = NODES, edges: str | bytes = EDGES) -> Path:
    for name, text in (("nodes.csv", nodes), ("edges.csv", edges)):
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_folder_is_read(tmp_path: Path) -> None:
    source = read_folder(folder(tmp_path))
    graph = source.graphs[0]
    assert graph.y.tolist() == [0, 1, 0, -1, 1]
    assert graph.edge_index.tolist() == [[0, 1], [1, 2]]
    assert graph.x.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [-1000, 0.5]]
    assert graph.train_mask.tolist() == [True, True, False, False, False]
    assert graph.test_mask.tolist() == [False] * 4 + [True]
    assert (source.classes, source.notes) == (2, ("classes 0 to 1 are cat, dog",))
    data = load_graphs(GraphDataOptions(name=str(tmp_path)))
    assert data.describe()["isolated_nodes"] == 2


@pytest.mark.parametrize(
    "changed",
    [
        NODES.replace("\n", "\r\n"),
        "\ufeff" + NODES,
        "\n" + NODES.replace("\n", "\n\n,,,,\n"),
        NODES.replace(",", " , "),
        NODES.replace("id,label,split", "ID,Label,Split").replace("cat", '"cat"'),
    ],
    ids=["crlf", "bom", "blank lines", "spaces", "quotes and capitals"],
)
def test_what_spreadsheets_do_to_a_file_is_tolerated(tmp_path: Path, changed: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    expected = read_folder(folder(plain))
    found = read_folder(folder(other, changed, "\ufeff" + EDGES.replace("\n", "\r\n\r\n")))
    assert found.notes == expected.notes
    assert all(torch.equal(found.graphs[0][name], expected.graphs[0][name]) for name in ("x", "y", "edge_index"))


def test_several_labels_and_no_split(tmp_path: Path) -> None:
    nodes = "id,label,f\n1,2;10,0\n2,2,1\n3,,2\n4,5 ; 2,3\n"
    source = read_folder(folder(tmp_path, nodes, "source,target\n1,4\n"))
    assert source.graphs[0].y.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert source.notes == ("classes 0 to 2 are 2, 5, 10",)
    assert "train_mask" not in source.graphs[0]
    with pytest.raises(InputError, match=r"has no train node; mark some in train_mask, or set data\.split to random"):
        load_graphs(GraphDataOptions(name=str(tmp_path)))
    with pytest.raises(InputError, match="1 labelled nodes are left beside 3 training nodes"):
        load_graphs(GraphDataOptions(name=str(tmp_path), split="random", per_class=1, val=1, test=1))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["0", "1", "2", ""]), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=20
    ),
    ends=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=20),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, float]], ends: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("graph")
    ends = [(source % len(rows), target % len(rows)) for source, target in ends]
    nodes = "".join(f"n{place},{label},{value!r}\n" for place, (label, value) in enumerate(rows))
    edges = "".join(f"n{source},n{target}\n" for source, target in ends)
    graph = read_folder(folder(path, "id,label,f\n" + nodes, "source,target\n" + edges)).graphs[0]
    names = sorted({label for label, _ in rows if label})
    assert graph.y.tolist() == [names.index(label) if label else -1 for label, _ in rows]
    assert graph.x[:, 0].tolist() == [value for _, value in rows]
    assert [tuple(edge) for edge in graph.edge_index.T.tolist()] == ends


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        (NODES, "p,q\n", r"edges\.csv, line 1: the header must be source,target, not 'p,q'"),
        (NODES, "", r"edges\.csv, line 1: the header must be source,target, not ''"),
        (NODES, "source,target\np,q\np\n", r"edges\.csv, line 3 has 1 columns; it must have two"),
        (NODES, "source,target\n\np,z\n", r"edges\.csv, line 3: there is no node 'z'"),
        ("p,cat\n", EDGES, r"nodes\.csv, line 1: the header must begin with id,label, not 'p,cat'"),
        ("id,label,split\n", EDGES, r"nodes\.csv, line 1: there is no column of features after 'split'"),
        ("id,label,a\n", EDGES, r"nodes\.csv has no node"),
        (NODES + "u,cat,train,1\n", EDGES, r"nodes\.csv, line 7 has 4 columns; the header has 5"),
        (NODES + "p,cat,train,1,2\n", EDGES, r"nodes\.csv, line 7: node 'p' is there already"),
        (NODES + "u,cat,train,1,x2\n", EDGES, r"nodes\.csv, line 7: feature 'b' is 'x2', not a number"),
        (NODES + "u,cat,train,1,\n", EDGES, r"nodes\.csv, line 7: feature 'b' is '', not a number"),
        (NODES + "u,cat,learn,1,2\n", EDGES, r"line 7: split is 'learn'; it must be train, val, test or empty"),
        (NODES + "u,,train,1,2\n", EDGES, r"line 7: a node of split train has no label"),
        (NODES + "u,cat,train,1,nan\n", EDGES, "feature 1 of node 5 is NaN"),
        (b"id,label,a\n\xff\xfe,x,1\n", EDGES, r"nodes\.csv is no UTF-8 text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, nodes: str | bytes, edges: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_graphs(GraphDataOptions(name=str(folder(tmp_path, nodes, edges))))
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no edges\.csv"):
        read_folder(tmp_path)


def test_an_npz_file_is_read_dense_and_sparse(tmp_path: Path) -> None:
    np.savez(tmp_path / "sparse.npz", **ARRAYS)
    dense = {name: value for name, value in ARRAYS.items() if not name.startswith("x_")}
    np.savez(tmp_path / "dense.npz", **dense, x=np.array([[0, 1], [0, 0], [1, 0]], dtype=">f8"))
    sparse_source, dense_source = (read_npz(tmp_path / f"{kind}.npz") for kind in ("sparse", "dense"))
    assert (sparse_source.classes, dense_source.classes) == (3, 3)
    assert torch.equal(sparse_source.graphs[0].x.to_dense(), dense_source.graphs[0].x.float())
    assert sparse_source.graphs[0].x.layout == torch.sparse_csr
    assert "val_mask" not in sparse_source.graphs[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "has no array 'y'; it has edge_index"),
        ({"x_shape": None}, "has no array 'x_shape'"),
        ({"x_data": None}, "has no array 'x'"),
        ({"trainmask": np.ones(3)}, "unknown array 'trainmask'; did you mean 'train_mask'"),
        ({"y": np.array(["a", "b", "c"])}, "y is <U1; it must be numbers"),
        ({"y": np.array([{}, 1, 2], dtype=object)}, "holds Python objects, not read"),
        ({"x_indices": np.array([1, 7])}, "the sparse features are damaged"),
        ({"x_indptr": np.array([0, 5, 1, 2])}, "the sparse features are damaged"),
        ({"x_indices": np.array([1.0, 0.0])}, "x_indices and x_indptr must be integers"),
        ({"x_shape": np.array([3])}, "x_shape must be two numbers"),
        ({"num_classes": np.array(1)}, "said to have 1 classes, but its labels have 2"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in {**ARRAYS, **changes}.items() if value is not None}
    np.savez(tmp_path / "graph.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_graphs(GraphDataOptions(name=str(tmp_path / "graph.npz")))
    assert "\n" not in str(caught.value)


def test_a_damaged_npz_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", **ARRAYS)
    whole = (tmp_path / "graph.npz").read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], b"nonsense" * 9):
        (tmp_path / "graph.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"is no \.npz file|is damaged"):
            read_npz(tmp_path / "graph.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(InputError, match=r"is no \.npz file"):
        read_npz(tmp_path / "one.npz")
