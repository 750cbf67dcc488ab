"""What an epoch of students of a graph neural network costs beyond the passes it cannot do without.

    OMP_NUM_THREADS=1 python benchmarks/graph_epoch.py --conv gcn --students 3
    OMP_NUM_THREADS=1 python benchmarks/graph_epoch.py --conv gcn --features

On one whole graph an epoch is one update of every student. The baseline is written by hand for these layers: every
student's forward pass, its cross-entropy on the training nodes and its backward pass, and one fused Adam; the edges'
weights are computed once before. The other methods are written by hand the same way, with the losses they need: what
a method costs beyond the passes is the second ratio of our loops. Alignahead's students learn in turns, so that its
epoch takes k forward and backward passes, k (k - 1) forward passes without gradient (dropout makes each another one)
and the local structures of all of them. Ours is ``fit`` with a run directory, as ``train_group`` calls it, without
evaluations. A step of the tables is an epoch. ``--features`` times sparse features against the same made dense. Cora
is read from ``STILLROOM_DATA``, and left out where that is not there.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from _rounds import compare, environment, rounds_parser
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.distill import RECIPE
from stillroom.graphs.loaders import WholeGraphs
from stillroom.graphs.methods import method_class
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.node_data import NodeData
from stillroom.graphs.online.oad import Discriminator
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.propagation import symmetric_norm
from stillroom.graphs.sbm import stochastic_block_model
from stillroom.graphs.sources import load_graphs
from stillroom.graphs.structure import edge_kernel, in_edge_log_softmax, structure_kl
from stillroom.graphs.task import GroupTask, InTurns
from stillroom.training.contracts import Loader
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit
from stillroom.training.run import RunDirectory

PASSES = "k passes by hand"
METHODS = ("independent", "dml", "oad", "alignahead")
TEMPERATURE, GAN_WEIGHT = 3.0, 0.1  # the defaults of dml and oad
AIM = 1.10


class Clock:
    """Times epochs from the request for the first timed one to the request for the one after the last.

    What :class:`_rounds.TimedLoader` is for steps: all that a loop does once an epoch counts, but for its beginning and
    its end.
    """

    def __init__(self, *, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps = warm_up, steps
        self.wall = self.cpu = 0.0

    def __len__(self) -> int:
        return self.warm_up + self.steps + 1

    def begin(self, number: int) -> None:
        """Be told that an epoch begins, counted from 1."""
        now = time.perf_counter(), time.process_time()
        if number == self.warm_up + 1:
            self._started = now
        elif number == len(self):
            self.wall, self.cpu = ((end - start) / self.steps for start, end in zip(self._started, now, strict=True))

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of all epochs."""
        for number in range(1, len(self) + 1):
            self.begin(number)
            yield number


