"""The batch job behind ``stillroom diffusion sample``, on models made for the purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.diffusion.amed.predictor import Predictor
from stillroom.diffusion.amed.sampler import AMEDSampler
from stillroom.diffusion.amed.steps import Student
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser
from stillroom.diffusion.draw import Drawn, draw
from stillroom.diffusion.images import as_pixels, draw_noise, read_png
from stillroom.diffusion.load import load_denoiser
from stillroom.diffusion.named_sampler import named_sampler
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.solvers import Euler
from stillroom.errors import InputError

POINTS = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model(**changes: Any) -> DenoisingModel:
    return DenoisingModel(**({"denoiser": OptimalDenoiser(POINTS), "shape": (1, 2, 2)} | changes))


def quietly(drawn_from: DenoisingModel, out: Path, **options: Any) -> Drawn:
    return draw(drawn_from, out=out, show_progress=False, **({"count": 3} | options))


def pictures(drawn: Drawn) -> Tensor:
    return torch.stack([read_png(file) for file in drawn.files])


def test_the_automatic_choice_is_kept_for_the_rest_of_the_job(tmp_path: Path) -> None:
    done = quietly(model(), tmp_path / "run", solver="auto", nfe=4)
    assert done.result["nfe"] == 4
    noise = draw_noise(range(3), (1, 2, 2))
    stored = Sampler.load(tmp_path / "run" / "schedule.json")
    assert torch.equal(pictures(done), as_pixels(stored(model().denoiser, noise)))
    # Whatever another machine would choose, the job goes on with what its folder holds.
    other = Sampler(Euler(), (80.0, 30.0, 9.0, 2.0, 0.5))
    other.save(tmp_path / "run" / "schedule.json")
    done.files[1].unlink()
    again = quietly(model(), tmp_path / "run", solver="auto", nfe=4, resume=True)
    assert torch.equal(pictures(again)[1], as_pixels(other(model().denoiser, noise))[1])
    assert torch.equal(pictures(again)[[0, 2]], as_pixels(stored(model().denoiser, noise))[[0, 2]])


@pytest.mark.parametrize("uses", ["nothing", "bottleneck"])
def test_a_learned_sampler_is_read_from_its_file_and_resumed(tmp_path: Path, uses: Any) -> None:
    digits = load_denoiser("digits")
    learned = AMEDSampler(Predictor(), Student(), (80.0, 3.0, 0.002), uses=uses)
    learned.save(tmp_path / "amed.safetensors")
    options = {"schedule": str(tmp_path / "amed.safetensors"), "class_name": "none"}
    done = quietly(digits, tmp_path / "run", **options)
    assert (done.result["sampler"], done.result["nfe"]) == ("amed", 3)
    expected = as_pixels(learned.bind(digits)(digits.denoiser, draw_noise(range(3), (1, 8, 8))))
    assert torch.equal(pictures(done), expected)
    done.files[2].unlink()
    (tmp_path / "amed.safetensors").unlink()
    assert torch.equal(pictures(quietly(digits, tmp_path / "run", resume=True, **options)), expected)
    learned.save(tmp_path / "amed.safetensors")
    with pytest.raises(InputError, match="which is its own solver; leave out --solver and --order"):
        quietly(digits, tmp_path / "other", solver="heun", **options)


def test_latents_become_pictures(tmp_path: Path) -> None:
    def decode(latents: Tensor) -> Tensor:
        return latents.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)

    done = quietly(model(decode=decode), tmp_path / "run")
    plain = quietly(model(), tmp_path / "plain")
    assert torch.equal(pictures(done)[:, 2, ::4, ::4], pictures(plain)[:, 0])
    assert pictures(done).shape == (3, 3, 8, 8)


def test_a_discrete_model_is_sampled_at_its_own_levels(tmp_path: Path) -> None:
    levels = tuple(torch.logspace(-2, 1.5, 51, dtype=torch.float64).tolist())
    own = model(sigmas=levels, sigma_min=levels[0], sigma_max=levels[-1])
    done = quietly(own, tmp_path / "run", schedule="discrete", nfe=5)
    assert done.result["sigmas"] == pytest.approx(levels[::-10])


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {"class_name": "3"}, "model knows no classes; leave out --class"),
        ({"classes": 3}, {"class_name": "4"}, "unknown class '4'"),
        ({"shape": (1, 2, 3)}, {}, "shape"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        quietly(model(**changes), tmp_path / "run", **options)


def test_samples_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    five = model(denoiser=OptimalDenoiser(torch.rand(4, 5, 2, 2)), shape=(5, 2, 2))
    with pytest.raises(InputError, match=r"samples have shape \(5, 2, 2\); pictures have 1 or 3 channels"):
        quietly(five, tmp_path / "run")


def test_a_model_that_breaks_down_leaves_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite at evaluation 1 of 8"):
        quietly(model(denoiser=lambda x, sigma, condition: x / 0), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.png"))


def test_a_sampler_without_words_is_the_documented_default() -> None:
    sampler = named_sampler(model())
    assert isinstance(sampler, Sampler)
    assert (sampler.solver.name, sampler.nfe, sampler.sigmas[0], sampler.sigmas[-1]) == ("ipndm-3", 8, 80.0, 0.002)
