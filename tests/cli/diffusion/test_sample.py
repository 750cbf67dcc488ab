"""``stillroom diffusion sample``: one file a seed, the same pictures however the job is cut, nothing overwritten."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cli.commands import Commands, Ended, contents
from stillroom.diffusion.images import as_pixels, draw_noise, drawn_class
from stillroom.diffusion.load import load_denoiser
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import Euler, Heun

Here = Callable[..., Ended]

JOB = ("--count", "7", "--batch_size", "3", "--nfe", "4", "--seed", "5")


@pytest.fixture(scope="session")
def sampled(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A job that nothing happened to: its directory, and how it ended."""
    ended = commands.run("diffusion", "sample", *JOB, "--out", runs / "samples", "--json")
    assert ended.code == 0, ended.err
    return runs / "samples", ended


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.startswith("seed-")}


def pixels(file: Path) -> np.ndarray:
    return np.array(Image.open(file))


def test_a_job_leaves_one_picture_a_seed_and_says_how_they_came_about(sampled: tuple[Path, Ended]) -> None:
    out, ended = sampled
    names = [f"seed-{seed:06d}.png" for seed in range(5, 12)]
    assert {path.name for path in out.iterdir()} == {*names, "grid.png", "config.yaml", "result.json", "schedule.json"}
    result = json.loads((out / "result.json").read_text())
    assert json.loads(ended.out) == result
    assert (result["files"], result["nfe"], result["count"]) == (names, 4, 7)
    assert result["classes"] == [drawn_class(seed, 10) for seed in range(5, 12)]
    assert "samples  7/7  eta 0:00:00" in ended.err
    assert pixels(out / names[0]).shape == (8, 8)
    assert pixels(out / "grid.png").shape[1] >= 480


def test_a_picture_is_what_the_model_and_its_seed_say(sampled: tuple[Path, Ended]) -> None:
    model = load_denoiser("digits")
    sampler = Sampler.load(sampled[0] / "schedule.json")
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(9))
    image = sampler(model.denoiser, noise[None], torch.tensor([drawn_class(9, 10)]))[0, 0]
    expected = ((image + 1) / 2 * 255).round().clamp(0, 255).numpy()
    # The batch was another one, so that the last bits may differ.
    assert np.abs(pixels(sampled[0] / "seed-000009.png") - expected).max() <= 1


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(
    here: Here, sampled: tuple[Path, Ended], tmp_path: Path
) -> None:
    alone = ("--count", "1", "--nfe", "4", "--seed", "8", "--quiet")
    assert here("diffusion", "sample", *alone, "--out", tmp_path / "one").code == 0
    one, many = (pixels(folder / "seed-000008.png").astype(int) for folder in (tmp_path / "one", sampled[0]))
    assert np.abs(one - many).max() <= 1
    others = [pixels(file).astype(int) for file in sampled[0].glob("seed-*.png") if file.name != "seed-000008.png"]
    assert all(np.abs(other - one).max() > 30 for other in others)


def test_a_killed_job_resumes_to_the_same_files(
    commands: Commands, sampled: tuple[Path, Ended], tmp_path: Path
) -> None:
    out, count = tmp_path / "killed", random.SystemRandom().randint(1, 6)
    print(f"killed after {count} pictures")
    assert commands.run("diffusion", "sample", *JOB, "--out", out, files=count).code == -signal.SIGKILL
    assert len(pictures(out)) == count
    assert not (out / "result.json").exists()
    kept = {name: (out / name).stat().st_mtime_ns for name in pictures(out)}
    resumed = commands.run("diffusion", "sample", *JOB, "--out", out, "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    ours, whole = (
        {name: data for name, data in contents(folder).items() if name.endswith(".png")} for folder in (out, sampled[0])
    )
    assert ours == whole
    results = [json.loads((folder / "result.json").read_text()) | {"out": ""} for folder in (out, sampled[0])]
    assert results[0] == results[1]


