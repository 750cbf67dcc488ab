"""Generated graphs are what their options say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.errors import InputError
from stillroom.graphs._edges import edge_homophily, in_degrees
from stillroom.graphs.options import SBMOptions
from stillroom.graphs.sbm import draw_graphs, stochastic_block_model

SMALL: dict[str, Any] = {"nodes": 400, "per_class": 5, "val": 50, "test": 80}


def neighbours(edge_index: Tensor) -> Tensor:
    return edge_index[:, edge_index[0] != edge_index[1]]


@settings(deadline=None, max_examples=40)
@given(
    nodes=st.integers(300, 700),
    classes=st.integers(2, 6),
    degree=st.floats(1, 20),
    homophily=st.floats(0, 1),
    spread=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 99),
)
def test_degree_homophily_and_classes_are_as_asked_for(
    nodes: int, classes: int, degree: float, homophily: float, spread: float, seed: int
) -> None:
    options = SBMOptions(
        **{**SMALL, "nodes": nodes},
        classes=classes,
        degree=degree,
        homophily=homophily,
        degree_spread=spread,
        seed=seed,
    )
    data = stochastic_block_model(options)
    about = data.describe()
    assert about["edges"] == 2 * round(nodes * degree / 2)
    known, within = edge_homophily(data.graphs[0].edge_index, data.graphs[0].y)
    assert abs(within / known - homophily) <= 1 / known + 1e-9
    counts = torch.bincount(data.graphs[0].y, minlength=classes)
    assert int(counts.max() - counts.min()) <= 1
    assert [about[f"{split}_nodes"] for split in ("train", "val", "test")] == [5 * classes, 50, 80]
    edges = neighbours(data.graphs[0].edge_index)
    assert len({tuple(edge) for edge in edges.T.tolist()}) == edges.shape[1]
    assert {tuple(edge) for edge in edges.T.tolist()} == {tuple(edge) for edge in edges.flip(0).T.tolist()}


@pytest.mark.parametrize("options", [{}, {"shift": 1.0}, {"degree_spread": 1.0, "edge_noise": 0.2, "label_noise": 0.3}])
def test_the_seed_decides_everything(options: dict[str, Any]) -> None:
    first, again, other = (stochastic_block_model(SBMOptions(**SMALL, **options, seed=seed)) for seed in (3, 3, 4))
    for one, two, three in zip(first.graphs, again.graphs, other.graphs, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in ("x", "edge_index", "y", "train_mask", "test_mask"))
        assert not torch.equal(one.x, three.x)
        assert one.edge_index.shape != three.edge_index.shape or not torch.equal(one.edge_index, three.edge_index)


def test_class_means_are_the_separation_apart_and_the_noise_is_standard() -> None:
    data = stochastic_block_model(SBMOptions(nodes=20_000, classes=4, features=8, separation=3.0, degree=2.0))
    graph = data.graphs[0]
    means = torch.stack([graph.x[graph.y == one].mean(0) for one in range(4)])
    apart = torch.cdist(means, means)[~torch.eye(4, dtype=torch.bool)]
    assert apart.tolist() == pytest.approx([3.0] * 12, abs=0.1)
    assert (graph.x - means[graph.y]).std(0).tolist() == pytest.approx([1.0] * 8, abs=0.03)


def test_edge_noise_takes_its_share_of_homophily() -> None:
    data = stochastic_block_model(SBMOptions(nodes=5000, classes=5, homophily=1.0, edge_noise=0.4))
    assert data.describe()["homophily"] == pytest.approx(0.6 + 0.4 / 5, abs=0.02)
    assert data.describe()["edges"] == 40_000


def test_label_noise_changes_training_labels_only() -> None:
    clean, noisy = (stochastic_block_model(SBMOptions(**SMALL, label_noise=share)).graphs[0] for share in (0.0, 0.4))
    changed = clean.y != noisy.y
    assert int(changed.sum()) == 10
    assert bool(noisy.train_mask[changed].all())
    assert torch.equal(clean.x, noisy.x)


def test_a_spread_of_degrees_makes_hubs() -> None:
    flat, heavy = (
        in_degrees(stochastic_block_model(SBMOptions(degree_spread=spread)).graphs[0].edge_index, 3000)
        for spread in (0, 1)
    )
    assert int(flat.max()) < 30 < 60 < int(heavy.max())
    assert int(flat.sum()) == int(heavy.sum())


def test_shifted_test_nodes_are_a_graph_of_their_own_and_leave_the_other_alone() -> None:
    plain = stochastic_block_model(SBMOptions(**SMALL)).graphs[0]
    data = stochastic_block_model(SBMOptions(**SMALL, shift=3.0, test_homophily=0.1))
    training, test = data.graphs
    for name in ("x", "edge_index", "y", "train_mask", "val_mask"):
        assert torch.equal(plain[name], training[name])
    assert not bool(training.test_mask.any())
    assert (test.num_nodes, bool(test.test_mask.all())) == (80, True)
    known, within = edge_homophily(test.edge_index, test.y)
    assert within / known == pytest.approx(0.1, abs=0.01)
    unmoved = stochastic_block_model(SBMOptions(**SMALL, test_homophily=0.1)).graphs[1]
    assert (test.x - unmoved.x).norm(dim=1).tolist() == pytest.approx([3.0] * 80, abs=1e-4)
    assert any("shift 3, homophily 0.1" in note for note in data.notes)


def test_all_ends_of_the_line_of_degrees_are_reached() -> None:
    graph = draw_graphs(SBMOptions(**{**SMALL, "nodes": 300}, degree=30.0), 0).graphs[0]
    assert np.array_equal(np.unique(graph.edge_index.numpy()), np.arange(300))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, r"sbm\.classes is 1; it must be at least 2"),
        ({"degree": 0.0}, r"sbm\.degree is 0\.0"),
        ({"degree": float("nan")}, r"sbm\.degree is nan"),
        ({"homophily": 1.2}, r"sbm\.homophily is 1\.2; it must be between 0 and 1"),
        ({"test_homophily": -0.1}, r"sbm\.test_homophily is -0\.1"),
        ({"features": 4}, r"sbm\.features is 4; 5 class means"),
        ({"separation": -1.0}, r"sbm\.separation is -1\.0"),
        ({"shift": float("inf")}, r"sbm\.shift is inf"),
        (
            {"nodes": 1599},
            r"sbm\.nodes is 1599; 20 training nodes in each of 5 classes and 1500 others need at least 1600",
        ),
        ({"seed": -1}, r"sbm\.seed is -1"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SBMOptions(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("homophily", [1.0, 0.0, 0.5])
def test_edges_that_do_not_fit_are_refused_before_they_are_drawn(homophily: float) -> None:
    with pytest.raises(InputError, match=r"sbm\.degree 390 asks for .* lower it, or raise sbm\.nodes"):
        stochastic_block_model(SBMOptions(**SMALL, degree=390.0, homophily=homophily))


def test_degrees_too_unequal_to_be_drawn_are_refused() -> None:
    with pytest.raises(InputError, match=r"lower sbm\.degree or sbm\.degree_spread"):
        stochastic_block_model(SBMOptions(**SMALL, degree=35.0, degree_spread=6.0))
