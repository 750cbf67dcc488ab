"""The run directory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stillroom.errors import InputError
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

CONFIG: dict[str, Any] = {"method": "kd", "recipe": Recipe(epochs=3), "out": Path("run"), "seed": 0}


def test_the_configuration_is_written_whole_and_loads_as_plain_yaml(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "run", CONFIG)
    loaded = yaml.safe_load(run.config.read_text())
    assert loaded["recipe"]["epochs"] == 3
    assert loaded["recipe"]["milestones"] == [0.625, 0.75, 0.875]
    assert loaded["out"] == "run"


def test_a_folder_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite, message in ((False, "is not empty"), (True, "it is no run and is not overwritten")):
        with pytest.raises(InputError, match=message):
            RunDirectory.create(tmp_path, CONFIG, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_empties_a_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG)
    run.part("student").write_history([{"epoch": 1}])
    RunDirectory.create(tmp_path, CONFIG | {"seed": 1}, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]
    assert yaml.safe_load(run.config.read_text())["seed"] == 1


def test_the_folder_of_another_tool_with_a_config_yaml_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(InputError, match=r"holds no config\.yaml of stillroom"):
        RunDirectory.create(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "theme: dark\n"


def test_a_run_that_holds_what_the_new_one_reads_is_not_emptied(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", CONFIG)
    for needed in (tmp_path / "run" / "teacher", tmp_path / "run"):
        with pytest.raises(InputError, match=r"lies in .*, which would be emptied"):
            RunDirectory.create(tmp_path / "run", CONFIG, overwrite=True, keep=[needed])
    RunDirectory.create(tmp_path / "run", CONFIG, overwrite=True, keep=[tmp_path / "runner" / "teacher"])


def test_an_option_that_an_older_run_did_not_know_may_be_left_out(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG)
    RunDirectory.create(tmp_path, CONFIG | {"label_map": None}, resume=True)
    with pytest.raises(InputError, match=r'label_map was null, is now \{"one": "1"\}'):
        RunDirectory.create(tmp_path, CONFIG | {"label_map": {"one": "1"}}, resume=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunDirectory.create(tmp_path / "run", CONFIG)


def test_resuming_names_the_first_difference_and_keeps_the_old_configuration(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"recipe\.epochs was 3, is now 5"):
        RunDirectory.create(tmp_path, CONFIG | {"recipe": Recipe(epochs=5), "seed": 9}, resume=True)
    assert yaml.safe_load(run.config.read_text())["recipe"]["epochs"] == 3


def test_resuming_takes_the_same_configuration_and_what_may_change(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG)
    RunDirectory.create(tmp_path, CONFIG, resume=True)
    RunDirectory.create(tmp_path, CONFIG | {"out": "elsewhere"}, resume=True, may_change={"out"})
    with pytest.raises(InputError, match="out was elsewhere, is now third"):
        RunDirectory.create(tmp_path, CONFIG | {"out": "third"}, resume=True)


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        RunDirectory.create(tmp_path / "absent", CONFIG, resume=True)


def test_a_run_killed_before_its_first_file_starts_over(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, CONFIG, resume=True).config.is_file()


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    second: Any = SimpleNamespace(is_global_zero=False, barrier=lambda: None)
    run = RunDirectory.create(tmp_path / "run", CONFIG, fabric=second).part("student")
    run.write_history([{"epoch": 1}])
    run.append_metrics({"epoch": 2})
    run.write_result({})
    run.write_report("")
    assert not (tmp_path / "run").exists()


def test_metrics_are_one_json_object_a_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_history([{"epoch": 1, "train_loss": 0.5}])
    run.append_metrics({"epoch": 2, "train_loss": float("nan")})
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"epoch": 1, "train_loss": 0.5},
        {"epoch": 2, "train_loss": None},
    ]