def test_pictures_are_only_replaced_when_asked(here: Here, sampled: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "samples"
    shutil.copytree(sampled[0], out)
    (out / "seed-000006.png").write_bytes((out / "seed-000005.png").read_bytes())  # somebody's own work
    before = contents(out)
    refused = here("diffusion", "sample", *JOB, "--out", out, "--quiet")
    assert refused.code == 2
    assert "is not empty; choose another folder" in refused.complaint
    other = here("diffusion", "sample", *JOB, "--out", out, "--quiet", "--resume", "--nfe", "5")
    assert other.code == 2
    assert "nfe was 4, is now 5" in other.complaint
    assert contents(out) == before
    assert here("diffusion", "sample", *JOB, "--out", out, "--quiet", "--overwrite").code == 0
    assert pictures(out) == pictures(sampled[0])


def test_a_damaged_picture_is_named(here: Here, sampled: tuple[Path, Ended], tmp_path: Path) -> None:
    out = tmp_path / "samples"
    shutil.copytree(sampled[0], out)
    broken = out / "seed-000007.png"
    broken.write_bytes(broken.read_bytes()[:30])
    again = (*("diffusion", "sample", "--config", out / "config.yaml"), "--out", out, "--quiet", "--resume")
    ended = here(*again)
    assert ended.code == 2
    assert f"{broken} is damaged; remove it and resume" in ended.complaint
    broken.unlink()
    assert here(*again).code == 0
    assert pictures(out) == pictures(sampled[0])


def test_a_full_disk_stops_the_job_in_one_line(commands: Commands, tmp_path: Path) -> None:
    stopped = commands.run("diffusion", "sample", *JOB, "--out", tmp_path / "run", "--quiet", file_limit=60)
    assert stopped.code == 1
    assert "cannot write" in stopped.complaint
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_job_repeats_from_its_configuration(here: Here, sampled: tuple[Path, Ended], tmp_path: Path) -> None:
    ended = here("diffusion", "sample", "--config", sampled[0] / "config.yaml", "--out", tmp_path / "again", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert pictures(tmp_path / "again") == pictures(sampled[0])


def test_the_class_asked_for_is_drawn(here: Here, tmp_path: Path) -> None:
    """The optimum of a class is one of its images, so that the closed form shows which class was drawn."""
    model = (
        "--model",
        "optimal:digits",
        "--class",
        "7",
        "--nfe",
        "8",
        "--schedule",
        "karras_zero",
        "--solver",
        "euler",
    )
    assert here("diffusion", "sample", *model, "--count", "4", "--out", tmp_path / "run", "--quiet").code == 0
    from stillroom.data.options import DataOptions
    from stillroom.data.sources import load_data

    train = load_data(DataOptions(name="digits")).train
    sevens = train.pixels[train.target == 7].long()  # type: ignore[attr-defined]
    for file in (tmp_path / "run").glob("seed-*.png"):
        distance = (sevens - torch.from_numpy(pixels(file)).long()).abs().amax(dim=(1, 2, 3))
        assert distance.min() <= 1


def test_guidance_and_no_class_change_the_samples(here: Here, tmp_path: Path) -> None:
    made = []
    for number, extra in enumerate(("", "--class 3", "--class 3 --guidance 3", "--class none")):
        out = tmp_path / str(number)
        job = ("diffusion", "sample", "--count", "2", "--nfe", "5", *extra.split(), "--out", out, "--quiet")
        assert here(*job).code == 0
        made.append((out / "seed-000000.png").read_bytes())
    assert len(set(made)) == 4
    assert json.loads((tmp_path / "1" / "result.json").read_text())["classes"] == [3, 3]
    assert json.loads((tmp_path / "3" / "result.json").read_text())["classes"] is None


@pytest.mark.parametrize(
    ("options", "nfe", "steps"),
    [
        ("--solver heun --nfe 6", 6, 3),
        ("--solver heun --nfe 5 --afs", 5, 3),
        ("--solver heun --nfe 7 --denoise_to_zero", 7, 3),
        ("--solver heun --nfe 7 --schedule karras_zero", 7, 4),
        ("--solver dpmpp --order 2 --nfe 5 --schedule logsnr", 5, 5),
        ("--solver euler --nfe 5 --afs --rho 3", 5, 6),
    ],
)
def test_the_budget_is_spent_whatever_solver_and_schedule(
    here: Here, tmp_path: Path, options: str, nfe: int, steps: int
) -> None:
    out = tmp_path / "run"
    ended = here("diffusion", "sample", "--count", "1", *options.split(), "--out", out, "--quiet")
    assert (ended.code, ended.err) == (0, "")
    stored = Sampler.load(out / "schedule.json")
    assert (stored.nfe, len(stored.sigmas) - 1) == (nfe, steps)
    assert json.loads((out / "result.json").read_text())["nfe"] == nfe


def test_a_stored_sampler_is_used_as_it_is_or_with_another_solver(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    stored = Sampler(Euler(), tuple(schedule("polynomial", 5, 0.01, 60.0, rho=5.0).tolist()), afs=True)
    stored.save(file)
    job = ("diffusion", "sample", "--count", "2", "--schedule", file, "--quiet")
    assert here(*job, "--out", tmp_path / "same").code == 0
    assert Sampler.load(tmp_path / "same" / "schedule.json") == stored
    assert here(*job, "--solver", "heun", "--out", tmp_path / "heun").code == 0
    assert Sampler.load(tmp_path / "heun" / "schedule.json") == Sampler(Heun(), stored.sigmas, afs=True)
    refused = here(*job, "--nfe", "5", "--out", tmp_path / "nfe")
    assert refused.code == 2
    assert "says all but solver and order; leave out --nfe" in refused.complaint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--model digit", "there is no model 'digit'; name one as digits, RUN_DIR"),
        ("--solver hune", "unknown solver 'hune'; did you mean 'heun'?"),
        ("--solver heun --nfe 5", "cannot spend 5 evaluations; use 4 or 6"),
        ("--solver heun --nfe 1", "cannot spend 1 evaluations"),
        ("--nfe 0", "cannot spend 0 evaluations"),
        ("--solver heun --order 2", "solver heun has no option 'order'"),
        ("--solver unipc --order 9", "order is 9"),
        ("--schedule karas", "unknown schedule 'karas'"),
        ("--schedule logsnr --rho 7", "logsnr has no option 'rho'"),
        ("--schedule discrete", "takes a model's own noise levels, and digits has none"),
        ("--schedule karras_zero --denoise_to_zero", "denoise_to_zero needs a schedule that ends above 0"),
        ("--schedule none.json", "cannot read the schedule none.json"),
        ("--solver auto --afs", "--solver auto chooses everything but the budget; leave out --afs"),
        ("--solver auto --nfe 0", "nfe is 0; it must be at least 1"),
        ("--class eleven", "unknown class 'eleven'"),
        ("--class 10", "unknown class '10'"),
        ("--count 0", "count is 0; it must be at least 1"),
        ("--batch_size 0", "batch_size is 0; it must be at least 1"),
        ("--seed -1", "seed is -1; it must be at least 0"),
        ("--nfe five", "--nfe five: expected a whole number"),
        ("--guidance x", "--guidance x: expected a number"),
        ("--resume", "there is no run to resume"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(here: Here, tmp_path: Path, options: str, said: str) -> None:
    ended = here("diffusion", "sample", "--quiet", "--out", tmp_path / "run", *options.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.complaint
    assert list(tmp_path.iterdir()) == []


def test_noise_of_a_seed_is_that_of_torchs_generator() -> None:
    expected = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(17))
    assert torch.equal(draw_noise([16, 17], (3, 4, 4))[1], expected)


def test_pixels_are_rounded_and_clipped() -> None:
    levels = torch.arange(256)
    exact = (levels / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(as_pixels(exact).flatten().long(), levels)
    assert as_pixels(exact + 0.4 / 127.5).flatten().tolist()[:255] == levels.tolist()[:255]
    assert as_pixels(torch.tensor([[[[-7.0, 7.0]]]])).flatten().tolist() == [0, 255]


def test_the_configuration_names_every_option(sampled: tuple[Path, Ended]) -> None:
    config = yaml.safe_load((sampled[0] / "config.yaml").read_text())
    assert {"model", "device", "guidance", "class", "solver", "nfe", "schedule", "afs", "seed", "out"} <= config.keys()
