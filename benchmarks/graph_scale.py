"""Memory and time of students on a graph of a million nodes and ten million edges, trained on sampled neighbourhoods.

    OMP_NUM_THREADS=1 python benchmarks/graph_scale.py

The graph comes from ``stillroom.graphs.sbm``: ten neighbours and a self loop for every node, 64 features. Three
students (gcn, two hidden layers of 64) learn on batches of 1024 training nodes with 10, 5 and 5 neighbours drawn at
every step away from them. Every size has a process of its own, whose peak is ``ru_maxrss``; bytes an edge are the slope
between sizes, in which the features and labels of a tenth of a node are included. The loops are ``fit`` with the
method, turn by turn, one step each a round. A step of alignahead updates one student, those of the other methods all
three. One student is evaluated on the validation nodes with all their neighbours three steps away, 1024 nodes at a time
as after such a training, and on the whole graph at once. The sizes stand for edges without self loops.
"""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _rounds import compare, environment, keep_freed_memory, rounds_parser

from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.distill import RECIPE
from stillroom.graphs.evaluate import Evaluator
from stillroom.graphs.loaders import SampledNodes
from stillroom.graphs.methods import method_class
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.options import SBMOptions
from stillroom.graphs.sbm import stochastic_block_model
from stillroom.graphs.task import GroupTask
from stillroom.training.contracts import Loader
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit
from stillroom.training.run import RunDirectory

METHODS = ("independent", "alignahead", "oad")
STUDENTS, FANOUT, SEEDS = 3, (10, 5, 5), 1024
DEGREE = 10


class TimedSteps:
    """The first steps of a sampled epoch, all of them timed, and the time spent on drawing them."""

    def __init__(self, loader: Loader[NodeBatch], steps: int) -> None:
        self.loader, self.steps = loader, steps
        self.wall = self.cpu = 0.0  # seconds a step
        self.sampling: list[float] = []  # seconds of every step so far

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        wall, cpu = time.perf_counter(), time.process_time()
        batches = self.loader.epoch(number)
        for _ in range(self.steps):
            asked = time.perf_counter()
            batch = next(batches)
            self.sampling.append(time.perf_counter() - asked)
            yield batch
        self.wall = (time.perf_counter() - wall) / self.steps
        self.cpu = (time.process_time() - cpu) / self.steps


class OneByOne:
    """Batches that train one student each."""

    def __init__(self, loader: TimedSteps) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        for turn, batch in enumerate(self.loader.epoch(number, start)):
            yield batch._replace(turn=turn % STUDENTS)


def contender(students: list[GNN], method: str, sample: NodeBatch) -> Any:
    """Return our training of the group under a method."""
    task = GroupTask(students, method_class(method)(), sample, epochs=RECIPE.epochs)
    fabric = make_fabric("cpu")

    def run(loader: TimedSteps) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(
                task,
                OneByOne(loader) if task.method.in_turns else loader,
                replace(RECIPE, epochs=1),
                seed=0,
                run=RunDirectory(Path(folder)),
                fabric=fabric,
                step=task.step,
                undecayed=list(task.method.adversaries()),
                unit="nodes",
                show_progress=False,
            )

    return run


