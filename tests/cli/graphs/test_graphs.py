"""``stillroom graphs distill`` and ``bench``: what they leave behind, kills, configurations, bad input."""

from __future__ import annotations

import inspect
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli.commands import Commands, Ended, contents, history, measured, weights
from stillroom.graphs.bench import bench
from stillroom.graphs.distill import distill
from stillroom.graphs.store import load_student

Here = Callable[..., Ended]

SBM = (
    *("--sbm.nodes", "90", "--sbm.classes", "3", "--sbm.features", "5", "--sbm.degree", "4", "--sbm.per_class", "6"),
    *("--sbm.val", "24", "--sbm.test", "30", "--network.width", "4", "--device", "cpu", "--eval_every", "1"),
)
# Two epochs; three steps each, for every student where they learn in turns.
SAMPLED = (*SBM, "--students", "2", "--sampling.fanout", "3,3,3", "--recipe.batch_size", "7", "--recipe.epochs", "2")
IN_TURNS = (*SAMPLED, "--method", "alignahead")
ADVERSARIAL = (*SAMPLED, "--method", "oad", "--method.warmup_epochs", "1", "--seed", "3")
COMPARED = (*SAMPLED, "--methods", "independent,alignahead", "--seeds", "0,1")


@pytest.fixture(scope="session")
def students(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A distillation in turns that nothing happened to: its directory, and how it ended."""
    ended = commands.run("graphs", "distill", *IN_TURNS, "--out", runs / "students", "--json")
    assert ended.code == 0, ended.err
    return runs / "students", ended


@pytest.fixture(scope="session")
def adversaries(commands: Commands, runs: Path) -> Path:
    """A distillation with discriminators that nothing happened to."""
    ended = commands.run("graphs", "distill", *ADVERSARIAL, "--out", runs / "adversaries", "--quiet")
    assert ended.code == 0, ended.err
    return runs / "adversaries"


@pytest.fixture(scope="session")
def compared(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A bench that nothing happened to: its directory, and how it ended."""
    ended = commands.run("graphs", "bench", *COMPARED, "--out", runs / "compared", "--json")
    assert ended.code == 0, ended.err
    return runs / "compared", ended


def without_rates(epochs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "nodes_per_second"} for each in epochs]


def same_run(run: Path, expected: Path) -> None:
    assert measured(run) == measured(expected)
    assert weights(run) == weights(expected)
    for part in ("alone", "."):
        assert without_rates(history(run / part)) == without_rates(history(expected / part))


def test_a_run_directory_holds_what_its_contract_says(students: tuple[Path, Ended]) -> None:
    run, ended = students
    files = {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "model.json", "report.html"}
    assert {path.name for path in run.iterdir()} == {*files, "result.json", "alone"}
    result = json.loads((run / "result.json").read_text())
    assert json.loads(ended.out) == result
    assert list(result["groups"]) == ["alone", "alignahead"]
    assert (result["data"]["nodes"], result["data"]["test_nodes"], result["measure"]) == (90, 30, "accuracy")
    assert "alone  epoch 2/2  loss " in ended.err
    assert "alignahead  epoch 2/2  loss " in ended.err
    assert "sbm: 90 nodes, " in ended.err
    assert "18 train, 24 val, 30 test nodes" in ended.err
    assert f"report: {run / 'report.html'}" in ended.err
    page = (run / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "stillroom graphs distill --config" in page


def test_the_stored_student_is_the_one_chosen_on_the_validation_nodes(students: tuple[Path, Ended]) -> None:
    result = json.loads((students[0] / "result.json").read_text())
    found = load_student(students[0])
    record = result["groups"]["alignahead"]
    assert found.card.extra["test"] == record["test"][result["chosen"]] == record["test_chosen"]
    wanted = {"undirected": True, "self_loops": "add", "normalise": "auto"}
    assert found.card.graph.items() >= wanted.items()
    newest = sorted((students[0] / "checkpoints").glob("*.pt"))[-1]
    task = torch.load(newest, weights_only=True)["task"]
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, task[f"best.{result['chosen']}.{name.removeprefix('network.')}"])


@pytest.mark.parametrize("draw", range(2))
def test_killed_students_that_learn_in_turns_resume_to_the_same_result(
    commands: Commands, students: tuple[Path, Ended], tmp_path: Path, draw: int
) -> None:
    step = random.SystemRandom().randint(*((1, 6), (7, 18))[draw])  # alone, and in turns
    print(f"killed after step {step}")
    out = tmp_path / "killed"
    assert commands.run("graphs", "distill", *IN_TURNS, "--out", out, step=step).code == -signal.SIGKILL
    assert not (out / "result.json").exists()
    resumed = commands.run("graphs", "distill", *IN_TURNS, "--out", out, "--resume", "--quiet", "--json")
    assert (resumed.code, json.loads(resumed.out)["out"]) == (0, str(out))
    same_run(out, students[0])


