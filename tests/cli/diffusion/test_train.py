"""``stillroom diffusion train``: what it leaves behind, kills, configurations, bad input."""

from __future__ import annotations

import inspect
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from cli.commands import Commands, Ended, contents, history, measured, weights
from stillroom.diffusion.load import load_denoiser
from stillroom.diffusion.training import train

Here = Callable[..., Ended]

ROOT = Path(__file__).resolve().parents[3]
# Three epochs of two steps.
TINY = (
    *("--data.per_class", "4", "--recipe.batch_size", "20", "--recipe.epochs", "3", "--network.width", "8"),
    *("--conditional", "--network.dropout", "0.1", "--checkpoint_every", "1"),
)


@pytest.fixture(scope="session")
def trained(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A training that nothing happened to: its directory, and how it ended."""
    ended = commands.run("diffusion", "train", *TINY, "--out", runs / "denoiser", "--json")
    assert ended.code == 0, ended.err
    return runs / "denoiser", ended


def test_a_run_directory_holds_what_its_contract_says(trained: tuple[Path, Ended]) -> None:
    run, ended = trained
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "model.json", "report.html"),
        "result.json",
    }
    result = json.loads((run / "result.json").read_text())
    assert json.loads(ended.out) == result
    assert (result["epochs"], result["steps"]) == (3, 6)
    assert "digits, denoiser  epoch 3/3" in ended.err
    assert "report.html" in ended.err
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_stored_model_is_the_average_that_was_trained(trained: tuple[Path, Ended]) -> None:
    newest = sorted((trained[0] / "checkpoints").glob("*.pt"))[-1]
    task = torch.load(newest, weights_only=True)["task"]
    model = load_denoiser(trained[0])
    assert isinstance(model.denoiser, torch.nn.Module)
    for name, value in model.denoiser.state_dict().items():
        assert torch.equal(value, task[f"ema.module.{name}"])
        assert not value.is_floating_point() or not torch.equal(value, task[f"denoiser.{name}"]) or not value.any()
    assert (model.shape, model.classes, model.extra["data"]) == ((1, 8, 8), 10, "digits")


@pytest.mark.parametrize("draw", range(2))
def test_a_killed_training_resumes_to_the_same_result(
    commands: Commands, trained: tuple[Path, Ended], tmp_path: Path, draw: int
) -> None:
    step = random.SystemRandom().randint(1 + 3 * draw, 3 + 3 * draw)
    print(f"killed after step {step}")
    out = tmp_path / "killed"
    assert commands.run("diffusion", "train", *TINY, "--out", out, step=step).code == -signal.SIGKILL
    assert not (out / "result.json").exists()
    resumed = commands.run("diffusion", "train", *TINY, "--out", out, "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert measured(out) == measured(trained[0])
    assert history(out) == history(trained[0])
    assert weights(out) == weights(trained[0])


def test_a_run_repeats_from_its_configuration(commands: Commands, trained: tuple[Path, Ended], tmp_path: Path) -> None:
    config = trained[0] / "config.yaml"
    again = commands.run("diffusion", "train", "--config", config, "--out", tmp_path / "again", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert measured(tmp_path / "again") == measured(trained[0])
    assert weights(tmp_path / "again") == weights(trained[0])


def test_a_finished_run_is_only_replaced_when_asked(here: Here, trained: tuple[Path, Ended], tmp_path: Path) -> None:
    before = contents(trained[0])
    refused = here("diffusion", "train", *TINY, "--out", trained[0], "--quiet")
    assert refused.code == 2
    assert "is not empty; choose another folder, resume the run there or overwrite it" in refused.complaint
    changed = here("diffusion", "train", *TINY, "--out", trained[0], "--quiet", "--resume", "--noise.ema", "0.5")
    assert changed.code == 2
    assert "noise.ema was 0.999, is now 0.5" in changed.complaint
    assert contents(trained[0]) == before


def printed(here: Here, *argv: object) -> dict[str, object]:
    ended = here("diffusion", "train", *argv, "--print_config")
    assert (ended.code, ended.err) == (0, "")
    config = yaml.safe_load(ended.out)
    assert isinstance(config, dict)
    return config


def test_printed_options_are_a_configuration_that_prints_the_same(here: Here, tmp_path: Path) -> None:
    first = printed(here, "--data", "mnist", "--network.multipliers", "1,2,2", "--recipe.lr", "0.01", "--half")
    assert first["network"]["multipliers"] == [1, 2, 2]  # type: ignore[index]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    assert printed(here, "--config", tmp_path / "config.yaml") == first


def test_every_argument_of_the_library_is_an_option(here: Here) -> None:
    assert inspect.signature(train).parameters.keys() - {"show_progress"} <= printed(here).keys()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*diffusion*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_configurations(here: Here, file: Path) -> None:
    config = printed(here, "--config", file)
    for name, value in yaml.safe_load(file.read_text()).items():
        assert config[name] == (config[name] | value if isinstance(value, dict) else value)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network.width 12", "network.width is 12; it must be a positive multiple of 8"),
        ("--network.multipliers 1,x", "--network.multipliers"),
        ("--network.widht 16", "unknown option '--network.widht'; did you mean '--network.width'?"),
        ("--network.multipliers 1,2,2,2,2", "images of 8x8 do not fit the network, which needs sides divisible by 16"),
        ("--noise.ema 1", "noise.ema is 1.0; it must be at least 0 and below 1"),
        ("--noise.std 0", "noise.std is 0.0; it must be positive and finite"),
        ("--recipe.batch_size 5000", "1438 training images do not fill a batch of 5000; lower --recipe.batch_size"),
        ("--recipe.epochs 0", "recipe.epochs is 0; it must be at least 1"),
        ("--data digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("--seed -1", "seed is -1; it must not be negative"),
        ("--eval_every 0", "eval_every is 0; it must be at least 1"),
        ("--device cudo", "--device cudo: expected one of auto, cpu, cuda, mps; did you mean 'cuda'?"),
        ("--resume", "there is no run to resume"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(here: Here, tmp_path: Path, options: str, said: str) -> None:
    ended = here("diffusion", "train", "--quiet", "--out", tmp_path / "run", *options.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_ends_in_one_line(here: Here, tmp_path: Path) -> None:
    ended = here(
        *("diffusion", "train", *TINY, "--recipe.lr", "1e30", "--recipe.optimizer", "sgd", "--quiet"),
        *("--out", tmp_path / "run"),
    )
    assert ended.code == 1
    assert "lower --recipe.lr" in ended.complaint
