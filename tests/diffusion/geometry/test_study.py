"""A whole study: measurements, claims, the run directory and the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stillroom.cli.main import main
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser
from stillroom.diffusion.geometry.calibration import shape_spread
from stillroom.diffusion.geometry.claims import check_claims
from stillroom.diffusion.geometry.metrics import falling, single_peak
from stillroom.diffusion.geometry.report import numbers, study_trajectories, training_samples
from stillroom.diffusion.geometry.study import Study, measure_trajectories
from stillroom.errors import InputError

SHAPE = (1, 4, 4)


def data(count: int = 40) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def model(**options: object) -> DenoisingModel:
    return DenoisingModel(denoiser=OptimalDenoiser(data()), shape=SHAPE, name="points", **options)  # type: ignore[arg-type]


def smooth() -> DenoisingModel:
    """A model that is not quite the closed form: every data point smeared."""
    points = data()
    denoiser = GaussianMixture(torch.ones(len(points)), points, torch.full_like(points, 0.1))
    return DenoisingModel(denoiser=denoiser, shape=SHAPE, name="smeared points")


@pytest.fixture(scope="module")
def learned() -> Study:
    return measure_trajectories(smooth(), samples=6, steps=40, data=data())


def held(study: Study) -> dict[str, bool]:
    return {claim.name: claim.holds for claim in check_claims(study)}


def test_the_theorems_hold_for_the_closed_form() -> None:
    found = held(measure_trajectories(model(), samples=6, steps=40))
    assert found["convex combination"]
    assert found["density ascent"]
    assert found["distance falls"]
    assert found["jumps arrive first"]


def test_a_learned_model_is_compared_with_the_closed_form_and_the_gaussian(learned: Study) -> None:
    found = held(learned)
    assert found["Gaussian start"]
    assert found["learned near optimal"]
    assert learned.deviation is not None
    assert learned.gaussian is not None
    torch.testing.assert_close(learned.deviation.learned.states, learned.path.states)
    assert learned.gaussian.ends.shape[1:] == learned.path.states.shape[1:]


def test_a_model_that_is_no_denoiser_breaks_the_claims() -> None:
    wrong = DenoisingModel(denoiser=lambda x, sigma, _: 1.02 * x, shape=SHAPE, name="wrong")
    found = held(measure_trajectories(wrong, samples=4, steps=20, data=data()))
    assert not found["norm law"]
    assert not found["density ascent"]
    assert not found["learned near optimal"]
    assert found["convex combination"]  # true of Euler's method whatever the model


def test_interpolation_ends_where_the_two_trajectories_end(learned: Study) -> None:
    for kind in learned.interpolated:
        torch.testing.assert_close(kind[0], learned.path.states[-1, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kind[-1], learned.path.states[-1, 1], rtol=1e-4, atol=1e-4)


def test_the_same_seed_measures_the_same_and_another_one_something_else(learned: Study) -> None:
    again, other = (measure_trajectories(smooth(), samples=6, steps=40, seed=seed) for seed in (0, 3))
    assert torch.equal(again.path.states, learned.path.states)
    assert torch.equal(other.path.states[:, 0], learned.path.states[:, 3])  # seeds count on, sample by sample


def test_a_label_restricts_sampling_to_its_class() -> None:
    labels = torch.arange(40) % 2
    closed = OptimalDenoiser(data(), labels=labels)
    study = measure_trajectories(
        DenoisingModel(denoiser=closed, shape=SHAPE, classes=2, name="labelled"), samples=4, steps=20, label=1
    )
    nearest = torch.cdist(study.path.states[-1].flatten(1), data().flatten(1)).argmin(1)
    assert labels[nearest].eq(1).all()
    assert held(study)["density ascent"]


def test_numbers_are_what_json_knows(learned: Study) -> None:
    found = json.loads(json.dumps(numbers(learned)))
    assert len(found["sigmas"]) == 41
    assert found["curves"]["norm"]["mean"][0] == pytest.approx(float(learned.metrics.norm[0].mean()))
    assert len(found["gaussian_starts"]) == len(learned.gaussian.switches)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "at least 2 samples"),
        ({"steps": 4}, "8 steps"),
        ({"label": 3}, "label is 3"),
        ({"data": torch.zeros(5, 1, 8, 8)}, "must agree"),
    ],
)
def test_impossible_studies_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_trajectories(model(), **options)  # type: ignore[arg-type]


def test_single_peaks_are_told_from_wiggles() -> None:
    rises_twice = torch.tensor([0.0, 1.0, 0.2, 1.0, 0.0])
    wiggles = torch.tensor([0.0, 0.5, 0.499, 1.0, 0.0])
    rises_after = torch.tensor([0.0, 1.0, 0.5, 0.1, 0.3])
    only_falls = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    found = single_peak(torch.stack([rises_twice, wiggles, rises_after, only_falls], 1))
    assert found.tolist() == [False, True, False, True]


def test_falling_forgives_rounding_only() -> None:
    curve = torch.tensor([[2.0, 2.0], [1.0, 1.0], [1.0 + 1e-7, 1.1], [0.0, 0.0]])
    torch.testing.assert_close(falling(curve), torch.tensor([1.0, 2 / 3], dtype=torch.float64))


def test_spread_compares_with_the_size_of_the_mean() -> None:
    curve = torch.rand(10, 1, 3, generator=torch.Generator().manual_seed(1))
    both = torch.cat([0.5 * curve, 1.5 * curve], 1)
    assert shape_spread(both) == pytest.approx(0.5)


def test_the_run_holds_configuration_numbers_and_a_page(tmp_path: Path) -> None:
    done = study_trajectories(smooth(), samples=3, steps=12, out=tmp_path / "run", show_progress=False)
    assert sorted(path.name for path in done.out.iterdir()) == ["config.yaml", "report.html", "result.json"]
    stored = json.loads((done.out / "result.json").read_text())
    assert [claim["name"] for claim in stored["claims"]] == [claim.name for claim in done.claims]
    page = (done.out / "report.html").read_text()
    assert page.count("<svg") == 6
    assert page.count("<img") == 2
    assert "mathdefault" not in page


def test_samples_that_are_no_images_give_a_page_without_pictures(tmp_path: Path) -> None:
    points = data().flatten(1)
    flat = DenoisingModel(denoiser=OptimalDenoiser(points), shape=(16,), name="flat")
    done = study_trajectories(flat, samples=3, steps=12, out=tmp_path / "run", show_progress=False)
    assert "<img" not in (done.out / "report.html").read_text()


def test_latents_are_decoded_for_pictures_and_compared_with_nothing(tmp_path: Path) -> None:
    latent = model(decode=lambda x: x.repeat(1, 3, 2, 2), extra={"data": "digits"})
    assert training_samples(latent, None) is None
    with pytest.raises(InputError, match="latents"):
        training_samples(latent, "digits")
    done = study_trajectories(latent, samples=3, steps=12, out=tmp_path / "run", show_progress=False)
    assert (done.out / "report.html").read_text().count("<img") == 2


def test_training_samples_are_the_ones_the_model_names() -> None:
    named = DenoisingModel(denoiser=lambda x, s, _: x, shape=(1, 8, 8), extra={"data": "digits"})
    found = training_samples(named, None)
    assert found is not None
    assert found.shape[1:] == (1, 8, 8)
    assert found.min() == -1
    assert found.max() == 1
    assert len(training_samples(named, "digits", images=50)) == 50  # type: ignore[arg-type]
    assert len(training_samples(named, None, label=3)) < len(found) / 5  # type: ignore[arg-type]
    assert training_samples(named, "none") is None
    with pytest.raises(InputError, match="its own data"):
        training_samples(DenoisingModel(denoiser=lambda x, s, _: x, shape=(3, 8, 8)), "digits")


def test_the_verb_writes_a_run_and_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    argv = ["diffusion", "trajectory", "--model", "optimal:digits", "--images", "60", "--samples", "3", "--steps", "10"]
    assert main([*argv, "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result == json.loads((out / "result.json").read_text())
    assert result["training_samples"] == 60
    assert "density ascent" in said.err
    assert main([*argv, "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["diffusion", "trajectory", "--config", str(out / "config.yaml"), "--overwrite", "--quiet"]) == 0
    assert "holds  convex combination" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--model", "nothing"], "nothing"),
        (["--samples", "1"], "2 samples"),
        (["--data", "flowers"], "flowers"),
        (["--label", "17"], "label is 17"),
        (["--stepz", "3"], "stepz"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    start = ["diffusion", "trajectory", "--model", "optimal:digits", "--images", "60", "--quiet", "--out", str(out)]
    assert main([*start, *argv] if argv[0] != "--model" else [*start[:2], *argv, *start[6:]]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert named in err[0]
    assert not out.exists()
