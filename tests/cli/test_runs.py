"""What a run leaves behind, and that the options of one run make the next."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cli.commands import DATA, Commands, Ended, measured, weights
from stillroom import bench as bench_function
from stillroom import distill as distill_function
from stillroom import load_model
from stillroom.training.recipe import PRESETS

Here = Callable[..., Ended]


def printed(here: Here, *argv: object) -> dict[str, object]:
    ended = here(*argv, "--print_config")
    assert (ended.code, ended.err) == (0, "")
    config = yaml.safe_load(ended.out)
    assert isinstance(config, dict)
    return config


def test_standard_output_is_one_json_object_and_all_else_goes_to_standard_error(finished: tuple[Path, Ended]) -> None:
    run, ended = finished
    assert len(ended.out.splitlines()) == 1
    assert json.loads(ended.out) == json.loads((run / "result.json").read_text())
    for text in ("teacher  epoch 2/2", "student, kd  epoch 2/2", "student distilled", "report.html"):
        assert text in ended.err


def test_without_json_the_table_is_on_standard_output_and_fits_80_columns(here: Here, tmp_path: Path) -> None:
    ended = here("distill", *DATA, "--recipe.epochs", "1", "--teacher", "resnet8", "--quiet", "--out", tmp_path / "run")
    assert (ended.code, ended.err) == (0, "")
    table, rest = ended.out.split("\n\n")
    assert [line.split("  ")[0] for line in table.splitlines()[3:]] == ["teacher", "student alone", "student distilled"]
    assert max(map(len, table.splitlines())) <= 80
    assert str(tmp_path / "run" / "report.html") in rest


def test_a_run_directory_holds_what_its_contract_says(finished: tuple[Path, Ended]) -> None:
    names = {path.name for path in finished[0].iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "model.json", "report.html"),
        *("result.json", "teacher", "alone"),
    }
    assert "http" not in (finished[0] / "report.html").read_text().replace("http://www.w3.org", "")


def test_a_run_repeats_from_its_configuration(commands: Commands, finished: tuple[Path, Ended], tmp_path: Path) -> None:
    config = finished[0] / "config.yaml"
    again = commands.run("distill", "--config", config, "--out", tmp_path / "again", "--quiet", "--json")
    assert (again.code, json.loads(again.out)["out"]) == (0, str(tmp_path / "again"))
    assert measured(tmp_path / "again") == measured(finished[0])
    assert weights(tmp_path / "again") == weights(finished[0])


def test_a_bench_goes_on_from_its_configuration_with_more_seeds(
    commands: Commands, bench: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    options = ("--config", bench / "config.yaml", "--out", out, "--seeds", "0")
    assert commands.run("bench", *options, "--quiet").code == 0
    more = commands.run("bench", *options[:-1], "0,1", "--resume", "--json")
    assert more.code == 0
    assert more.err.startswith("4 cells, of which 2 are done already\n[1/2] alone seed 1")
    assert json.loads(more.out) == json.loads((out / "result.json").read_text())
    assert measured(out) == measured(bench)


@pytest.mark.parametrize("verb", ["distill", "bench"])
def test_printed_options_are_a_configuration_that_prints_the_same(here: Here, tmp_path: Path, verb: str) -> None:
    options = ("--recipe", "cifar", "--recipe.epochs", "7", "--student", "shufflenet_v2", "--data.per_class", "3")
    first = printed(here, verb, *options)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    assert printed(here, verb, "--config", tmp_path / "config.yaml") == first


def test_every_argument_of_the_library_is_an_option(here: Here) -> None:
    for verb, function in (("distill", distill_function), ("bench", bench_function)):
        options = printed(here, verb).keys()
        if verb == "distill":
            options |= printed(here, verb, "--method", "okddip").keys()
        assert inspect.signature(function).parameters.keys() - {"show_progress"} <= options


def test_a_preset_overrides_the_configuration_before_it_and_is_refined_by_other_options(
    here: Here, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("recipe: {epochs: 3, lr: 0.7, batch_size: 9}\nseed: 4\n")
    config = printed(here, "distill", "--recipe.epochs", "11", "--config", file)
    assert (config["recipe"]["epochs"], config["recipe"]["lr"], config["seed"]) == (3, 0.7, 4)
    config = printed(here, "distill", "--config", file, "--seed", "5", "--recipe.epochs", "11", "--recipe", "cifar")
    assert (config["recipe"]["epochs"], config["seed"]) == (11, 5)
    assert (config["recipe"]["lr"], config["recipe"]["batch_size"]) == (PRESETS["cifar"].lr, 64)


def test_a_configuration_may_use_the_short_forms(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("method: simkd\ndata: mnist\nrecipe: {preset: cifar, epochs: 3}\n")
    config = printed(here, "distill", "--config", file)
    assert config["method"] == {"name": "simkd", "factor": 2}
    assert (config["data"]["name"], config["recipe"]["epochs"], config["recipe"]["milestones"][0]) == (
        "mnist",
        3,
        0.625,
    )


def test_an_export_is_checked_and_loads_alone(here: Here, finished: tuple[Path, Ended], tmp_path: Path) -> None:
    ended = here("export", finished[0], "--formats", "safetensors,torch", "--out", tmp_path, "--json")
    assert ended.code == 0
    files = json.loads(ended.out)["files"]
    assert [(file["format"], Path(file["path"]).name) for file in files] == [
        ("safetensors", "model.safetensors"),
        ("torch", "model.pt2"),
    ]
    assert all(file["max_difference"] <= 1e-4 and file["size_mb"] > 0.1 for file in files)
    assert "max difference" in ended.err
    original, exported = load_model(finished[0]), load_model(tmp_path)
    images = torch.rand(3, *original.card.input_shape, generator=torch.Generator().manual_seed(0))
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert torch.equal(original.model(images), exported.model(images))
        torch.testing.assert_close(program(images), original.model(images), rtol=1e-4, atol=1e-6)
    assert exported.card.classes == tuple("0123456789")


def test_two_processes_under_torchrun_make_one_run_and_print_once(torchrun: Ended, runs: Path) -> None:
    assert torchrun.code == 0, torchrun.err
    assert len(torchrun.out.splitlines()) == 1
    result = json.loads(torchrun.out)
    assert result == json.loads((runs / "torchrun" / "result.json").read_text())
    assert torchrun.err.count("report: ") == 1
    assert torchrun.err.count("student, kd  epoch 1/1") == 1
    assert load_model(runs / "torchrun").card.extra["method"] == "kd"
    assert (runs / "torchrun" / "metrics.jsonl").read_text().count("\n") == 1
