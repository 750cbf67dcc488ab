"""What the local structure of a graph costs, against the attention of a GAT layer on the same edges.

    OMP_NUM_THREADS=1 python benchmarks/graph_structure.py

Ours is what a learner's layer adds to Alignahead's step: the kernel of every edge, its softmax over the incoming edges
and the divergence from another structure that is given, forward and backward. The baseline is what PyG's ``GATConv``
does on the edges, for heads of 64 features: attention, softmax and weighted sum (``edge_updater`` and ``propagate``),
forward and backward, without its linear maps. The naive row forms the differences of all edges at once, as the formula
stands in the paper. Cora and PubMed's structure are read from ``STILLROOM_DATA``, and left out where they are not
there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from _rounds import Contender, TimedLoader, compare, environment, print_table, rounds_parser
from torch import Tensor

from stillroom.data.sources import data_root
from stillroom.errors import InputError
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.sbm import stochastic_block_model
from stillroom.graphs.sources import load_graphs
from stillroom.graphs.structure import edge_kernel, in_edge_log_softmax, structure_kl

ATTENTION = "GATConv's attention"
TARGETS = {"ours": 1.2}
HEAD = 64


def repeated(step: Callable[[], object]) -> Contender:
    """Return a loop of nothing but one step."""

    def run(loader: TimedLoader) -> None:
        for _ in loader.epoch():
            step()

    return run


def attention(features: Tensor, edge_index: Tensor, heads: int) -> Callable[[], object]:
    """Return the attention step of a GAT layer, its backward pass from a fixed gradient."""
    from torch_geometric.nn import GATConv

    N = features.shape[0]
    layer = GATConv(HEAD, HEAD, heads=heads, add_self_loops=False)
    scores = tuple(torch.randn(N, heads, device=features.device).requires_grad_() for _ in range(2))
    gradient = torch.randn(N, heads, HEAD, device=features.device)

    def step() -> object:
        alpha = layer.edge_updater(edge_index, alpha=scores, edge_attr=None, size=None)
        x = features.view(N, heads, HEAD)
        out = layer.propagate(edge_index, x=(x, x), alpha=alpha, size=None)
        return torch.autograd.grad(out, [features, *scores], gradient)

    return step


def ours(features: Tensor, edge_index: Tensor, target: Tensor) -> Callable[[], object]:
    """Return the local structure and its divergence from another."""
    N = features.shape[0]

    def step() -> object:
        structure = in_edge_log_softmax(edge_kernel(features, edge_index), edge_index, N)
        return torch.autograd.grad(structure_kl(target, structure, edge_index, N), [features])

    return step


def kernel_alone(features: Tensor, edge_index: Tensor) -> Callable[[], object]:
    """Return the part of it that the width matters for."""

    def step() -> object:
        return torch.autograd.grad(edge_kernel(features, edge_index).sum(), [features])

    return step


def naive(features: Tensor, edge_index: Tensor, target: Tensor) -> Callable[[], object]:
    """Return the same with the differences of all edges at once."""
    N = features.shape[0]
    source, destination = edge_index

    def step() -> object:
        kernel = torch.exp(-(features[source] - features[destination]).abs().sum(1) / 100)
        structure = in_edge_log_softmax(kernel, edge_index, N)
        return torch.autograd.grad(structure_kl(target, structure, edge_index, N), [features])

    return step


def graphs() -> dict[str, Data]:
    """Return the graphs by name, self loops included."""
    found = {}
    try:
        found["Cora"] = load_graphs(GraphDataOptions(name="cora")).graphs[0]
        root = data_root()
        assert root is not None
        with np.load(root / "planetoid" / "pubmed_structure_only.npz", allow_pickle=False) as file:
            edge_index, y = torch.from_numpy(file["edge_index"]).long(), torch.from_numpy(file["y"])
        loops = torch.arange(len(y)).expand(2, -1)
        found["PubMed"] = Data(edge_index=torch.cat([edge_index, loops], 1), y=y)  # its structure is all that is needed
    except (InputError, FileNotFoundError) as error:
        print(f"Cora and PubMed are left out: {error}\n")
    for nodes in (20_000, 100_000):
        options = SBMOptions(nodes=nodes, degree=9.0)  # the self loops make it 10
        found[f"SBM of {nodes:,} nodes"] = stochastic_block_model(options).graphs[0]
    return found


def main() -> None:
    parser = rounds_parser("Time the local structure of a graph against a GAT layer's attention.", batches=False)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 3], help="heads of 64 features")
    parser.set_defaults(rounds=5, steps=2)
    arguments = parser.parse_args()
    device = environment(arguments)
    for name, graph in graphs().items():
        edge_index, N = graph.edge_index.to(device), len(graph.y)
        for heads in arguments.heads:
            torch.manual_seed(0)
            features = torch.randn(N, heads * HEAD, device=device).requires_grad_()
            other = torch.randn(N, heads * HEAD, device=device)
            target = in_edge_log_softmax(edge_kernel(other, edge_index), edge_index, N)
            contenders = {
                ATTENTION: repeated(attention(features, edge_index, heads)),
                "ours": repeated(ours(features, edge_index, target)),
                "our kernel alone": repeated(kernel_alone(features, edge_index)),
                "naive": repeated(naive(features, edge_index, target)),
            }
            loader = TimedLoader([(features,)], warm_up=arguments.warm_up, steps=arguments.steps)
            print(f"### {name}, {edge_index.shape[1]:,} edges, {heads * HEAD} wide\n")
            print_table(compare(contenders, loader, rounds=arguments.rounds), baseline=ATTENTION, targets=TARGETS)


if __name__ == "__main__":
    main()
