"""Whole trainings of small groups: every method, every way of batching, resumed, stored, refused."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from graphs.tiny_graphs import NETWORK, RECIPE, SBM, random_edges, several_graphs
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.graphs import bench as benchmark
from stillroom.graphs import training
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.bench import Bench, bench
from stillroom.graphs.distill import Distilled, distill
from stillroom.graphs.evaluate import Evaluator
from stillroom.graphs.methods import METHODS, method_class
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.node_data import NodeData, node_data
from stillroom.graphs.online._method import Method
from stillroom.graphs.online.alignahead import Alignahead
from stillroom.graphs.online.alignahead_pp import AlignaheadPP
from stillroom.graphs.online.independent import Independent
from stillroom.graphs.online.oad import OAD, Discriminator
from stillroom.graphs.online.one import ONE
from stillroom.graphs.options import GraphDataOptions
from stillroom.graphs.sbm import stochastic_block_model
from stillroom.graphs.store import load_student
from stillroom.graphs.task import InTurns
from stillroom.graphs.training import (
    SamplingOptions,
    Setting,
    TrainedGroup,
    layer_figures,
    new_students,
    rehearse,
    train_group,
)
from stillroom.training.fabric import make_fabric
from stillroom.training.jobs import run_jobs
from stillroom.training.loop import fit
from stillroom.training.run import RunDirectory

SAMPLED = SamplingOptions(fanout=(3, 3, 3))


@pytest.fixture(scope="module")
def sbm() -> NodeData:
    return stochastic_block_model(SBM)


def setting(data: NodeData, **options: Any) -> Setting:
    given = {"recipe": RECIPE, "seed": 1, "fabric": make_fabric("cpu"), "eval_every": 2, "show_progress": False}
    return Setting(data=data, **(given | options))


def group_of(data: NodeData, method: Method, *, count: int = 2, conv: str = "gcn") -> list[nn.Module]:
    torch.manual_seed(3)
    return new_students(data, replace(NETWORK, conv=conv), count, shared=method.shares_first_layer)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "nodes_per_second")} for record in history]


def timeless(group: TrainedGroup) -> dict[str, Any]:
    record = {name: value for name, value in group.record().items() if name != "seconds"}
    return {"record": record, "history": without_times(group.history)}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(one, other) for (a, one), (b, other) in pairs)


@pytest.mark.parametrize("batches", ["whole", "sampled", "several"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_whole_sampled_and_several_graphs(
    name: str, batches: str, sbm: NodeData, tmp_path: Path
) -> None:
    data = several_graphs(sparse=True) if batches == "several" else sbm
    sampling = {"whole": SamplingOptions(), "sampled": SAMPLED, "several": SamplingOptions(graphs_per_batch=2)}[batches]
    method, given = method_class(name)(), setting(data, sampling=sampling)
    students = group_of(data, method, count=3)
    before = copy.deepcopy(students)
    if name == "kdcl" and data.multilabel:
        with pytest.raises(InputError, match="kdcl needs one class a node"):
            rehearse(students, method, given)
        return
    rehearse(students, method, given)
    assert all(same_weights(old, new) for old, new in zip(before, students, strict=True))
    group = train_group(students, method, given, RunDirectory(tmp_path), name)
    assert not any(same_weights(old, new) for old, new in zip(before, students, strict=True))
    assert [record["epoch"] for record in group.history] == [1, 2, 3]
    assert all(math.isfinite(record["train_loss"]) for record in group.history)
    measure = "micro_f1" if data.multilabel else "accuracy"
    assert [f"val_{measure}" in record for record in group.history] == [False, True, True]
    answers = Evaluator(data)(group.students)
    assert group.val == pytest.approx(answers["val"].scores())
    assert group.test == pytest.approx(answers["test"].scores())
    assert group.ensemble == pytest.approx(answers["test"].ensemble())
    assert set(group.best_epochs) <= {2, 3}
    assert [len(figure) for figure in vars(group.layers).values()] == [2] * 4
    assert all(0 < value <= 1 for value in group.layers.similarity)


class Own(nn.Module):
    """A student that is not ours, with batch norm and layers of unequal widths."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(in_features, 6), SAGEConv(6, 4)
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(4, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.norm(self.first(x, edge_index))
        second = self.second(first.relu(), edge_index)
        return self.last(second.relu()), [first, second]


def own_data() -> NodeData:
    generator = torch.Generator().manual_seed(0)
    masks = {f"{split}_mask": torch.arange(60) % 3 == place for place, split in enumerate(("train", "val", "test"))}
    x = torch.randn(60, 5, generator=generator)
    return node_data("mine", Data(x=x, edge_index=random_edges(60, 90), y=(x[:, 0] > 0).long(), **masks))


def run(out: Path, **options: Any) -> Distilled:
    given: dict[str, Any] = {
        "method": "oad",
        "students": 2,
        "network": NETWORK,
        "sbm": SBM,
        "recipe": RECIPE,
        "device": "cpu",
        "eval_every": 1,
        "show_progress": False,
        "seed": 5,
    }
    return distill(out=out, **(given | options))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    return run(tmp_path_factory.mktemp("done") / "run")


def test_the_same_seed_gives_the_same_result_whatever_the_callers_random_state_with_and_without_the_baseline(
    done: Distilled, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = run(tmp_path / "run", baseline=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.alone is None
    assert not (again.out / "alone").exists()
    assert timeless(again.group) == timeless(done.group)
    assert (again.out / "model.safetensors").read_bytes() == (done.out / "model.safetensors").read_bytes()


def test_the_baseline_is_the_same_students_trained_on_the_labels_alone(done: Distilled, tmp_path: Path) -> None:
    alone = run(tmp_path / "run", method="independent")
    assert alone.alone is None
    assert done.alone is not None
    assert timeless(alone.group) == timeless(done.alone)
    assert list(done.result["groups"]) == ["alone", "oad"]
    assert [row[0] for row in done.table.rows] == ["alone", "oad"]
    assert not same_weights(done.group.students[0], done.alone.students[0])


def test_weight_decay_does_not_reach_the_discriminators(done: Distilled) -> None:
    newest = sorted((done.out / "checkpoints").glob("*.pt"))[-1]
    groups = torch.load(newest, weights_only=True)["optimizer"]["param_groups"]
    of_students, of_discriminators = (
        sum(len(list(each.parameters())) for each in done.group.students),
        2 * len(list(Discriminator(4).parameters())),
    )
    assert [(len(each["params"]), each["weight_decay"]) for each in groups] == [
        (of_students, RECIPE.weight_decay),
        (of_discriminators, 0.0),
    ]
    assert RECIPE.weight_decay > 0


def test_graphs_become_batches_as_asked(sbm: NodeData) -> None:
    several = several_graphs()
    for graphs, steps in ((1, 3), (2, 2), (3, 1), (9, 1)):
        loader = setting(several, sampling=SamplingOptions(graphs_per_batch=graphs)).loader()
        assert len(list(loader.epoch(1))) == len(loader) == steps
    assert len(setting(sbm).loader()) == 1
    batches = list(setting(sbm, sampling=SAMPLED).loader().epoch(1))
    assert [len(batch.labelled) for batch in batches] == [7, 7, 4]


def test_the_student_that_is_best_on_the_validation_nodes_is_stored_as_it_was_then(
    done: Distilled, sbm: NodeData
) -> None:
    group, student = done.group, load_student(done.out)
    assert group.chosen == done.result["chosen"] == group.val.index(max(group.val))
    assert done.model is group.students[group.chosen]
    (graph,) = sbm.graphs
    logits = student.model(graph.x, graph.edge_index)
    assert torch.equal(logits, done.model(graph.x, graph.edge_index)[0])
    right = (logits.argmax(1) == graph.y)[graph.val_mask]
    assert group.val[group.chosen] == pytest.approx(100 * right.float().mean().item())
    assert student.card.extra["val"] == group.val[group.chosen]
    assert student.card.network == NETWORK
    assert (student.card.in_features, student.card.classes, student.card.multilabel) == (5, 3, False)


def test_every_student_is_kept_at_its_best_epoch(sbm: NodeData, tmp_path: Path) -> None:
    given = setting(sbm, eval_every=1, recipe=replace(RECIPE, epochs=8, lr=0.3))
    group = train_group(group_of(sbm, Independent(), count=1), Independent(), given, RunDirectory(tmp_path), "")
    scores = [record["val_accuracy"] for record in group.history]
    best = max(range(8), key=lambda place: (scores[place], -group.history[place]["val_loss"]))
    assert scores[-1] < scores[best], "this training should end worse than it was"
    assert group.best_epochs == [best + 1]
    assert group.val == [scores[best]]
    assert group.test == group.history[best]["test_each"]


def test_students_start_from_their_own_weights_or_from_those_of_the_first(sbm: NodeData) -> None:
    independent, copied = (new_students(sbm, NETWORK, 3, init=init) for init in ("independent", "copy"))
    assert not same_weights(independent[0], independent[1])
    assert not same_weights(independent[1], independent[2])
    assert same_weights(copied[0], copied[1])
    assert same_weights(copied[0], copied[2])
    assert len({id(p) for student in copied for p in student.parameters()}) == 3 * len(list(copied[0].parameters()))
    shared = new_students(sbm, NETWORK, 3, init="copy", shared=True)
    assert len({id(student.layers[0]) for student in shared}) == 1


def test_copies_of_one_student_train_like_one_student_until_they_differ(sbm: NodeData, tmp_path: Path) -> None:
    given = setting(sbm, recipe=replace(RECIPE, epochs=1), eval_every=1)
    torch.manual_seed(0)
    students = new_students(sbm, replace(NETWORK, dropout=0.0), 2, init="copy")
    group = train_group(students, Independent(), given, RunDirectory(tmp_path), "")
    assert same_weights(*group.students)
    assert group.test[0] == group.test[1] == group.ensemble == group.mean
    assert group.spread == 0
    assert group.layers.structure == pytest.approx([0, 0], abs=1e-9)


def test_one_shares_its_first_layer_and_exports_a_student_that_stands_alone(sbm: NodeData, tmp_path: Path) -> None:
    found = run(tmp_path / "run", method="one")
    first, second = found.group.students
    assert isinstance(first, GNN)
    assert isinstance(second, GNN)
    assert first.layers[0] is not second.layers[0]
    (graph,) = sbm.graphs
    loaded = load_student(found.out).model
    assert torch.equal(loaded(graph.x, graph.edge_index), found.model(graph.x, graph.edge_index)[0])


def test_modules_of_the_users_own_on_data_of_their_own(tmp_path: Path) -> None:
    data = own_data()
    students = [Own(5, 2) for _ in range(2)]
    before = copy.deepcopy(students)
    found = run(tmp_path / "run", students=students, data=data, method=OAD(warmup_epochs=3))
    assert all(same_weights(old, new) for old, new in zip(before, students, strict=True))
    assert found.result["data"]["name"] == "mine"
    assert found.result["method"]["warmup_epochs"] == 3
    assert found.result["notes"] == [
        "The warm-up of oad lasts 3 epochs and the training 3: the students never learn from each other; shorten "
        "warmup_epochs."
    ]
    with pytest.raises(InputError, match="of a module of your own"):
        load_student(found.out)
    loaded = load_student(found.out, Own(5, 2))
    assert loaded.card.network is None
    graph = data.graphs[0]
    assert torch.equal(loaded.model(graph.x, graph.edge_index), found.model(graph.x, graph.edge_index)[0])


def test_networks_of_ours_that_are_handed_over_are_stored_with_their_shape(tmp_path: Path) -> None:
    options = GNNOptions(conv="gat", layers=1, width=3, heads=2)
    networks = [GNN(5, 3, options) for _ in range(2)]
    found = run(tmp_path / "run", students=networks, baseline=False, method="alignahead_pp")
    assert load_student(found.out).card.network == options
    assert "completed by us from an abstract" in found.result["notes"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"students": 1}, "oad needs at least 2 students, not 1; raise students"),
        ({"students": 0}, "students is 0; it must be at least 1"),
        ({"students": []}, "students is 0; it must be at least 1"),
        ({"students": [Own(5, 3), nn.Linear(5, 3)]}, None),
        ({"students": [Own(5, 3), Own(5, 4)]}, r"logits of one shape, not \[90, 3\], \[90, 4\]"),
        ({"students": [Own(5, 3)] * 2, "method": "one"}, "one gives its students one first layer in common"),
        ({"method": "odd"}, "unknown method for graphs 'odd'; did you mean 'oad'"),
        ({"init": "copies"}, "init must be independent or copy, not 'copies'"),
        ({"network": replace(NETWORK, conv="pyg:ChebConv")}, "pyg:ChebConv is not made with two widths"),
        ({"data": "corra"}, "unknown graph data set 'corra'; did you mean 'cora'"),
        ({"sampling": SamplingOptions(fanout=(3, 3))}, "sampling.fanout has 2 numbers and the network 3 layers"),
        ({"eval_every": 0}, "eval_every is 0; it must be at least 1"),
        ({"device": "cudo"}, "unknown device 'cudo'"),
        ({"data": several_graphs(), "method": "kdcl"}, "kdcl needs one class a node"),
        (
            {"data": several_graphs(sparse=True), "network": replace(NETWORK, conv="pyg:GATv2Conv")},
            "pyg:GATv2Conv does not take the sparse features of several; set data.dense",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], said: str | None
) -> None:
    if said is None:  # a module that is called otherwise is the caller's to mend
        with pytest.raises(TypeError, match="forward"):
            run(tmp_path / "run", **options)
    else:
        with pytest.raises(InputError, match=said) as caught:
            run(tmp_path / "run", **options)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fanout": (3, 0)}, r"sampling.fanout is \[3, 0\]; every number must be at least 1, or -1 for all"),
        ({"fanout": (-2,)}, r"sampling.fanout is \[-2\]"),
        ({"graphs_per_batch": 0}, "sampling.graphs_per_batch is 0; it must be at least 1"),
        ({"graphs_per_batch": 2, "fanout": (3,)}, "sampling.graphs_per_batch is for whole graphs"),
    ],
)
def test_batches_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SamplingOptions(**options)