class Clocked:
    """A loader that tells the clock when an epoch begins."""

    def __init__(self, loader: Loader[NodeBatch], clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        self.clock.begin(number)
        return self.loader.epoch(number, start)


Contender = Callable[[Clock], None]


class ByHand:
    """The students' layers, called without anything around them, and one optimiser."""

    def __init__(self, data: NodeData, options: GNNOptions, students: int) -> None:
        self.batch = next(WholeGraphs(data.graphs).epoch(1))
        self.target = self.batch.target[self.batch.labelled]
        self.options = options
        self.students = new_students(data, options, students)
        self.norm = symmetric_norm(self.batch.edge_index, self.batch.x.shape[0])
        self.shared = (self.norm,) if options.conv == "gcn" else ()
        self.activate = F.elu if options.conv == "gat" else F.relu

    def answer(self, student: GNN) -> tuple[Tensor, list[Tensor]]:
        """Return the logits and the hidden layers before their activation."""
        x, hidden = self.batch.x, []
        *first, last = student.layers
        for layer in first:
            hidden.append(layer(self.drop(x), self.batch.edge_index, *self.shared))
            x = self.activate(hidden[-1])
        return last(self.drop(x), self.batch.edge_index, *self.shared), hidden

    def drop(self, x: Tensor) -> Tensor:
        if x.layout is not torch.sparse_csr:
            return F.dropout(x, self.options.dropout)
        values = F.dropout(x.values(), self.options.dropout)
        return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for student in self.students for parameter in student.parameters()]

    def label_loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[self.batch.labelled], self.target)

    def structures(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        edges, N = self.batch.edge_index, self.batch.x.shape[0]
        return [in_edge_log_softmax(edge_kernel(each, edges), edges, N) for each in hidden]


def adam(parameters: Sequence[nn.Parameter], *others: nn.Parameter) -> torch.optim.Adam:
    """Return the optimiser of the recipe; weight decay does not reach the others."""
    groups = [{"params": list(parameters)}, {"params": list(others), "weight_decay": 0.0}]
    return torch.optim.Adam(groups[: 1 + bool(others)], lr=RECIPE.lr, weight_decay=RECIPE.weight_decay, fused=True)


def new_students(data: NodeData, options: GNNOptions, count: int) -> list[GNN]:
    """Create students, every call with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [GNN(data.num_features, data.classes, options).train() for _ in range(count)]


def independent_by_hand(hand: ByHand) -> Contender:
    """Return the passes alone."""

    def run(clock: Clock) -> None:
        optimizer = adam(hand.parameters())
        for _ in clock.epochs():
            for student in hand.students:
                hand.label_loss(hand.answer(student)[0]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of softened predictions from others, whose gradient is cut."""
    soft = F.log_softmax(teacher.detach() / TEMPERATURE, 1)
    log_student = F.log_softmax(student / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(log_student, soft, reduction="batchmean", log_target=True)


def dml_by_hand(hand: ByHand) -> Contender:
    """Return the passes, and every student's divergence from each other one."""

    def run(clock: Clock) -> None:
        optimizer = adam(hand.parameters())
        for _ in clock.epochs():
            logits = [hand.answer(student)[0][hand.batch.labelled] for student in hand.students]
            loss = sum(F.cross_entropy(each, hand.target) for each in logits)
            mutual = sum(kl(own, other) for own in logits for other in logits if other is not own)
            (loss + mutual / (len(logits) - 1)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def oad_by_hand(hand: ByHand) -> Contender:
    """Return the passes, the divergence from the others' mean, and three passes of every discriminator."""
    width = hand.options.width * (hand.options.heads if hand.options.conv == "gat" else 1)
    discriminators = [Discriminator(width) for _ in hand.students]
    edges, norm = hand.batch.edge_index, hand.norm

    def bce(score: Tensor, value: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(score, torch.full_like(score, value))

    def run(clock: Clock) -> None:
        own = [parameter for each in discriminators for parameter in each.parameters()]
        optimizer = adam(hand.parameters(), *own)
        for _ in clock.epochs():
            answers = [hand.answer(student) for student in hand.students]
            shown = [hidden[-1] for _, hidden in answers]
            for i, discriminator in enumerate(discriminators):
                real = discriminator(shown[i].detach(), edges, norm)
                fake = discriminator(shown[i - 1].detach(), edges, norm)
                (bce(real, 1.0) + bce(fake, 0.0)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            logits = [each[hand.batch.labelled] for each, _ in answers]
            loss = sum(F.cross_entropy(each, hand.target) for each in logits)
            for i, each in enumerate(logits):
                others = [other.detach() for j, other in enumerate(logits) if j != i]
                loss = loss + kl(each, sum(others[1:], others[0]) / len(others))
            for parameter in own:
                parameter.requires_grad_(False)
            adversarial = sum(bce(each(shown[i - 1], edges, norm), 1.0) for i, each in enumerate(discriminators))
            for parameter in own:
                parameter.requires_grad_(True)
            (loss + GAN_WEIGHT * adversarial).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def alignahead_by_hand(hand: ByHand) -> Contender:
    """Return the passes of students that learn in turns, and the divergences of their local structures."""
    edges, N = hand.batch.edge_index, hand.batch.x.shape[0]

    def run(clock: Clock) -> None:
        optimizer = adam(hand.parameters())
        for _ in clock.epochs():
            for learner in hand.students:
                logits, hidden = hand.answer(learner)
                with torch.no_grad():
                    others = [hand.structures(hand.answer(each)[1]) for each in hand.students if each is not learner]
                own = hand.structures(hidden)
                terms = [structure_kl(other[n - 1], own[n], edges, N) for other in others for n in range(len(own))]
                (hand.label_loss(logits) + sum(terms) / len(others)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return run


BY_HAND: dict[str, Callable[[ByHand], Contender]] = {
    "independent": independent_by_hand,
    "dml": dml_by_hand,
    "oad": oad_by_hand,
    "alignahead": alignahead_by_hand,
}


def ours(data: NodeData, options: GNNOptions, students: int, method: str) -> Contender:
    """Return our training of the group, with the defaults of the method."""
    loader = WholeGraphs(data.graphs)
    task = GroupTask(
        new_students(data, options, students), method_class(method)(), next(loader.epoch(1)), epochs=RECIPE.epochs
    )
    fabric = make_fabric("cpu")

    def run(clock: Clock) -> None:
        batches = InTurns(loader, students) if task.method.in_turns else loader
        with tempfile.TemporaryDirectory() as folder:
            fit(
                task,
                Clocked(batches, clock),
                replace(RECIPE, epochs=len(clock)),
                seed=0,
                run=RunDirectory(Path(folder)),
                fabric=fabric,
                checkpoint_seconds=10.0,
                step=task.step,
                undecayed=list(task.method.adversaries()),
                unit="nodes",
                show_progress=False,
            )

    return run


Times = Mapping[str, Sequence[tuple[float, float]]]


def ratio(times: Times, name: str, baseline: str, part: int = 0) -> tuple[float, float, float]:
    """Return the quartiles of the ratio within a round, of wall-clock (0) or processor time (1)."""
    ratios = [own[part] / other[part] for own, other in zip(times[name], times[baseline], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def print_epochs(
    times: Times, counterparts: Mapping[str, str], aims: Mapping[str, tuple[str, float]], *, counterpart: str
) -> None:
    """Print a row for every loop: its epoch, its ratio to the passes, and to its counterpart."""
    print(
        f"| loop | ms per epoch | ratio to *{PASSES}* | to the same {counterpart} | quartiles | processor time | aim |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, own in times.items():
        milliseconds = 1e3 * statistics.median(wall for wall, _ in own)
        row = [name, f"{milliseconds:.4g}", f"{ratio(times, name, PASSES)[1]:.3f}"]
        if name in counterparts:
            other = counterparts[name]
            low, middle, high = ratio(times, name, other)
            row += [f"{middle:.3f}", f"{low:.3f} – {high:.3f}", f"{ratio(times, name, other, 1)[1]:.3f}"]
        else:
            row += ["", "", ""]
        verdict = ""
        if name in aims:
            baseline, limit = aims[name]
            met = ratio(times, name, baseline)[1] <= limit
            verdict = f"≤ {limit:.2f} of *{baseline}*: {'met' if met else '**missed**'}"
        print(f"| {' | '.join([*row, verdict])} |")
    print(flush=True)


def graphs() -> dict[str, NodeData]:
    """Return the data sets by name."""
    found = {}
    try:
        found["Cora"] = load_graphs(GraphDataOptions(name="cora"))
    except InputError as error:
        print(f"Cora is left out: {error}\n")
    found["the default SBM"] = stochastic_block_model(SBMOptions())
    return found


def time_methods(data: NodeData, options: GNNOptions, students: int, clock: Clock, rounds: int) -> None:
    """Print the table of all methods."""
    hand = {PASSES if name == "independent" else f"{name} by hand": name for name in METHODS}
    contenders = {label: BY_HAND[name](ByHand(data, options, students)) for label, name in hand.items()}
    contenders |= {name: ours(data, options, students, name) for name in METHODS}
    times = compare(contenders, clock, rounds=rounds)  # type: ignore[arg-type]
    aims = dict.fromkeys(("independent", "dml", "oad"), (PASSES, AIM)) | {"alignahead": ("alignahead by hand", AIM)}
    print_epochs(times, {name: label for label, name in hand.items()}, aims, counterpart="by hand")


def time_features(data: NodeData, options: GNNOptions, students: int, clock: Clock, rounds: int) -> None:
    """Print the table of sparse features and dense ones."""
    dense = replace(data, graphs=tuple(graph.clone() for graph in data.graphs))
    for graph in dense.graphs:
        graph.x = graph.x.to_dense()
    sparse = f"{PASSES}, sparse"
    contenders = {
        PASSES: independent_by_hand(ByHand(dense, options, students)),
        sparse: independent_by_hand(ByHand(data, options, students)),
        "independent, dense": ours(dense, options, students, "independent"),
        "independent, sparse": ours(data, options, students, "independent"),
    }
    counterparts = {sparse: PASSES, "independent, sparse": "independent, dense"}
    times = compare(contenders, clock, rounds=rounds)  # type: ignore[arg-type]
    print_epochs(times, counterparts, {}, counterpart="with dense features")


def main() -> None:
    parser = rounds_parser("Time an epoch of a group of students against its passes.", batches=False)
    parser.add_argument("--conv", nargs="+", default=["gcn", "gat"], help="convolutions")
    parser.add_argument("--students", type=int, nargs="+", default=[3, 4], help="how many students")
    parser.add_argument("--features", action="store_true", help="time sparse features against dense ones instead")
    parser.set_defaults(rounds=6, steps=4)
    arguments = parser.parse_args()
    environment(arguments)
    clock = Clock(warm_up=arguments.warm_up, steps=arguments.steps)
    for name, data in graphs().items():
        for conv in arguments.conv:
            options = GNNOptions(conv=conv)
            for students in arguments.students:
                if arguments.features and not data.sparse:
                    continue
                print(f"### {name}, {conv} of {options.layers} hidden layers, {students} students\n")
                (time_features if arguments.features else time_methods)(
                    data, options, students, clock, arguments.rounds
                )


if __name__ == "__main__":
    main()
