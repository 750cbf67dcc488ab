"""``stillroom diffusion schedule`` on a small real model: searched, measured, stored, used again; bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import Ended
from stillroom.diffusion.amed import AMEDSampler
from stillroom.diffusion.gits import CostMatrix
from stillroom.diffusion.sampler import Sampler

MODEL = ("--model", "optimal:digits@0.2", "--images", "200")
SMALL = (*MODEL, "--count", "24", "--quiet")
Here = Callable[..., Ended]


def test_gits_is_stored_and_its_costs_serve_every_budget(here: Here, tmp_path: Path) -> None:
    cost, first, second = tmp_path / "cost.json", tmp_path / "five.json", tmp_path / "eight.json"
    search = ("diffusion", "schedule", *SMALL, "--method", "gits", "--solver", "euler", "--cost", cost, "--json")
    ended = here(*search, "--nfe", "5", "--out", first)
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["evaluations"] == 24 * 60
    assert next(iter(result["rmse"])) == "gits, found"
    assert min(result["rmse"].values()) > 0
    sampler = Sampler.load(first)
    assert sampler.nfe == result["nfe"] == 5
    assert list(sampler.sigmas) == result["sigmas"]
    costs = CostMatrix.load(cost)
    assert sampler.sigmas == costs.sigmas(5)
    before = cost.read_bytes()
    assert here(*search, "--nfe", "8", "--out", second).code == 0
    assert cost.read_bytes() == before
    assert Sampler.load(second).sigmas == costs.sigmas(8)


def test_the_same_seed_writes_the_same_file(here: Here, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        assert here("diffusion", "schedule", *SMALL, "--seed", seed, "--out", file).code == 0
    same, again, other = (file.read_bytes() for file in files)
    assert same == again
    assert same != other


def test_auto_is_stored_for_sample_and_is_measured_beside_the_usual(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "auto.json"
    ended = here("diffusion", "schedule", *SMALL, "--method", "auto", "--nfe", "4", "--out", out)
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if " · " in line or "found" in line]
    assert "auto, found" in rows[0]
    assert len(rows) == 5
    assert f"sample --schedule {out}" in ended.out
    assert Sampler.load(out).nfe == 4
    drawn = here(
        *("diffusion", "sample", *MODEL, "--schedule", out, "--count", "2", "--out", tmp_path / "drawn", "--quiet")
    )
    assert drawn.code == 0, drawn.err
    assert len(list((tmp_path / "drawn").glob("seed-*.png"))) == 2


def test_amed_is_trained_and_stored(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "amed.safetensors"
    few = ("--method", "amed", "--trajectories", "128", "--nfe", "3")
    ended = here("diffusion", "schedule", *SMALL, *few, "--out", out, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["nfe"] == AMEDSampler.load(out).nfe == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "gitz"), "gitz"),
        (("--nfe", "0"), "nfe"),
        (("--nfe", "61"), "61"),
        (("--solver", "heun", "--nfe", "5"), "cannot spend 5 evaluations"),
        (("--solver", "hein"), "did you mean 'heun'?"),
        (("--count", "0"), "count is 0"),
        (("--coefficient", "0"), "coefficient of GITS is 0"),
        (("--method", "auto", "--cost", "cost.json"), "cost is a file of gits"),
        (("--out", "schedule.txt"), "writes a .json file"),
        (("--model", "optimal:nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_line_and_code_2(here: Here, options: tuple[str, ...], said: str) -> None:
    ended = here("diffusion", "schedule", *MODEL, "--count", "4", "--quiet", *options)
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_what_is_there_is_kept_unless_told_otherwise(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "gits.json"
    out.write_text("mine")
    ended = here("diffusion", "schedule", *SMALL, "--out", out)
    assert (ended.code, out.read_text()) == (2, "mine")
    assert "is there already" in ended.err
    assert here("diffusion", "schedule", *SMALL, "--out", out, "--overwrite").code == 0
    assert Sampler.load(out).nfe == 5


def test_a_damaged_cost_file_is_named(here: Here, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text("{}")
    ended = here("diffusion", "schedule", *SMALL, "--cost", tmp_path / "cost.json", "--out", tmp_path / "gits.json")
    assert ended.code == 2
    assert "holds no cost matrix" in ended.err
    assert not (tmp_path / "gits.json").exists()