def test_a_student_that_shows_no_hidden_layers_is_refused_by_its_name(sbm: NodeData) -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x

    with pytest.raises(InputError, match=r"must return \(logits, hidden layers\).*Silent returned a Tensor"):
        rehearse([Silent(), Silent()], OAD(), setting(sbm))


def test_a_training_that_explodes_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"lower --recipe.lr, now 1e\+30"):
        run(tmp_path / "run", recipe=replace(RECIPE, lr=1e30, epochs=6), baseline=False)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_single_student_has_no_spread_and_nobody_to_be_compared_with(tmp_path: Path) -> None:
    found = run(tmp_path / "run", method="independent", students=1)
    record = found.result["groups"]["independent"]
    assert record["test_spread"] == 0
    assert record["test_mean"] == record["test_chosen"] == record["test_ensemble"] == record["test"][0]
    assert all(math.isnan(value) for value in found.group.layers.structure)
    stored = json.loads((found.out / "result.json").read_text())
    assert stored["groups"]["independent"]["layers"]["structure"] == [None, None]


def test_figures_of_layers_compare_what_all_students_have(sbm: NodeData) -> None:
    torch.manual_seed(0)
    students = [GNN(5, 3, replace(NETWORK, layers=layers)) for layers in (3, 1)]
    figures = layer_figures(students, Evaluator(sbm))
    assert [len(values) for values in vars(figures).values()] == [1] * 4
    each = [layer_figures([student], Evaluator(sbm)) for student in students]
    for name in ("similarity", "dirichlet", "mad"):
        assert getattr(figures, name)[0] == pytest.approx(sum(getattr(one, name)[0] for one in each) / 2)
    sampled = layer_figures(students, Evaluator(sbm, layers=4, batch_size=5))
    assert all(math.isfinite(value) for values in vars(sampled).values() for value in values)


