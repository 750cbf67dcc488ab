"""What a user reads before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from cli.commands import ONE_THREAD, Ended
from stillroom import __version__
from stillroom.defense import methods as guarding
from stillroom.distillation.methods import METHODS
from stillroom.graphs import methods as graphs
from stillroom.screening import methods as screening

Here = Callable[..., Ended]

VERBS = ("distill", "bench", "methods", "export", "doctor")
GROUPS = {
    "diffusion": ("train", "sample", "schedule", "trajectory", "bench"),
    "graphs": ("distill", "bench"),
    "screening": ("evaluate", "predict", "tune"),
    "defense": ("fit", "serve", "attack", "bench"),
}
ALL = (*VERBS, *(f"{group} {verb}" for group, verbs in GROUPS.items() for verb in verbs))
HEAVY = {"torch", "numpy", "jsonargparse", "rich", "lightning_fabric", "torchvision", "timm", "sklearn", "matplotlib"}


def loaded_after(code: str) -> set[str]:
    """Return the packages a new interpreter has loaded after running some code."""
    command = f"{code}\nimport json, sys\nprint(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, env=ONE_THREAD)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import stillroom") & HEAVY


@pytest.mark.parametrize("argv", [["--help"], ["--version"], [], ["distil"], ["diffusion"], ["diffusion", "trian"]])
def test_the_command_answers_without_loading_anything_heavy(argv: list[str]) -> None:
    assert not loaded_after(f"from stillroom.cli.main import main\nmain({argv})") & HEAVY


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "stillroom", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"stillroom {__version__}\n", "")


def test_the_help_lists_every_verb(here: Here) -> None:
    ended = here("--help")
    assert ended.code == 0
    assert all(f"\n  {verb} " in ended.out for verb in VERBS)
    assert all(f"\n  {group:<10} {' | '.join(verbs)}\n" in ended.out for group, verbs in GROUPS.items())


def test_no_verb_is_a_usage_error_that_shows_the_help(here: Here) -> None:
    assert here() == Ended(2, here("--help").out, "")


@pytest.mark.parametrize("group", GROUPS)
def test_the_help_of_a_group_lists_its_verbs(here: Here, group: str) -> None:
    ended = here(group, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: stillroom {group} VERB ")
    assert all(f"\n  {verb} " in ended.out for verb in GROUPS[group])
    assert here(group) == Ended(2, ended.out, "")


@pytest.mark.parametrize("verb", ALL)
def test_the_help_of_a_verb_is_for_people(here: Here, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = here(*verb.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    for jargon in ("CONFIG", "type:", "Literal", "Union", "null", "``", "SUPPRESS", "[=flags]"):
        assert jargon not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert ended.out.startswith(f"usage: stillroom {verb} ")


@pytest.mark.parametrize(
    ("verb", "shown"),
    [
        ("distill", ["--student MODEL", "[resnet8]", "--recipe.epochs N", "[25]", "--method.temperature X", "[4.0]"]),
        ("distill --method simkd --recipe cifar", ["--method.factor N", "[2]", "[240]", "[multistep]"]),
        ("bench", ["--methods A,B,...", "[alone,kd,simkd,rld]", "--seeds A,B,...", "[0,1,2]", "--jobs N"]),
        ("diffusion train", ["--network.multipliers A,B,...", "[1,2]", "[adamw]", "--noise.ema X", "[0.999]"]),
        ("diffusion sample", ["--model MODEL", "[digits]", "--class NAME", "--nfe N", "--guidance X", "[16]"]),
        (
            "graphs distill",
            ["--students N", "[4]", "--network.conv CONV", "[gcn]", "--sampling.fanout A,B,...", "[adam]"],
        ),
        ("graphs bench", ["--methods A,B,...", "[independent,dml,alignahead,oad]", "--redraw", "[no]", "--jobs N"]),
        ("screening evaluate", ["--methods A,B,...", "--settings A,B,...", "[S1,S2,S3]", "--data.threshold X"]),
        ("screening predict", ["--method.alpha X", "[0.5]", "--top N", "[10]", "--no_check", "[generated]"]),
        ("screening tune", ["--grid '{NAME: [VALUE, ...]}'", "--setting {S1,S2,S3,S4}", "--inner_folds N"]),
        ("export", ["RUN_DIR", "--formats A,B,...", "[safetensors,onnx,torch]"]),
    ],
)
def test_the_help_shows_values_and_defaults(here: Here, verb: str, shown: list[str]) -> None:
    out = here(*verb.split(), "--help").out
    assert [text for text in shown if text not in out] == []


@pytest.mark.parametrize("name", METHODS)
def test_the_help_shows_the_options_of_the_chosen_method(here: Here, name: str) -> None:
    method = json.loads(here("methods", name, "--json").out)["methods"][0]
    shown = here("distill", "--method", name, "--help").out
    assert all(f"--method.{option} " in shown for option in method["defaults"])


@pytest.mark.parametrize(
    ("group", "verb", "name"),
    [
        *(("graphs", "distill", name) for name in graphs.METHODS),
        *(("screening", "predict", name) for name in screening.METHODS),
    ],
)
def test_the_help_shows_the_options_of_the_chosen_method_of_a_group(
    here: Here, monkeypatch: pytest.MonkeyPatch, group: str, verb: str, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    method = json.loads(here("methods", f"{group}:{name}", "--json").out)["methods"][0]
    assert method["name"] == f"{group}:{name}"
    ended = here(group, verb, "--method", name, "--help")
    assert (ended.code, ended.err) == (0, "")
    options = [option for option in method["defaults"] if option != "random_state"]  # a run's seed is its
    assert all(f"--method.{option} " in ended.out for option in options)
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_methods_are_listed_with_their_standing(here: Here) -> None:
    ended = here("methods")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    names = [*METHODS, *guarding.METHODS, *(f"graphs:{name}" for name in graphs.METHODS)]
    names += [f"screening:{name}" for name in screening.METHODS]
    assert all(any(line.split()[:1] == [name] for line in lines) for name in names)
    described = json.loads(here("methods", "--json").out)["methods"]
    assert [method["name"] for method in described] == names
    assert {method["standing"] for method in described} <= {"verified", "derived", "reconstructed"}


def test_a_method_is_shown_with_papers_weights_and_ledger(here: Here) -> None:
    out = here("methods", "simkd").out
    for text in ("Knowledge Distillation", "arXiv:2203.14001", "--method.factor 2", "--weights crd", "ledger"):
        assert text in out


def test_the_doctor_reports_versions_devices_and_extras(here: Here) -> None:
    found = json.loads(here("doctor", "--json").out)
    assert found["stillroom"] == __version__
    assert {"core", "vision"} <= found["extras"].keys()
    assert found["devices"][0].startswith("cpu")
    shown = here("doctor")
    assert shown.code == 0
    assert f"stillroom  {__version__}" in shown.out
