"""Scores, and the answers they are computed from: alike for whole graphs and for batches with all neighbours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.tiny_graphs import SBM, several_graphs
from stillroom.errors import InputError
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.evaluate import Evaluator, measure_name, micro_f1, score
from stillroom.graphs.networks import CONVOLUTIONS, GNN, GNNOptions
from stillroom.graphs.node_data import NodeData, node_data
from stillroom.graphs.sbm import stochastic_block_model


@settings(max_examples=60, deadline=None)
@given(nodes=st.integers(1, 8), labels=st.integers(1, 4), data=st.data())
def test_micro_f1_is_scikit_learns_over_all_pairs_pooled(nodes: int, labels: int, data: st.DataObject) -> None:
    size = nodes * labels
    logits = data.draw(st.lists(st.floats(-3, 3, width=32), min_size=size, max_size=size))
    target = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    given_logits = torch.tensor(logits).view(nodes, labels)
    given_target = torch.tensor(target, dtype=torch.float32).view(nodes, labels)
    # Flattened: of a single column scikit-learn would count the zeros as a class, too.
    said = np.array(logits).ravel() > 0
    expected = 100 * f1_score(np.array(target), said, average="binary", zero_division=0)
    assert micro_f1(given_logits, given_target) == pytest.approx(expected)
    assert score(given_logits, given_target) == micro_f1(given_logits, given_target)
    if labels > 1:
        pooled = f1_score(given_target.numpy(), (given_logits > 0).numpy(), average="micro", zero_division=0)
        assert micro_f1(given_logits, given_target) == pytest.approx(100 * pooled)


def test_a_label_is_predicted_where_its_probability_is_above_one_half() -> None:
    target = torch.ones(1, 4)
    logits = torch.tensor([[0.01, 0.49, 0.0, -0.01]])  # 0.49 is below a half only as a logit
    assert micro_f1(logits, target) == pytest.approx(100 * 2 * 2 / (2 + 4))


def test_nothing_predicted_where_nothing_is_scores_0() -> None:
    assert micro_f1(torch.full((2, 3), -1.0), torch.zeros(2, 3)) == 0


def test_accuracy_is_the_share_of_largest_logits_on_the_class() -> None:
    logits, target = torch.eye(4)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 3])
    assert score(logits, target) == 75
    assert (measure_name(False), measure_name(True)) == ("accuracy", "micro_f1")


def students(data: NodeData, conv: str = "sage", count: int = 2) -> list[nn.Module]:
    torch.manual_seed(0)
    return [GNN(data.num_features, data.classes, GNNOptions(conv=conv, width=4)) for _ in range(count)]


@pytest.fixture(scope="module")
def data() -> NodeData:
    return stochastic_block_model(SBM)


def wide(kind: str) -> NodeData:
    """Return a graph so wide that the surroundings of two nodes are a small part of it."""
    nodes, generator = 400, torch.Generator().manual_seed(0)
    masks = {f"{split}_mask": torch.arange(nodes) % 80 == place for place, split in enumerate(("train", "val", "test"))}
    x = torch.randn(nodes, 5, generator=generator)
    if kind == "directed":
        edges = torch.randint(nodes, (2, 500), generator=generator)
        graph = Data(x=x, edge_index=edges, y=torch.arange(nodes) % 4, **masks)
        return node_data(kind, graph, undirected=False, self_loops="keep")
    ring = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])
    edges = torch.cat([ring, torch.randint(nodes, (2, 60), generator=generator)], 1)
    if kind == "sparse":
        y = (x[:, :4] > 0.2).float()
        return node_data(kind, Data(x=x.relu().to_sparse_csr(), edge_index=edges, y=y, **masks))
    return node_data(kind, Data(x=x, edge_index=edges, y=torch.arange(nodes) % 4, **masks))


PYG = ("pyg:GCNConv", "pyg:TransformerConv")  # take dense features only
KINDS = [(kind, conv) for kind in ("dense", "directed", "sparse") for conv in (*CONVOLUTIONS, *PYG)]


@pytest.mark.parametrize(("kind", "conv"), [each for each in KINDS if each[0] != "sparse" or each[1] in CONVOLUTIONS])
def test_batches_with_all_neighbours_answer_as_whole_graphs(kind: str, conv: str) -> None:
    given = wide(kind)
    group = students(given, conv)
    evaluator = Evaluator(given, layers=3, batch_size=2)
    assert evaluator.sample.nodes is not None, "no batches: they would hold most of the graph"
    whole, batched = Evaluator(given)(group), evaluator(group)
    assert whole.keys() == batched.keys() == {"val", "test"}
    for split, answers in whole.items():
        assert torch.equal(batched[split].target, answers.target)
        assert batched[split].scores() == answers.scores()
        for own, expected in zip(batched[split].logits, answers.logits, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_that_a_batch_would_mostly_hold_is_taken_whole(data: NodeData) -> None:
    assert Evaluator(data, layers=3, batch_size=20).sample.nodes is None


def test_answers_are_those_of_the_splits_nodes(data: NodeData) -> None:
    (graph,) = data.graphs
    group = students(data)
    answers = Evaluator(data, splits=("test", "train"))(group)
    assert list(answers) == ["test", "train"]
    with torch.no_grad():
        logits = [student.eval()(graph.x, graph.edge_index)[0] for student in group]
    for split, found in answers.items():
        mask: Tensor = graph[f"{split}_mask"]
        assert torch.equal(found.target, graph.y[mask])
        right = [each[mask].argmax(1) == graph.y[mask] for each in logits]
        assert found.scores() == [pytest.approx(100 * each.float().mean().item()) for each in right]
        expected = [F.cross_entropy(each[mask], graph.y[mask]).item() for each in logits]
        assert found.losses() == pytest.approx(expected)
        mean = torch.stack([each[mask] for each in logits]).mean(0)
        assert found.ensemble() == score(mean, graph.y[mask])


def test_several_labels_a_node_are_scored_over_all_graphs_together() -> None:
    given = several_graphs()
    answers = Evaluator(given)(students(given))["test"]
    assert answers.target.shape == (20, 4)
    assert answers.scores() == [micro_f1(each, answers.target) for each in answers.logits]
    assert answers.losses() == [
        pytest.approx(F.binary_cross_entropy_with_logits(each, answers.target).item()) for each in answers.logits
    ]


def test_students_are_asked_without_graph_and_are_left_in_the_mode_they_were_in(data: NodeData) -> None:
    group = students(data)
    group[0].train()
    group[1].eval()
    first, second = (Evaluator(data)(group)["val"] for _ in range(2))
    assert torch.equal(first.logits[0], second.logits[0])  # no dropout
    assert not first.logits[0].requires_grad
    assert [student.training for student in group] == [True, False]


def test_the_sample_is_a_graph_of_the_last_split_or_a_neighbourhood_in_it(data: NodeData) -> None:
    several = several_graphs()
    whole = Evaluator(several).sample
    assert torch.equal(whole.x, several.graphs[4].x)
    assert whole.complete is None
    assert len(Evaluator(several, splits=("train",)).sample.x) == 18
    batch = Evaluator(data, layers=1, batch_size=5).sample
    assert batch.nodes is not None
    assert torch.equal(batch.nodes[:5], data.graphs[0].test_mask.nonzero()[:5, 0])
    assert batch.complete is not None
    assert batch.complete[:5].all()
    assert not batch.complete.all()


@pytest.mark.parametrize("layers", [None, 2])
def test_a_split_without_nodes_is_refused(data: NodeData, layers: int | None) -> None:
    (graph,) = data.graphs
    without = graph.clone()
    without.test_mask = torch.zeros_like(graph.test_mask)
    with pytest.raises(InputError, match="no test node"):
        Evaluator(replace(data, graphs=(without,)), layers=layers)
