"""``stillroom screening``, its three verbs: what they leave behind, kills, configurations, bad input."""

from __future__ import annotations

import csv
import inspect
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli.commands import Commands, Ended, contents, measured
from stillroom.screening.data.generated import draw_interactions
from stillroom.screening.evaluate import evaluate
from stillroom.screening.predict import predict
from stillroom.screening.tune import tune

Here = Callable[..., Ended]

SMALL = ("--data.drugs", "14", "--data.targets", "8", "--data.target_kernel", "spectrum")
# Eight cells.
EVALUATED = (*SMALL, "--methods", "rls_avg,knn", "--settings", "S1,S2", "--seeds", "7771,22", "--num_folds", "3")
# Three folds, and the choice on all pairs.
SEARCHED = (*SMALL, "--method", "rls_avg", "--setting", "S2", "--num_folds", "3", "--inner_folds", "2", "--by", "auc")
RANKED = (*SMALL, "--method", "blm_nii", "--method.alpha", "0.3", "--top", "3", "--no_check")


@pytest.fixture(scope="session")
def evaluated(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """An evaluation that nothing happened to: its directory, and how it ended."""
    ended = commands.run("screening", "evaluate", *EVALUATED, "--out", runs / "evaluated", "--json")
    assert ended.code == 0, ended.err
    return runs / "evaluated", ended


@pytest.fixture(scope="session")
def searched(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A search that nothing happened to."""
    ended = commands.run("screening", "tune", *SEARCHED, "--out", runs / "searched", "--json")
    assert ended.code == 0, ended.err
    return runs / "searched", ended


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_an_evaluation_leaves_what_its_contract_says(evaluated: tuple[Path, Ended]) -> None:
    run, ended = evaluated
    assert names(run) == {"config.yaml", "data.json", "cells", "result.json", "tables.md", "report.html"}
    found = result(run)
    assert json.loads(ended.out) == found
    cells = {
        f"{method}-{setting}-seed{seed}.json": cell
        for setting, each in found["settings"].items()
        for method, seeds in each["methods"].items()
        for seed, cell in seeds.items()
    }
    assert len(cells) == 8
    assert {path.name: json.loads(path.read_text()) for path in (run / "cells").iterdir()} == cells
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["methods"], config["settings"], config["seeds"]) == (["rls_avg", "knn"], ["S1", "S2"], [7771, 22])
    page = (run / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "stillroom screening evaluate --config" in page


def test_an_evaluation_tells_people_on_standard_error_where_the_result_is_json(evaluated: tuple[Path, Ended]) -> None:
    run, ended = evaluated
    for said in (
        "generated: 14 drugs, 8 targets, ",
        "8 cells, of which 0 are done already",
        "[8/8] knn S2 seed 22: ",
        "S1: new pairs of known drugs and targets, 3 folds a seed",
        "S2: new drugs, 3 folds a seed",
        "Every test pair that is not known to interact counts as negative",
        f"report: {run / 'report.html'}",
    ):
        assert said in ended.err


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_evaluation_keeps_its_cells_and_resumes_to_the_same_result(
    commands: Commands, evaluated: tuple[Path, Ended], tmp_path: Path, jobs: int
) -> None:
    out = tmp_path / "killed"
    done = random.SystemRandom().randint(1, 7)
    print(f"killed before cell {done + 1} was written")  # data.json comes first
    killed = commands.run("screening", "evaluate", *EVALUATED, "--out", out, "--quiet", files=1 + done, suffix=".json")
    assert (killed.code, killed.out) == (-signal.SIGKILL, "")
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert len(before) == done
    assert not (out / "result.json").exists()
    again = (*EVALUATED, "--out", out, "--resume", "--quiet", "--jobs", jobs)
    resumed = commands.run("screening", "evaluate", *again)
    assert (resumed.code, resumed.err) == (0, "")
    assert measured(out) == measured(evaluated[0])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "tables.md").read_text() == (evaluated[0] / "tables.md").read_text()


def test_a_run_whose_data_have_changed_is_not_resumed(
    here: Here, evaluated: tuple[Path, Ended], tmp_path: Path
) -> None:
    table, out = tmp_path / "pairs.csv", tmp_path / "run"
    rows = [
        f"{drug},{sequence},{int((place + other) % 3 == 0)}"
        for place, drug in enumerate(("CCO", "CCN", "CCC", "CCCl", "CCBr", "CCF"))
        for other, sequence in enumerate(("MKVLA", "MKVLW", "GGHHC", "GGHHW"))
    ]
    table.write_text("\n".join(["smiles,sequence,label", *rows]))
    asked = ("--data", table, "--num_folds", "2", "--settings", "S1", "--out", out, "--quiet")
    assert here("screening", "evaluate", *asked, "--methods", "rls_avg").code == 0
    table.write_text("\n".join(["smiles,sequence,label", *rows[:-1], rows[-1][:-1] + "1"]))
    ended = here("screening", "evaluate", *asked, "--methods", "rls_avg,rls_kron", "--resume")
    assert ended.code == 2
    assert "pairs.csv is not what it was when" in ended.complaint


def test_methods_settings_and_seeds_may_be_added(here: Here, evaluated: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "grown"
    first = (*SMALL, "--methods", "knn", "--settings", "S2", "--seeds", "22", "--num_folds", "3", "--out", out)
    assert here("screening", "evaluate", *first, "--quiet").code == 0
    (cell,) = (out / "cells").iterdir()
    written = cell.stat().st_mtime_ns
    grown = here("screening", "evaluate", *EVALUATED, "--out", out, "--resume")
    assert grown.code == 0, grown.err
    assert "8 cells, of which 1 " in grown.err
    assert cell.stat().st_mtime_ns == written
    assert measured(out) == measured(evaluated[0])


def test_a_damaged_cell_is_one_line(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (*SMALL, "--methods", "rls_avg", "--settings", "S1", "--num_folds", "2", "--out", out, "--quiet")
    assert here("screening", "evaluate", *options).code == 0
    (cell,) = (out / "cells").iterdir()
    cell.write_text('{"folds": [')
    ended = here("screening", "evaluate", *options, "--resume")
    assert (ended.code, ended.out) == (2, "")
    assert ended.complaint.endswith(f"{cell} is damaged; remove it and resume")


def test_a_search_leaves_what_its_contract_says(searched: tuple[Path, Ended]) -> None:
    run, ended = searched
    assert names(run) == {"config.yaml", "data.json", "cells", "result.json", "report.html"}
    found = result(run)
    assert json.loads(ended.out) == found
    cells = {path.stem: json.loads(path.read_text()) for path in (run / "cells").iterdir()}
    assert cells == {
        "whole": {"options": found["chosen"], "scores": found["scores"]},
        **{f"fold{number}": fold for number, fold in enumerate(found["folds"])},
    }
    assert len(found["folds"]) == 3
    assert "best on the test folds (not to be reported)" in ended.err
    page = (run / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "stillroom screening tune --config" in page


def test_the_options_a_search_chose_are_those_of_a_ranking(
    here: Here, searched: tuple[Path, Ended], tmp_path: Path
) -> None:
    (line,) = [line for line in searched[1].err.splitlines() if "--method rls_avg --method." in line]
    words = line[line.index("--method ") :].split()
    ended = here("screening", "predict", *words, *SMALL, "--no_check", "--out", tmp_path / "run", "--quiet", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["method"].items() >= result(searched[0])["chosen"].items()


def test_a_killed_search_resumes_to_the_same_result(
    commands: Commands, searched: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    done = random.SystemRandom().randint(1, 3)
    print(f"killed before part {done + 1} was written")  # data.json comes first
    killed = commands.run("screening", "tune", *SEARCHED, "--out", out, "--quiet", files=1 + done, suffix=".json")
    assert killed.code == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert len(before) == done
    resumed = commands.run("screening", "tune", "--config", out / "config.yaml", "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert measured(out) == measured(searched[0])


def test_a_ranking_leaves_what_its_contract_says(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = here("screening", "predict", *RANKED, "--out", out, "--json")
    assert ended.code == 0, ended.err
    assert names(out) == {"config.yaml", "result.json", "predictions.csv", "report.html"}
    found = result(out)
    assert json.loads(ended.out) == found
    assert found["method"]["name"] == "blm_nii"
    assert found["method"]["alpha"] == 0.3
    assert found["check"] == {}
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["drug"], row["target"]) for row in rows] == [
        (each["drug"], each["target"]) for each in found["predictions"]
    ]
    assert f"ranking: {out / 'predictions.csv'}   report: {out / 'report.html'}" in ended.err
    assert found["predictions"][0]["drug"] in ended.err
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    again = here("screening", "predict", "--config", out / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert measured(tmp_path / "again") == measured(out)
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (out / "predictions.csv").read_bytes()


def test_the_seed_of_a_ranking_is_that_of_the_draws(here: Here, tmp_path: Path) -> None:
    drawn = (*SMALL, "--method", "knn", "--method.repeats", "1", "--no_check", "--quiet", "--json")
    found = []
    for run, seed in (("first", 5), ("again", 5), ("other", 6)):
        ended = here("screening", "predict", *drawn, "--seed", seed, "--out", tmp_path / run)
        assert ended.code == 0, ended.err
        found.append(json.loads(ended.out)["predictions"])
    assert found[0] == found[1]
    assert found[0] != found[2]
    repeated = here(
        "screening", "predict", "--config", tmp_path / "other" / "config.yaml", "--out", tmp_path / "repeated"
    )
    assert repeated.code == 0, repeated.err
    assert measured(tmp_path / "repeated") == measured(tmp_path / "other")


def test_a_ranking_is_held_against_what_became_known_since(here: Here, tmp_path: Path) -> None:
    asked = (*SMALL, "--method", "rls_kron", "--top", "3", "--no_check", "--quiet", "--json")
    ended = here("screening", "predict", *asked, "--out", tmp_path / "before")
    before = json.loads(ended.out)
    first, second, third = (each for each in before["predictions"] if each["setting"] == "S1")
    assert {each["confirmed"] for each in before["predictions"]} == {None}
    file = tmp_path / "since.txt"
    file.write_text(f"drug\ttarget\n{second['drug']} elsewhere {second['target']}\nnobody, {third['target']}\nalone\n")
    ended = here("screening", "predict", *asked, "--confirmed", file, "--out", tmp_path / "after")
    after = json.loads(ended.out)
    confirmed = {(each["drug"], each["target"]) for each in after["predictions"] if each["confirmed"]}
    assert confirmed == {(second["drug"], second["target"])}
    assert f"S1: 1 of the first 3 pairs stand in {file}, of all " in after["notes"][0]
    assert "known" in ended.err
    assert first["drug"] in (tmp_path / "after" / "predictions.csv").read_text()
    file.write_text("nobody nothing\n")
    refused = here("screening", "predict", *asked, "--confirmed", file, "--out", tmp_path / "refused")
    assert (refused.code, (tmp_path / "refused").exists()) == (2, False)
    assert "holds no pair of generated; use the names of its drugs and targets" in refused.complaint


def test_a_ranking_stands_where_its_check_cannot_be_made(here: Here, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    drugs, targets = ("CCO", "CCN", "CCC", "CCCl", "CCBr", "CCF"), ("MKVLA", "MKVLW", "GGHHC", "GGHHW")
    pairs = {(drug, target): "" for drug in drugs for target in targets}
    pairs |= dict.fromkeys(zip(drugs[:4], targets, strict=True), "1")
    pairs[drugs[0], targets[1]] = pairs[drugs[1], targets[0]] = "0"  # two folds test both, and train on none
    rows = [f"{drug},{target},{label}" for (drug, target), label in pairs.items()]
    table.write_text("\n".join(["smiles,sequence,label", *rows]))
    ended = here("screening", "predict", "--data", table, "--method", "svm", "--out", tmp_path / "run", "--quiet")
    assert ended.code == 0, ended.err
    assert "is not checked: " in ended.out
    assert (tmp_path / "run" / "predictions.csv").is_file()


def test_names_with_commas_can_be_asked_for(here: Here, tmp_path: Path) -> None:
    file = own_table(tmp_path, name="1,2-thing")
    options = ("--data", file, "--data.target_kernel", "spectrum", "--no_check", "--quiet", "--json")
    ended = here("screening", "predict", *options, "--drug", '["1,2-thing"]', "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert {each["drug"] for each in json.loads(ended.out)["predictions"]} == {"1,2-thing"}


@pytest.mark.parametrize("which", ["evaluated", "searched"])
def test_a_run_repeats_from_its_configuration(
    here: Here, request: pytest.FixtureRequest, tmp_path: Path, which: str
) -> None:
    run = request.getfixturevalue(which)[0]
    verb = "evaluate" if which == "evaluated" else "tune"
    again = here("screening", verb, "--config", run / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert measured(tmp_path / "again") == measured(run)


def test_a_finished_run_is_only_replaced_when_asked(here: Here, evaluated: tuple[Path, Ended]) -> None:
    run = evaluated[0]
    before = contents(run)
    refused = here("screening", "evaluate", *EVALUATED, "--out", run, "--quiet")
    assert refused.code == 2
    assert "is not empty; choose another folder, resume the run there or overwrite it" in refused.complaint
    for option, value, said in (
        ("--num_folds", "4", "num_folds was 3, is now 4"),
        ("--decoys", "sampled", "decoys was unknown, is now sampled"),
        ("--data.seed", "1", "data.seed was 0, is now 1"),
        ("--method_options", "{rls_avg: {alpha: 0.1}}", "method_options.rls_avg was null, is now"),
    ):
        changed = here("screening", "evaluate", *EVALUATED, option, value, "--out", run, "--quiet", "--resume")
        assert changed.code == 2
        assert said in changed.complaint
    assert contents(run) == before


@pytest.mark.parametrize(("verb", "function"), [("evaluate", evaluate), ("predict", predict), ("tune", tune)])
def test_every_argument_of_the_library_is_an_option(here: Here, verb: str, function: Callable[..., Any]) -> None:
    ended = here("screening", verb, "--print_config")
    assert (ended.code, ended.err) == (0, "")
    wanted = inspect.signature(function).parameters.keys() - {"show_progress", "method_options"}
    assert wanted <= yaml.safe_load(ended.out).keys()


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("evaluate", (*EVALUATED, "--tuned", "--group_twins", "--method_options", "{knn: {repeats: 2}}")),
        ("predict", (*RANKED, "--drug", "steroid-1,steroid-2", "--data.threshold", "30")),
        ("tune", (*SEARCHED, "--grid", "{alpha: [0.1, 0.9]}", "--method_options", "{gamma: 2.0}")),
    ],
)
def test_printed_options_are_a_configuration_that_prints_the_same(
    here: Here, tmp_path: Path, verb: str, options: tuple[str, ...]
) -> None:
    first = here("screening", verb, *options, "--print_config")
    assert (first.code, first.err) == (0, "")
    (tmp_path / "config.yaml").write_text(first.out)
    second = here("screening", verb, "--config", tmp_path / "config.yaml", "--print_config")
    assert (second.code, second.out) == (0, first.out)


def test_every_option_of_an_evaluation_reaches_its_configuration(here: Here, tmp_path: Path) -> None:
    options = {"num_folds": 2, "inner_folds": 3, "by": "auc", "decoys": "sampled", "ratio": 3}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    more = ("--methods", "rls_avg", "--settings", "S1", "--seeds", "5", "--tuned", "--group_twins", "--quiet")
    given = ("--method_options", "{rls_avg: {psd: flip}}", "--out", tmp_path / "run")
    ended = here("screening", "evaluate", *SMALL, *words, *more, *given)
    assert (ended.code, ended.err) == (0, "")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    wanted = {**options, "methods": ["rls_avg"], "settings": ["S1"], "seeds": [5], "tuned": True, "group_twins": True}
    assert config.items() >= wanted.items()
    assert config["method_options"] == {"rls_avg": {"psd": "flip"}}
    assert (config["data"]["drugs"], config["data"]["targets"]) == (14, 8)


def own_table(folder: Path, *, name: str = "first", label: str = "") -> Path:
    """Write a table of 12 drugs and 6 targets; pairs that are not known have ``label``."""
    data = draw_interactions(drugs=12, targets=6, generator=np.random.default_rng(0))
    assert data.smiles is not None
    assert data.sequences is not None
    with (folder / "own.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["drug", "target", "smiles", "sequence", "label"])
        for d, t in np.argwhere(np.ones(data.shape, dtype=bool)):
            drug = name if d == 0 else data.drugs[d]
            known = "1" if data.labels[d, t] else label
            rows.writerow([drug, data.targets[t], data.smiles[d], data.sequences[t], known])
    return folder / "own.csv"


BAD = [
    ("evaluate --methods blmnii", "unknown method for screening 'blmnii'; did you mean 'blm_nii'?"),
    ("evaluate --methods knn,knn", "a method is named twice: knn, knn"),
    ("evaluate --methods []", "at least one method and one seed"),
    ('evaluate --method_options {"blm_nii":{"alpa":1}}', "unknown option of blm_nii 'alpa'; did you mean 'alpha'?"),
    ('evaluate --method_options {"blm_nii":{"alpha":2}}', "alpha is 2; it must be a number at least 0 and at most 1"),
    ('evaluate --method_options {"blm_nii":{"alpha":"x"}}', "alpha is 'x'; it must be a number"),
    ('evaluate --methods knn --method_options {"svm":{}}', "unknown method in method_options 'svm'"),
    ("evaluate --settings S5", "unknown setting 'S5'; did you mean 'S4'?"),
    ("evaluate --settings S1,S1", "settings are S1, S1; name each wanted one of S1, S2, S3, S4 once"),
    ("evaluate --settings []", "settings are none"),
    ("evaluate --num_folds 2 --by roc", "unknown measure 'roc'"),
    ("evaluate --seeds=-1", "seed -1 is negative; seeds must be at least 0"),
    ("evaluate --seeds 1,1", "a seed is named twice: 1, 1"),
    ("evaluate --seeds 4294967296", "seed is 4294967296; it must be a whole number at least 0"),
    ("evaluate --seeds x", "--seeds x: expected a list like A,B"),
    ("evaluate --settings S2 --num_folds 99", "14 drugs that differ cannot be split into 99 parts; use fewer folds"),
    ("evaluate --settings S3 --num_folds 9", "8 targets that differ cannot be split into 9 parts; use fewer folds"),
    ("evaluate --settings S4 --num_folds 100", "8 targets that differ cannot be split into 10 parts"),
    ("evaluate --num_folds 1", "num_folds is 1; it must be a whole number at least 2"),
    ("evaluate --num_folds 2 --tuned --inner_folds 1", "inner_folds is 1"),
    ("evaluate --jobs 0", "jobs is 0; it must be at least 1"),
    ("evaluate --num_folds 2 --ratio 0", "ratio is 0; it must be a whole number at least 1"),
    ("evaluate --num_folds 2 --decoys measured", "decoys=measured needs data that says which pairs were measured"),
    ("evaluate --decoys sampld", "--decoys sampld: expected one of unknown, measured, sampled; did you mean 'sampled'"),
    ("evaluate --data none.csv", "there is no file none.csv"),
    ("evaluate --data gpc", "unknown screening data set 'gpc'; did you mean 'gpcr'?"),
    ("evaluate --data.drugs 5", "data.drugs is 5; it must be a whole number at least 12"),
    ("evaluate --num_folds 2 --resume", "there is no run to resume"),
    ("tune --method blmnii", "unknown method for screening 'blmnii'; did you mean 'blm_nii'?"),
    ("tune --setting S9", "--setting S9: expected one of S1, S2, S3, S4"),
    ("tune --by roc", "unknown measure 'roc'"),
    ('tune --grid {"alpa":[1]}', "unknown option of blm_nii in the grid 'alpa'; did you mean 'alpha'?"),
    ('tune --grid {"alpha":"abc"}', "--grid {'alpha': 'abc'}: expected pairs like '{A: B, C: D}'"),
    ('tune --grid {"alpha":[]}', "grid of blm_nii: alpha needs a list of values to try, not []"),
    ('tune --grid {"alpha":[2]}', "alpha is 2"),
    (
        'tune --grid {"alpha":[0.1]} --method_options {"alpha":0.5}',
        "alpha is in the grid and in method_options; name it once",
    ),
    ("evaluate --data.interacts at-least", "data.interacts is for tables of your own"),
    ("evaluate --data.on_bad_rows skip", "data.on_bad_rows is for tables of your own"),
    ("tune --num_folds 1", "num_folds is 1"),
    ("tune --inner_folds 1", "inner_folds is 1"),
    ("tune --seed=-1", "seed is -1"),
    ("tune --jobs 0", "jobs is 0"),
    ("tune --decoys measured", "decoys=measured needs data that says which pairs were measured"),
    ("predict --method blmnii", "unknown method for screening 'blmnii'; did you mean 'blm_nii'?"),
    ("predict --method.alpha 2", "alpha is 2.0; it must be a number at least 0 and at most 1"),
    ("predict --method.alpa 1", "unknown option '--method.alpa'; did you mean '--method.alpha'?"),
    ("predict --method.drug_similarity x", "unknown option '--method.drug_similarity'"),
    ("predict --method.psd clop", "--method.psd clop: expected one of clip, shift, flip, none; did you mean 'clip'?"),
    ("predict --top 0", "top is 0; it must be a whole number at least 1"),
    ("predict --top x", "--top x: expected a whole number"),
    ("predict --seed=-1", "seed is -1"),
    ("predict --drug steroid-9", "unknown drug 'steroid-9'; did you mean 'steroid-"),
    ("predict --target family9-1", "unknown target 'family9-1'; did you mean 'family"),
    ("predcit", "unknown verb of screening 'predcit'; did you mean 'predict'?"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_input_is_one_line_and_nothing_is_written(here: Here, tmp_path: Path, options: str, said: str) -> None:
    verb, *rest = options.split()
    ended = here("screening", verb, *SMALL, *rest, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_table_in_which_all_pairs_have_a_label_leaves_nothing_to_rank(here: Here, tmp_path: Path) -> None:
    file = own_table(tmp_path, label="0")
    options = ("--data", file, "--data.target_kernel", "spectrum", "--out", tmp_path / "run", "--quiet")
    ended = here("screening", "predict", *options)
    assert (ended.code, ended.out) == (2, "")
    assert "there is no pair to rank: all of them have a label already" in ended.complaint
    assert not (tmp_path / "run").exists()


def test_a_label_that_is_none_is_one_line_with_its_row(here: Here, tmp_path: Path) -> None:
    file = own_table(tmp_path, label="maybe")
    ended = here("screening", "evaluate", "--data", file, "--out", tmp_path / "run", "--quiet")
    assert (ended.code, ended.out) == (2, "")
    assert "own.csv" in ended.complaint
    assert "maybe" in ended.complaint
    assert not (tmp_path / "run").exists()
