"""Methods without a teacher, with several, or without data, from the command line to the report."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import DATA, Commands, Ended, history, measured, weights
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard, load_model, save_model

Here = Callable[..., Ended]

BRIEF = (*DATA, "--recipe.epochs", "2", "--checkpoint_every", "1")
ONLINE = (*BRIEF, "--method", "okddip", "--peers", "3", "--method.rampup", "2")
MANY = (*BRIEF, "--method", "mmkd", "--teacher", "resnet8", "--teacher", "resnet14", "--method.meta_freq", "2")
MANY = (*MANY, "--method.buffer_size", "20", "--no_baseline")


@pytest.fixture(scope="session")
def teacher(finished: tuple[Path, Ended]) -> Path:
    """A teacher that is trained."""
    return finished[0] / "teacher"


def data_free(teacher: Path) -> tuple[object, ...]:
    small = ("--method.kd_steps", "2", "--method.g_steps", "2", "--method.initial_rounds", "1")
    small = (*small, "--method.initial_g_steps", "2", "--method.synthesis_batch", "20")
    return (*BRIEF, "--method", "csd", "--teacher", teacher, *small)


@pytest.fixture(scope="session")
def families(commands: Commands, runs: Path, teacher: Path) -> dict[str, tuple[tuple[object, ...], Path, Ended]]:
    """A run of each family that nothing happened to: its options, its directory, how it ended."""
    options = {"online": ONLINE, "multi_teacher": MANY, "data_free": data_free(teacher)}
    done = {}
    for family, own in options.items():
        ended = commands.run("distill", *own, "--out", runs / family, "--json")
        assert ended.code == 0, ended.err
        done[family] = (own, runs / family, ended)
    return done


Families = dict[str, tuple[tuple[object, ...], Path, Ended]]


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("online", ["student alone", "ensemble of 2 peers", "student distilled"]),
        ("multi_teacher", ["teacher 1", "teacher 2", "student distilled"]),
        ("data_free", ["teacher", "student distilled"]),
    ],
)
def test_what_stands_beside_the_student(families: Families, family: str, rows: list[str]) -> None:
    _, run, ended = families[family]
    result = json.loads(ended.out)
    assert [row["name"] for row in result["models"]] == rows
    assert "Traceback" not in ended.err
    report = (run / "report.html").read_text()
    assert all(f"<td>{name}</td>" in report for name in rows)
    assert "http" not in report.replace("http://www.w3.org", "")


@pytest.mark.parametrize("family", ["online", "multi_teacher", "data_free"])
def test_the_student_loads_as_the_network_it_is(families: Families, family: str) -> None:
    _, run, ended = families[family]
    _, card = load_model(run)
    assert card.architecture == "resnet8"
    accuracy = json.loads(ended.out)["models"][-1]["accuracy"]
    assert card.extra["test_accuracy"] == pytest.approx(100 * accuracy)


@pytest.mark.parametrize("family", ["online", "multi_teacher", "data_free"])
def test_a_run_of_the_family_repeats_from_its_configuration(
    commands: Commands, families: Families, tmp_path: Path, family: str
) -> None:
    _, run, _ = families[family]
    again = commands.run("distill", "--config", run / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert measured(tmp_path / "again") == measured(run)
    assert weights(tmp_path / "again") == weights(run)


@pytest.mark.parametrize("family", ["online", "multi_teacher", "data_free"])
def test_a_killed_run_of_the_family_resumes_to_the_same_result(
    commands: Commands, families: Families, tmp_path: Path, family: str
) -> None:
    options, run, _ = families[family]
    step = random.SystemRandom().randint(2, 8)
    print(f"killed after step {step}")
    out = tmp_path / "killed"
    assert commands.run("distill", *options, "--out", out, "--quiet", step=step).code == -signal.SIGKILL
    resumed = commands.run("distill", *options, "--out", out, "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert measured(out) == measured(run)
    assert weights(out) == weights(run)
    assert history(out) == history(run)


def test_the_peers_share_what_is_counted_once(families: Families) -> None:
    rows = {row["name"]: row for row in json.loads(families["online"][2].out)["models"]}
    one, group = rows["student distilled"], rows["ensemble of 2 peers"]
    assert one["parameters"] < group["parameters"] < 2 * one["parameters"]
    assert one["flops"] < group["flops"] < 2 * one["flops"]


def test_a_bench_compares_methods_of_all_families(commands: Commands, teacher: Path, tmp_path: Path) -> None:
    methods = "alone,kd,okddip,aver,camkd,csd"
    csd = {"kd_steps": 2, "g_steps": 2, "initial_rounds": 1, "initial_g_steps": 2, "synthesis_batch": 20}
    options = (*DATA, "--recipe.epochs", "1", "--seeds", "0,1", "--peers", "3", "--methods", methods)
    options = (*options, "--method_options", json.dumps({"csd": csd, "okddip": {"rampup": 1}}))
    teachers = ("--teacher", teacher, "--teacher", "resnet8")
    ended = commands.run("bench", *options, *teachers, "--out", tmp_path / "bench", "--json", "--quiet")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert list(result["cells"]) == methods.split(",")
    assert len(result["teachers"]) == 2
    table = (tmp_path / "bench" / "table.md").read_text()
    assert "ensemble accuracy" in table


def test_a_bench_of_peers_trains_no_teacher(commands: Commands, tmp_path: Path) -> None:
    options = (*DATA, "--recipe.epochs", "1", "--seeds", "0", "--peers", "2", "--methods", "alone,dml,independent")
    ended = commands.run("bench", *options, "--out", tmp_path / "bench", "--json", "--quiet")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["teachers"] == {}
    assert not (tmp_path / "bench" / "teacher").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--method okddip --peers 1", "peers"),
        ("--method dml --peers 0", "peers"),
        ("--method okddip --branch layer9", "no module 'layer9' to be cut at; did you mean 'layer"),
        ("--method one --branch none", "one"),
        ("--method okddip --teacher resnet8", "unknown option '--teacher'"),
        ("--method kd --teacher resnet8 --teacher resnet14", "kd learns from one teacher, not 2"),
        ("--method kd --peers 4", "unknown option '--peers'"),
        ("--method camkd --teacher resnet8 --teacher resnte8", "unknown model 'resnte8'"),
        ("--method csd --teacher resnet8 --teacher resnet14", "csd learns from one teacher, not 2"),
        ("--method csd --teacher resnet8 --method.synthesis_batch 0", "synthesis_batch"),
        ("--method aekd --teacher resnet8 --teacher resnet14 --teacher_cache c", "fresh augmentations"),
    ],
)
def test_what_a_family_cannot_do_is_refused_before_anything_is_written(
    here: Here, tmp_path: Path, options: str, said: str
) -> None:
    ended = here("distill", *BRIEF, "--quiet", "--out", tmp_path / "run", *options.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert not (tmp_path / "run").exists()


def store(folder: Path, spec: str, classes: int) -> Path:
    network = create_model(spec, num_classes=classes, in_channels=1, image_size=8)
    names = tuple(map(str, range(classes)))
    card = ModelCard(
        architecture=spec, num_classes=classes, classes=names, mean=(0.3,), std=(0.3,), input_shape=(1, 8, 8)
    )
    save_model(folder, network, card)
    return folder


def test_teachers_of_other_classes_are_refused(here: Here, tmp_path: Path, teacher: Path) -> None:
    few = store(tmp_path / "few", "resnet8", 7)
    options = ("--method", "camkd", "--teacher", teacher, "--teacher", few)
    ended = here("distill", *BRIEF, "--quiet", "--out", tmp_path / "run", *options)
    assert ended.code == 2
    assert "class 7 of the student, '7', is not among the teacher's 7 classes" in ended.complaint


def test_a_teacher_without_batch_norm_cannot_do_without_data(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "import torch.nn as nn\n\n\ndef plain(num_classes, in_channels):\n"
    plain += (
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    (tmp_path / "without_norm.py").write_text(plain)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--method", "csd", "--teacher", "without_norm:plain")
    ended = here("distill", *BRIEF, "--quiet", "--out", tmp_path / "run", *options)
    assert ended.code == 2
    assert "batch norm" in ended.complaint.lower().replace("batchnorm", "batch norm")