def test_killed_students_with_discriminators_resume_to_the_same_result(
    commands: Commands, adversaries: Path, tmp_path: Path
) -> None:
    step = random.SystemRandom().randint(10, 15)  # after 6 of the students alone, and 3 of the warm-up
    print(f"killed after step {step}")
    out = tmp_path / "killed"
    assert commands.run("graphs", "distill", *ADVERSARIAL, "--out", out, step=step).code == -signal.SIGKILL
    resumed = commands.run("graphs", "distill", "--config", out / "config.yaml", "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    same_run(out, adversaries)


def test_an_interrupted_run_says_so_in_one_line(commands: Commands, tmp_path: Path) -> None:
    options = (*IN_TURNS, "--no_baseline", "--out", tmp_path / "run", "--quiet")
    interrupted = commands.run("graphs", "distill", *options, step=5, signal="SIGINT")
    assert interrupted.code == 130
    assert "stillroom graphs distill: interrupted; what was written is intact" in interrupted.complaint


def test_a_bench_leaves_a_table_a_page_and_its_cells(compared: tuple[Path, Ended]) -> None:
    run, ended = compared
    result = json.loads((run / "result.json").read_text())
    assert json.loads(ended.out) == result
    cells = [f"{method}-seed{seed}" for method in ("alignahead", "independent") for seed in (0, 1)]
    assert sorted(path.name for path in (run / "cells").iterdir()) == cells
    for method, seeds in result["cells"].items():
        for seed, cell in seeds.items():
            assert json.loads((run / "cells" / f"{method}-seed{seed}" / "result.json").read_text()) == cell
    assert "4 cells, of which 0 are done already" in ended.err
    assert "[4/4] alignahead seed 1: " in ended.err
    table = (run / "table.md").read_text()
    assert "| independent | " in table
    assert "vs independent [points]" in table
    assert "2 methods on sbm, 2 seeds" in (run / "report.html").read_text()


def test_a_killed_bench_keeps_finished_cells_and_resumes_to_the_same_result(
    commands: Commands, compared: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    step = random.SystemRandom().randint(7, 18)  # in the second cell; one of the baseline has six
    print(f"killed after step {step}")
    killed = commands.run("graphs", "bench", *COMPARED, "--out", out, "--quiet", step=step)
    assert killed.code == -signal.SIGKILL
    (first,) = out.rglob("result.json")
    written = first.stat().st_mtime_ns
    resumed = commands.run("graphs", "bench", *COMPARED, "--out", out, "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert first.stat().st_mtime_ns == written
    assert measured(out) == measured(compared[0])


def test_a_run_repeats_from_its_configuration(here: Here, adversaries: Path, tmp_path: Path) -> None:
    config = adversaries / "config.yaml"
    again = here("graphs", "distill", "--config", config, "--out", tmp_path / "again", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert measured(tmp_path / "again") == measured(adversaries)
    assert weights(tmp_path / "again") == weights(adversaries)


def test_a_finished_run_is_only_replaced_when_asked(here: Here, adversaries: Path) -> None:
    before = contents(adversaries)
    refused = here("graphs", "distill", *ADVERSARIAL, "--out", adversaries, "--quiet")
    assert refused.code == 2
    assert "is not empty; choose another folder, resume the run there or overwrite it" in refused.complaint
    again = (*ADVERSARIAL, "--out", adversaries, "--quiet", "--resume")
    changed = here("graphs", "distill", *again, "--method.warmup_epochs", "0")
    assert changed.code == 2
    assert "method.warmup_epochs was 1, is now 0" in changed.complaint
    assert contents(adversaries) == before


def test_data_of_ones_own_train_from_a_folder(here: Here, tmp_path: Path) -> None:
    nodes = folder(tmp_path / "mine")
    ended = here("graphs", "distill", "--data", nodes, *("--students", "2", "--network.width", "4", "--no_baseline"),
                 *("--recipe.epochs", "1", "--out", tmp_path / "run", "--quiet", "--json"))  # fmt: skip
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["data"]["features"] == 2


def folder(path: Path, *, feature: object = 0.5) -> Path:
    """Write a graph of twelve nodes in two files."""
    path.mkdir()
    splits = ("train", "val", "test")
    rows = [f"{node},{node % 2},{splits[node % 3]},{node / 7},{feature if node == 5 else 1}" for node in range(12)]
    (path / "nodes.csv").write_text("\n".join(["id,label,split,a,b", *rows]) + "\n")
    edges = [f"{node},{(node + step) % 12}" for node in range(12) for step in (1, 2)]
    (path / "edges.csv").write_text("\n".join(["source,target", *edges]) + "\n")
    return path


def printed(here: Here, verb: str, *argv: object) -> dict[str, Any]:
    ended = here("graphs", verb, *argv, "--print_config")
    assert (ended.code, ended.err) == (0, "")
    config = yaml.safe_load(ended.out)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("distill", ("--method", "dml", "--method.weight", "0.5", "--data", "cora", "--sampling.fanout", "5,-1,3")),
        ("bench", ("--methods", "dml,oad", "--method_options", "{dml: {weight: 0.5}}", "--redraw")),
    ],
)
def test_printed_options_are_a_configuration_that_prints_the_same(
    here: Here, tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    first = printed(here, verb, *options, "--recipe.lr", "0.01", "--network.conv", "gat")
    assert first["network"]["conv"] == "gat"
    if verb == "distill":
        assert (first["method"], first["sampling"]["fanout"]) == ({"name": "dml", **first["method"]}, [5, -1, 3])
        assert first["method"]["weight"] == 0.5
    else:
        assert first["method_options"] == {"dml": {"weight": 0.5}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    assert printed(here, verb, "--config", tmp_path / "config.yaml") == first


@pytest.mark.parametrize("verb", ["distill", "bench"])
def test_every_argument_of_the_library_is_an_option(here: Here, verb: str) -> None:
    function: Callable[..., Any] = distill if verb == "distill" else bench
    assert inspect.signature(function).parameters.keys() - {"show_progress"} <= printed(here, verb).keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("distill --method odd", "unknown method for graphs 'odd'; did you mean 'oad'?"),
        ("distill --method dml --method.alpha true", "unknown option '--method.alpha'"),
        ("distill --method.temperature 0", "temperature must be a"),
        ("distill --students 1", "oad needs at least 2 students, not 1; raise students"),
        ("distill --students 0", "students is 0; it must be at least 1"),
        ("distill --students two", "--students two: expected a whole number"),
        ("distill --init copies", "--init copies: expected one of independent, copy; did you mean 'copy'?"),
        ("distill --network.conv gcnn", "unknown convolution 'gcnn'; did you mean 'gcn'?"),
        ("distill --network.conv pyg:ChebConv", "pyg:ChebConv is not made with two widths"),
        ("distill --network.layers 0", "network.layers is 0; it must be at least 1"),
        ("distill --network.widht 3", "unknown option '--network.widht'; did you mean '--network.width'?"),
        ("distill --network.residual true", "network.residual is there for gat only, not for gcn"),
        ("distill --data corra", "unknown graph data set 'corra'; did you mean 'cora'?"),
        ("distill --data nothing.npz", "there is no file nothing.npz"),
        ("distill --data pyg:Cora", "set data.allow_pickle if you trust"),
        ("distill --sbm.homophily 2", "sbm.homophily is 2.0; it must be between 0 and 1"),
        ("distill --sbm.nodes 50", "sbm.nodes is 50"),
        ("distill --sbm.val 0", "sbm.val is 0; it must be at least 1"),
        ("distill --sbm.degree 90", "sbm.degree 90 asks for"),
        ("distill --sampling.fanout 3,3", "sampling.fanout has 2 numbers and the network 3 layers with that of the"),
        ("distill --sampling.fanout 3,x,3", "--sampling.fanout"),
        ("distill --sampling.fanout 3,3,0", "sampling.fanout is [3, 3, 0]; every number must be at least 1"),
        ("distill --sampling.graphs_per_batch 0", "sampling.graphs_per_batch is 0"),
        ("distill --eval_every 0", "eval_every is 0; it must be at least 1"),
        ("distill --recipe.epochs 0", "recipe.epochs is 0; it must be at least 1"),
        ("distill --precision 16-mixed --device cpu", "precision '16-mixed' needs an accelerator"),
        ("distill --resume", "there is no run to resume"),
        ("bench --methods dml,odd", "unknown method for graphs 'odd'; did you mean 'oad'?"),
        ("bench --seeds 1,1", "a seed is named twice: 1, 1"),
        ('bench --method_options {"oad":{"kd_weigt":1}}', "unknown option of oad 'kd_weigt'; did you mean 'kd_w"),
        ("bench --jobs 0", "jobs is 0; it must be at least 1"),
        ("bench --students 1", "dml needs at least 2 students, not 1"),
        ("bench --eval_every 0", "eval_every is 0"),
        ("destill", "unknown verb of graphs 'destill'; did you mean 'distill'?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(here: Here, tmp_path: Path, options: str, said: str) -> None:
    verb, *rest = options.split()
    ended = here("graphs", verb, *SBM[:14], *rest, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("feature", "said"), [("nan", "of node 5 is NaN"), ("x", "line 7: feature 'b' is")])
def test_a_feature_that_is_no_number_is_one_line(here: Here, tmp_path: Path, feature: str, said: str) -> None:
    data = folder(tmp_path / "mine", feature=feature)
    ended = here("graphs", "distill", "--data", data, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert not (tmp_path / "run").exists()


def test_an_empty_split_is_one_line(here: Here, tmp_path: Path) -> None:
    data = folder(tmp_path / "mine")
    nodes = data / "nodes.csv"
    nodes.write_text(nodes.read_text().replace("val", ""))
    ended = here("graphs", "distill", "--data", data, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert "has no val node; mark some in val_mask, or set data.split to random" in ended.complaint
    assert not (tmp_path / "run").exists()


def test_a_training_that_explodes_is_a_failure_in_one_line(here: Here, tmp_path: Path) -> None:
    options = (*SBM, "--recipe.lr", "1e30", "--recipe.epochs", "5", "--no_baseline", "--out", tmp_path / "run")
    ended = here("graphs", "distill", *options, "--quiet")
    assert (ended.code, ended.out) == (1, "")
    assert "lower --recipe.lr, now 1e+30" in ended.complaint