class KilledError(Exception):
    """Stands for a kill."""


class Dying:
    """A loader that dies before its n-th batch."""

    def __init__(self, inner: Any, last: int) -> None:
        self.inner, self.left = inner, last

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        for batch in self.inner.epoch(number, start):
            if self.left == 0:
                raise KilledError
            self.left -= 1
            yield batch


@pytest.mark.parametrize(
    ("method", "deaths"),
    [  # an epoch has three steps, six where students learn in turns
        (OAD(warmup_epochs=1, alpha=True, gan_weight=1.0), [2, 3, 1]),
        (Alignahead(), [5, 4]),
        (AlignaheadPP(), [8]),
        (ONE(), [4]),
    ],
    ids=lambda value: value.card.name if isinstance(value, Method) else "",
)
def test_a_training_resumes_from_the_middle_of_an_epoch_exactly(
    method: Method, deaths: list[int], sbm: NodeData, tmp_path: Path
) -> None:
    given = setting(sbm, sampling=SAMPLED)

    def train(folder: Path, death: int | None, *, resume: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        torch.manual_seed(0)
        task = training._task(group_of(sbm, method, conv="gin"), method, given)
        loader: Any = InTurns(given.loader(), 2) if method.in_turns else given.loader()
        history = fit(
            task,
            loader if death is None else Dying(loader, death),
            given.recipe,
            seed=1,
            run=RunDirectory(folder),
            fabric=given.fabric,
            evaluate=training._measure(given.evaluator(), "accuracy"),
            resume=resume,
            checkpoint_every=1,
            checkpoint_seconds=0.0,
            step=task.step,
            undecayed=list(task.method.adversaries()),
            unit="nodes",
            show_progress=False,
        )
        newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
        return without_times(history), torch.load(newest, weights_only=True)

    expected, whole = train(tmp_path / "whole", None, resume=False)
    for count, death in enumerate(deaths):
        with pytest.raises(KilledError):
            train(tmp_path / "killed", death, resume=count > 0)
    history, resumed = train(tmp_path / "killed", None, resume=True)
    assert history == expected
    assert resumed["task"].keys() == whole["task"].keys()
    assert any(key.startswith("best.0.") for key in whole["task"])
    for part in ("task", "optimizer"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)


def compare(out: Path, **options: Any) -> Bench:
    given: dict[str, Any] = {
        "methods": ["independent", "dml"],
        "seeds": [0, 1],
        "students": 2,
        "network": NETWORK,
        "sbm": SBM,
        "recipe": replace(RECIPE, epochs=2),
        "device": "cpu",
        "show_progress": False,
    }
    return bench(out=out, **(given | options))


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return compare(tmp_path_factory.mktemp("benched") / "run")


def cells(found: Bench) -> dict[str, Any]:
    kept: dict[str, Any] = copy.deepcopy(found.result["cells"])
    for each in kept.values():
        for cell in each.values():
            cell.pop("seconds")
    return kept


def test_a_bench_measures_what_a_distillation_does(benched: Bench, tmp_path: Path) -> None:
    alone = run(tmp_path / "run", method="independent", seed=1, recipe=replace(RECIPE, epochs=2), eval_every=5)
    record = json.loads((alone.out / "result.json").read_text())["groups"]["independent"]
    record.pop("seconds")
    assert cells(benched)["independent"]["1"] == record


def test_a_bench_grows_by_methods_and_seeds_keeps_what_it_has_and_takes_options_and_graphs_of_each_seed(
    benched: Bench, tmp_path: Path
) -> None:
    out, own = tmp_path / "run", {"method_options": {"dml": {"weight": 0.0}}, "redraw": True}
    first = compare(out, methods=["dml"], seeds=[0], **own)
    file = out / "cells" / "dml-seed0" / "result.json"
    written = file.stat().st_mtime_ns
    grown = compare(out, **own, resume=True)
    assert file.stat().st_mtime_ns == written
    assert cells(grown)["dml"]["0"] == cells(first)["dml"]["0"]
    assert grown.result["options"]["dml"]["weight"] == 0
    assert cells(grown)["dml"]["0"]["test"] == cells(benched)["independent"]["0"]["test"]  # the default seed's graph
    assert cells(grown)["independent"]["1"]["test"] != cells(benched)["independent"]["1"]["test"]
    assert any("a split or generated graph of its own" in note for note in grown.result["notes"])


def test_what_a_process_is_handed_is_all_it_needs_to_train_a_cell(
    benched: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_in_a_process(work: Any, items: Any, jobs: int) -> Any:
        return run_jobs(pickle.loads(pickle.dumps(work)), items, 1)

    monkeypatch.setattr(benchmark, "run_jobs", as_in_a_process)
    threads = torch.get_num_threads()
    try:
        found = compare(tmp_path / "run", jobs=2)
    finally:
        torch.set_num_threads(threads)
    assert cells(found) == cells(benched)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methods": []}, "at least one method and one seed"),
        ({"methods": ["dml", "dml"]}, "a method is named twice"),
        ({"seeds": [-1]}, "seed -1 is negative"),
        ({"jobs": 0}, "jobs is 0"),
        ({"methods": ["dlm"]}, "unknown method for graphs 'dlm'; did you mean 'dml'"),
        ({"method_options": {"oad": {}}}, "unknown method in method_options 'oad'"),
        ({"method_options": {"dml": {"wieght": 1}}}, "unknown option of dml 'wieght'; did you mean 'weight'"),
        ({"method_options": {"dml": {"weight": -1}}}, "weight must be a finite number of at least 0, not -1"),
        ({"students": 1}, "dml needs at least 2 students"),
    ],
)
def test_a_bench_refuses_what_would_fail_in_its_last_cell(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare(tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shared_data
def test_sparse_citation_graphs_train_to_a_useful_accuracy(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "planetoid" / "cora.npz"
    if not file.is_file():
        pytest.skip(f"no {file}")
    recipe = replace(RECIPE, epochs=15)
    data, network = GraphDataOptions(name=str(file)), GNNOptions(layers=1, width=16, dropout=0.2)
    found = run(tmp_path / "run", data=data, recipe=recipe, network=network, eval_every=15, baseline=False)
    assert found.group.mean > 60
    assert found.result["data"]["features"] == 1433
