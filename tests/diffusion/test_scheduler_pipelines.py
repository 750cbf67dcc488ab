"""The schedulers inside unmodified pipelines of diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor

from diffusion.tiny_pipelines import autoencoder, encoder, stable_diffusion, tokenizer, transformer, unet
from stillroom.diffusion.amed import AMEDSampler, Predictor, Student
from stillroom.diffusion.denoisers.diffusers_models import diffusers_model
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.schedulers import SCHEDULERS, StillroomAMEDScheduler, scheduler_for
from stillroom.diffusion.solvers import IPNDM, DPMpp, Heun, UniPC
from stillroom.errors import InputError

KEYS = sorted(SCHEDULERS)
SOME_KEYS = pytest.mark.parametrize("key", KEYS)
SIGMAS = (60.0, 8.0, 1.5, 0.2, 0.0)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    level = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    yield
    diffusers.logging.enable_progress_bar()
    diffusers.logging.set_verbosity(level)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(kind: Any = diffusers.DDPMPipeline) -> Any:
    pipeline = kind(unet(), diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pictures(pipeline: Any, steps: int, batch: int = 2) -> Tensor:
    images = pipeline(batch, seeded(), num_inference_steps=steps, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def latents_of(call: Callable[..., Any], **options: Any) -> Tensor:
    """Return the latents a text pipeline ends with."""
    found: list[Tensor] = []

    def keep(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(given["latents"])
        return given

    call(output_type="latent", callback_on_step_end=keep, **options)
    assert bool(found[-1].isfinite().all())
    return found[-1]


@pytest.mark.parametrize("kind", [diffusers.DDPMPipeline, diffusers.DDIMPipeline])
@SOME_KEYS
def test_pixel_pipelines_sample_as_the_sampler_does(key: str, kind: Any, tmp_path: Path) -> None:
    pipeline = pixels(kind)
    pipeline.save_pretrained(tmp_path)
    model = diffusers_model(tmp_path)
    sampler = Sampler(SCHEDULERS[key]()._solver(), SIGMAS)
    pipeline.scheduler = scheduler_for(sampler, pipeline.scheduler.config)
    found = pictures(pipeline, 4)
    y = torch.randn(2, 3, 8, 8, generator=seeded())
    expected = sampler(model.denoiser, y * math.hypot(1, SIGMAS[0]) / SIGMAS[0])
    torch.testing.assert_close(found.float(), (expected / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


@SOME_KEYS
def test_stable_diffusion_takes_every_scheduler(key: str) -> None:
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[key].from_config(pipeline.scheduler.config)
    options = {"prompt": "a cat", "guidance_scale": 3.0, "height": 16, "width": 16}
    first = latents_of(pipeline, num_inference_steps=3, generator=seeded(), **options)
    again = latents_of(pipeline, num_inference_steps=3, generator=seeded(), **options)
    assert torch.equal(first, again)
    levels = [8.0, 2.0, 0.5, 0.0]
    latents_of(pipeline, sigmas=levels, generator=seeded(), **options)
    plan = pipeline.scheduler._plan
    assert plan is not None
    assert list(plan.sigmas) == levels


def test_a_converging_scheduler_agrees_with_diffusers_own() -> None:
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": "a cat", "guidance_scale": 2.0, "height": 16, "width": 16, "num_inference_steps": 10}
    config, ends = pipeline.scheduler.config, []
    for kind in (diffusers.DPMSolverMultistepScheduler, SCHEDULERS["dpmpp"]):
        pipeline.scheduler = kind.from_config(config)
        ends.append(latents_of(pipeline, generator=seeded(), **options))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)


@SOME_KEYS
def test_image_to_image_begins_on_the_way(key: str) -> None:
    parts = stable_diffusion().components
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[key].from_config(pipeline.scheduler.config)
    image = torch.rand(1, 3, 16, 16, generator=seeded(1)) * 2 - 1
    for strength in (0.3, 0.6, 1.0):
        latents_of(pipeline, prompt="a cat", image=image, strength=strength, num_inference_steps=6, generator=seeded())
        scheduler = pipeline.scheduler
        assert scheduler.step_index == len(scheduler.timesteps)
        assert scheduler.begin_index == (6 - int(6 * strength)) * scheduler.order


def test_a_low_strength_changes_little_and_a_stored_schedule_keeps_its_levels() -> None:
    parts = stable_diffusion().components
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=seeded(1)) * 2 - 1
    for sampler in (
        Sampler(IPNDM(3), (14.0, 9.0, 3.0, 0.02, 0.0), afs=True),
        Sampler(Heun(), (14.0, 3.0, 0.02, 0.01)),
    ):
        pipeline.scheduler = scheduler_for(sampler, parts["scheduler"].config)
        clean = pipeline.vae.encode(image).latent_dist.mode() * pipeline.vae.config.scaling_factor
        end = latents_of(pipeline, prompt="a cat", image=image, strength=0.4, num_inference_steps=3, generator=seeded())
        assert float((end - clean).abs().mean()) < 0.5


def test_a_pipeline_is_stored_and_loaded_with_its_scheduler(tmp_path: Path) -> None:
    pipeline = pixels()
    pipeline.scheduler = scheduler_for(Sampler(UniPC(2), SIGMAS), pipeline.scheduler.config)
    first = pictures(pipeline, 4)
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipeline.scheduler)
    assert torch.equal(pictures(loaded, 4), first)


@SOME_KEYS
def test_class_conditional_transformers_take_every_scheduler(key: str) -> None:
    pipeline = diffusers.DiTPipeline(
        transformer(num_embeds_ada_norm=1000, out_channels=8), autoencoder(), diffusers.DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[key].from_config(pipeline.scheduler.config)
    images = [
        pipeline([1, 2], guidance_scale=2.0, generator=seeded(), num_inference_steps=3, output_type="np").images
        for _ in range(2)
    ]
    assert images[0].shape == (2, 16, 16, 3)
    assert (images[0] == images[1]).all()


def stable_diffusion_3() -> Any:
    torch.manual_seed(5)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()
    projected = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=model,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=encoder(projected),
        tokenizer=tokenizer(),
        text_encoder_2=encoder(projected),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


@SOME_KEYS
def test_flow_pipelines_take_every_scheduler(key: str) -> None:
    pipeline = stable_diffusion_3()
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": "a cat", "guidance_scale": 2.0, "height": 16, "width": 16}
    levels = [1.0, 0.9, 0.7, 0.4]
    reference = diffusers.FlowMatchEulerDiscreteScheduler()  # without a shift, it takes the levels as they are
    config, ends = pipeline.scheduler.config, []
    for scheduler in (reference, SCHEDULERS[key].from_config(config)):
        pipeline.scheduler = scheduler
        ends.append(latents_of(pipeline, sigmas=levels, generator=seeded(), **options))
    assert [*pipeline.scheduler._plan.sigmas] == [*levels, 0.0]
    torch.testing.assert_close(*ends, rtol=0.2, atol=0.2)
    if key == "euler":
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)
    latents_of(pipeline, num_inference_steps=3, generator=seeded(), **options)
    assert float(pipeline.scheduler.sigmas[pipeline.scheduler.order]) == pytest.approx(3 * (2 / 3) / (1 + 2 * 2 / 3))


def amed(rule: str, uses: str, afs: bool) -> AMEDSampler:
    predictor = Predictor(scale_dir=0.1, scale_time=0.05, generator=seeded(4))
    predictor.fc_r.weight.data.mul_(0.1)  # an untrained one would place its points at the ends of the steps
    return AMEDSampler(predictor, Student(rule=rule), (40.0, 4.0, 0.6, 0.08), afs=afs, uses=uses)  # type: ignore[arg-type]


@pytest.mark.parametrize("afs", [True, False])
@pytest.mark.parametrize("uses", ["bottleneck", "denoised", "nothing"])
@pytest.mark.parametrize("rule", ["amed", "euler", "ipndm", "dpmpp"])
def test_amed_runs_inside_an_unmodified_pipeline(rule: str, uses: str, afs: bool, tmp_path: Path) -> None:
    pipeline = pixels()
    pipeline.save_pretrained(tmp_path)
    model = diffusers_model(tmp_path)
    sampler = amed(rule, uses, afs)
    scheduler = StillroomAMEDScheduler.from_config(pipeline.scheduler.config).use(sampler)
    pipeline.scheduler = scheduler if uses == "nothing" else scheduler.attach(pipeline.unet)
    found = pictures(pipeline, 3)
    assert len(scheduler.timesteps) == sampler.nfe
    y = torch.randn(2, 3, 8, 8, generator=seeded())
    # The pipeline begins with unit variance, whatever the scheduler would like.
    start = y * math.hypot(1, 40.0) / 40.0 / scheduler.init_noise_sigma
    bound = sampler.bind(model) if uses == "bottleneck" else sampler
    with torch.no_grad():
        expected = bound(model.denoiser, start) / math.hypot(1, 0.08)
    torch.testing.assert_close(found.float(), (expected / 2 + 0.5).clamp(0, 1), rtol=2e-3, atol=2e-3)
    scheduler.detach()
    assert not pipeline.unet._forward_pre_hooks
    assert not pipeline.unet.mid_block._forward_hooks


def test_amed_s_timesteps_differ_between_samples_and_reach_the_network() -> None:
    pipeline = pixels()
    scheduler = StillroomAMEDScheduler().use(amed("amed", "bottleneck", False)).attach(pipeline.unet)
    pipeline.scheduler = scheduler
    told: list[Any] = []
    pipeline.unet.time_proj.register_forward_pre_hook(lambda module, args: told.append(args[0].clone()))
    pictures(pipeline, 3)
    assert len(told) == 6
    for first, second in zip(told[::2], told[1::2], strict=True):
        assert bool((first == first[0]).all())
        assert float(second[0]) != float(second[1])
    assert float(scheduler.timesteps[1]) == pytest.approx(float(told[1].mean()), rel=1e-4)


def test_amed_runs_in_stable_diffusion_with_guidance_and_from_its_file(tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    pipeline.set_progress_bar_config(disable=True)
    sampler = replace(amed("dpmpp", "bottleneck", True), sigmas=(12.0, 2.0, 0.3))
    sampler.save(tmp_path / "amed.safetensors")
    options = {"prompt": ["a cat", "dogs"], "guidance_scale": 3.0, "height": 16, "width": 16, "num_inference_steps": 2}
    scheduler: Any = scheduler_for(tmp_path / "amed.safetensors", pipeline.scheduler.config)
    pipeline.scheduler = scheduler.attach(pipeline.unet)
    first = latents_of(pipeline, generator=seeded(), **options)
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "amed.safetensors").unlink()
    pipeline.scheduler = StillroomAMEDScheduler.from_pretrained(tmp_path / "scheduler").attach(pipeline.unet)
    scheduler.detach()
    assert torch.equal(latents_of(pipeline, generator=seeded(), **options), first)
    image = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    parts = {name: part for name, part in pipeline.components.items() if name != "requires_safety_checker"}
    other = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    del options["height"], options["width"]
    latents_of(other, image=image, strength=0.5, generator=seeded(), **options)


def amed_of(**given: Any) -> Callable[[], Any]:
    def call() -> None:
        scheduler = StillroomAMEDScheduler().use(amed("amed", "bottleneck", False))
        scheduler.set_timesteps(**given)

    return call


def unattached(uses: str) -> Callable[[], Any]:
    def call() -> None:
        pipeline = pixels()
        pipeline.scheduler = StillroomAMEDScheduler().use(amed("amed", uses, False))
        pictures(pipeline, 3)

    return call


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: StillroomAMEDScheduler().set_timesteps(3), "use(sampler)"),
        (amed_of(num_inference_steps=4), "num_inference_steps=3"),
        (amed_of(timesteps=[9, 8]), "by itself"),
        (amed_of(sigmas=[2.0, 1.0, 0.0]), "ends above 0"),
        (unattached("bottleneck"), "bottleneck"),
        (unattached("denoised"), "attach(pipe.unet)"),
        (lambda: StillroomAMEDScheduler().attach(unet(), "middle"), "'middle'"),
        (lambda: StillroomAMEDScheduler(amed_file="absent.safetensors"), "absent.safetensors"),
        (lambda: scheduler_for(Sampler(DPMpp(2), (2.0, 1.0)), {"beta_schedule": "cubic"}), "cubic"),
    ],
)
def test_mistakes_are_one_clear_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