def megabytes() -> float:
    """Return the most memory this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(edges: int, arguments: Any, *, evaluate: bool) -> dict[str, Any]:
    """Return what one size takes; in a process of its own."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    found: dict[str, Any] = {"peaks": {"before": megabytes()}, "seconds": {}}

    def passed(what: str, started: tuple[float, float]) -> None:
        found["seconds"][what] = time.perf_counter() - started[0], time.process_time() - started[1]
        found["peaks"][what] = megabytes()

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    nodes = edges // DEGREE
    options = SBMOptions(nodes=nodes, degree=DEGREE, per_class=2000, val=arguments.held, test=arguments.held)
    started = now()
    data = stochastic_block_model(options)
    passed("generate", started)
    started = now()
    loader = SampledNodes(data.graphs, fanout=FANOUT, batch_size=SEEDS)
    passed("sampler", started)
    torch.manual_seed(0)
    students = {name: [GNN(data.num_features, data.classes, GNNOptions()) for _ in range(STUDENTS)] for name in METHODS}
    sample = next(loader.epoch(1))
    found["batch"] = sample.x.shape[0], sample.edge_index.shape[1]
    contenders = {name: contender(students[name], name, sample) for name in METHODS}
    timed = TimedSteps(loader, arguments.steps)
    started = now()
    found["times"] = compare(contenders, timed, rounds=arguments.rounds if evaluate else 1)  # type: ignore[arg-type]
    passed("training", started)
    found["sampling"] = timed.sampling
    if evaluate:
        started = now()
        evaluator = Evaluator(data, layers=len(FANOUT), batch_size=SEEDS, splits=("val",))
        evaluator(students["independent"][:1])
        passed("evaluation", started)
        started = now()
        Evaluator(data, splits=("val",))(students["independent"][:1])
        passed("whole", started)
    return found


def print_sizes(results: dict[int, dict[str, Any]]) -> None:
    """Print the memory of every size and the bytes an edge between them."""
    print("| edges | nodes | generate, s | sampler, s | MiB before | graph | sampler | training | evaluation | whole |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for edges, found in results.items():
        generate, sampler = (found["seconds"][what][0] for what in ("generate", "sampler"))
        peaks = [
            f"{found['peaks'][what]:,.0f}" if what in found["peaks"] else ""
            for what in ("before", "generate", "sampler", "training", "evaluation", "whole")
        ]
        print(f"| {edges:,} | {edges // DEGREE:,} | {generate:.1f} | {sampler:.2f} | {' | '.join(peaks)} |")
    print()
    sizes = sorted(results)
    for what, label in (("sampler", "graph and sampler"), ("training", "and training")):
        for low, high in itertools.pairwise(sizes):
            grown = results[high]["peaks"][what] - results[low]["peaks"][what]
            print(f"- {label}, from {low:,} to {high:,} edges: {2**20 * grown / (high - low):.0f} bytes an edge")
    print()


def print_steps(found: dict[str, Any], held: int) -> None:
    """Print the time of a step of every method, and how much of it is sampling."""
    sampling = statistics.median(found["sampling"])
    print("| method | s per step | processor time, s | ratio to *independent* | share of sampling |")
    print("|---|---|---|---|---|")
    for name, times in found["times"].items():
        wall, cpu = (statistics.median(each) for each in zip(*times, strict=True))
        pairs = zip(times, found["times"]["independent"], strict=True)
        ratio = statistics.median(own[0] / other[0] for own, other in pairs)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {ratio:.3f} | {100 * sampling / wall:.1f} % |")
    print()
    nodes, edges = found["batch"]
    print(f"- a batch has some {nodes:,} nodes and {edges:,} edges and takes {sampling:.2f} s to draw")
    ways = {"evaluation": f"{held:,} validation nodes as after sampled training", "whole": "the whole graph at once"}
    for what, how in ways.items():
        wall, cpu = found["seconds"][what]
        print(f"- evaluation of one student, {how}: {wall:.1f} s, {cpu:.1f} s of the processor")


def main() -> None:
    parser = rounds_parser("Measure memory and time of students on large graphs.", batches=False)
    parser.add_argument("--edges", type=int, nargs="+", default=[2_500_000, 5_000_000, 10_000_000], help="sizes")
    parser.add_argument("--held", type=int, default=2048, help="validation nodes; as many are held for the test")
    parser.set_defaults(rounds=3, steps=1, warm_up=0)
    arguments = parser.parse_args()
    environment(arguments)
    results = {}
    for edges in sorted(arguments.edges):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            last = edges == max(arguments.edges)
            results[edges] = pool.submit(measure, edges, arguments, evaluate=last).result()
    print_sizes(results)
    print_steps(results[max(results)], arguments.held)


if __name__ == "__main__":
    main()
