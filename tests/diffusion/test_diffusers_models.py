"""Tiny randomly initialised diffusers models, saved by diffusers itself and read back as denoisers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from diffusion.tiny_pipelines import (
    autoencoder,
    encoder,
    stable_diffusion,
    tokenizer,
    transformer,
    unet,
    unet_condition,
)
from stillroom.cli.main import main
from stillroom.diffusion.denoisers.diffusers_models import diffusers_model
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.solvers.euler import Euler
from stillroom.errors import InputError


@pytest.fixture(scope="module")
def pixel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixel") / "tiny"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent") / "tiny"
    stable_diffusion().save_pretrained(folder)
    return folder


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to / "copy")
    return to / "copy"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def noisy(channels: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(3)) * 4


ABAR = diffusers.DDPMScheduler().alphas_cumprod.double()
SIGMAS = ((1 - ABAR) / ABAR).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_denoises_as_its_definition_says(prediction: str, tmp_path: Path) -> None:
    model = unet()
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path)
    x, steps = noisy(3), torch.tensor([100, 700])
    alpha, sigma = ABAR[steps].sqrt().float().view(-1, 1, 1, 1), (1 - ABAR[steps]).sqrt().float().view(-1, 1, 1, 1)
    with torch.no_grad():
        output = model(alpha * x, steps).sample
        denoised = loaded.denoiser(x, SIGMAS[steps])
    noised = alpha * x  # alpha x0 + sigma z
    expected = {
        "epsilon": (noised - sigma * output) / alpha,
        "v_prediction": alpha * noised - sigma * output,
        "sample": output,
    }[prediction]
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert loaded.sigmas == pytest.approx(SIGMAS.tolist(), rel=1e-6)
    assert (loaded.sigma_min, loaded.sigma_max) == (loaded.sigmas[0], loaded.sigmas[-1])


def test_euler_on_the_table_is_the_ddim_pipeline(tmp_path: Path) -> None:
    pipeline = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    expected = pipeline(
        batch_size=2, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(4)
    ).images
    loaded = diffusers_model(tmp_path)
    noise = torch.randn(2, *loaded.shape, generator=torch.Generator().manual_seed(4))
    assert loaded.sigmas is not None
    sigmas = [*(loaded.sigmas[k] for k in (800, 600, 400, 200, 0)), 0.0]
    start = noise * (1 + sigmas[0] ** 2) ** 0.5 / sigmas[0]
    images = (sample(loaded.denoiser, start, sigmas, Euler()) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=1e-3, atol=1e-4)


def test_a_bare_model_needs_to_be_told_what_it_predicts(pixel_folder: Path) -> None:
    with pytest.raises(InputError, match="--prediction_type"):
        diffusers_model(pixel_folder / "unet")
    whole, bare = diffusers_model(pixel_folder), diffusers_model(pixel_folder / "unet", prediction_type="epsilon")
    part = diffusers_model(pixel_folder, subfolder="unet")
    x, sigma = noisy(3), torch.tensor(1.5)
    torch.testing.assert_close(whole.denoiser(x, sigma), bare.denoiser(x, sigma))
    torch.testing.assert_close(whole.denoiser(x, sigma), part.denoiser(x, sigma))


def test_the_feature_is_the_middle_block_s_output(pixel_folder: Path) -> None:
    loaded = diffusers_model(pixel_folder)
    assert loaded.feature is not None
    loaded.denoiser(noisy(3), torch.tensor(1.0))
    assert loaded.feature().shape == (2, 8, 4, 4)


def test_half_precision_stays_inside_the_network(pixel_folder: Path) -> None:
    loaded = diffusers_model(pixel_folder, dtype=torch.bfloat16)
    exact = diffusers_model(pixel_folder)
    x, sigma = noisy(3).double(), torch.tensor(2.0, dtype=torch.float64)
    denoised = loaded.denoiser(x, sigma)
    assert denoised.dtype == torch.float64
    torch.testing.assert_close(denoised, exact.denoiser(x, sigma), rtol=0.05, atol=0.1)


def test_a_zero_terminal_signal_keeps_the_table_finite(pixel_folder: Path, tmp_path: Path) -> None:
    folder = copy(pixel_folder, tmp_path)
    change(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    sigmas = diffusers_model(folder).sigmas
    assert sigmas is not None
    assert sigmas[-2] < sigmas[-1] < 1e5


def test_classes_condition_a_unet(tmp_path: Path) -> None:
    model = unet(num_class_embeds=4)
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path)
    x, label = noisy(3), torch.tensor([1, 3])
    sigma = SIGMAS[500].float()
    with torch.no_grad():
        expected = x - sigma * model(x / (1 + sigma**2).sqrt(), 500, class_labels=label).sample
    assert loaded.classes == 4
    torch.testing.assert_close(loaded.denoiser(x, sigma, label), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="needs classes"):
        loaded.denoiser(x, sigma)
    with pytest.raises(InputError, match="cannot be guided"):
        diffusers_model(tmp_path, guidance=2.0)


def test_dit_drops_its_variances_and_is_guided_away_from_no_class(tmp_path: Path) -> None:
    model, vae = transformer(out_channels=8), autoencoder()
    with torch.no_grad():
        for parameter in model.parameters():  # DiT starts as zero in places
            parameter.add_(0.1 * torch.randn_like(parameter))
    diffusers.DiTPipeline(model, vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path, guidance=3.0)
    x, label = noisy(4), torch.tensor([0, 4])
    sigma, step = SIGMAS[300].float(), torch.tensor([300, 300])
    with torch.no_grad():
        given, null = (
            model(x / (1 + sigma**2).sqrt(), timestep=step, class_labels=classes).sample[:, :4]
            for classes in (label, torch.tensor([5, 5]))
        )
    assert (loaded.classes, loaded.shape) == (5, (4, 8, 8))
    expected = x - sigma * (null + 3 * (given - null))
    torch.testing.assert_close(loaded.denoiser(x, sigma, label), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loaded.denoiser(x, sigma), x - sigma * null, rtol=1e-4, atol=1e-3)


def test_a_prompt_is_the_condition_of_stable_diffusion(latent_folder: Path) -> None:
    pipeline = stable_diffusion()
    with torch.no_grad():
        given, null = pipeline.encode_prompt("a cat", "cpu", 1, True, "dog")
    loaded = diffusers_model(latent_folder, prompt="a cat", negative_prompt="dog", guidance=7.5)
    assert loaded.sigmas is not None
    assert loaded.sigmas[0] == pytest.approx(0.0292, abs=1e-4)
    assert loaded.sigmas[-1] == pytest.approx(14.6146, abs=1e-3)
    x, sigma = noisy(4), torch.tensor(loaded.sigmas[400])
    with torch.no_grad():
        scaled = x / (1 + sigma**2).sqrt()
        outputs = [pipeline.unet(scaled, 400, states.expand(2, -1, -1)).sample for states in (null, given)]
    expected = x - sigma * (outputs[0] + 7.5 * (outputs[1] - outputs[0]))
    torch.testing.assert_close(loaded.denoiser(x, sigma), expected, rtol=1e-4, atol=1e-3)
    assert loaded.feature is not None
    assert loaded.feature().shape[0] == 2  # the conditional half
    alone = diffusers_model(latent_folder, prompt="a cat")
    alone.denoiser(x, sigma)
    assert alone.feature is not None
    torch.testing.assert_close(loaded.feature(), alone.feature(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.denoiser(x, sigma, given), alone.denoiser(x, sigma))


def test_latents_are_decoded_by_the_pipeline_s_autoencoder(latent_folder: Path) -> None:
    loaded, vae = diffusers_model(latent_folder), autoencoder()
    latents = noisy(4) / 8
    assert loaded.decode is not None
    with torch.no_grad():
        expected = vae.decode(latents / 0.18215).sample.clamp(-1, 1)
    torch.testing.assert_close(loaded.decode(latents), expected, rtol=1e-4, atol=1e-4)


def test_a_shifted_latent_space_is_decoded_with_its_shift(latent_folder: Path, tmp_path: Path) -> None:
    folder = copy(latent_folder, tmp_path)
    latents = noisy(4) / 8
    change(folder / "vae" / "config.json", shift_factor=0.25, scaling_factor=2.0)
    shifted = diffusers_model(folder).decode
    change(folder / "vae" / "config.json", shift_factor=None, latents_mean=[0.25] * 4, latents_std=[1.0] * 4)
    by_channel = diffusers_model(folder).decode
    assert shifted is not None
    assert by_channel is not None
    with torch.no_grad():
        expected = autoencoder().decode(latents / 2 + 0.25).sample.clamp(-1, 1)
    torch.testing.assert_close(shifted(latents), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_channel(latents), expected, rtol=1e-4, atol=1e-4)


def test_a_flow_matching_transformer_denoises_by_its_velocity(tmp_path: Path) -> None:
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
    pipeline = diffusers.StableDiffusion3Pipeline(
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
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path, prompt="a cat", negative_prompt="dog", guidance=4.0)
    x, time = noisy(4), 0.75
    sigma = torch.tensor(time / (1 - time))
    with torch.no_grad():
        told = pipeline.encode_prompt("a cat", None, None, negative_prompt="dog")
        at = (1 - time) * x
        given, null = (
            model(
                at,
                encoder_hidden_states=states.expand(2, -1, -1),
                pooled_projections=pooled.expand(2, -1),
                timestep=torch.full((2,), 1000 * time),
            ).sample
            for states, pooled in ((told[0], told[2]), (told[1], told[3]))
        )
    expected = at - time * (null + 4 * (given - null))
    torch.testing.assert_close(loaded.denoiser(x, sigma), expected, rtol=1e-4, atol=1e-3)
    assert loaded.sigmas is None
    assert (loaded.sigma_min, loaded.sigma_max) == pytest.approx((1 / 999, 999.0))


def test_flux_packs_its_latents_and_is_told_the_guidance(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path, prediction_type="flow_prediction", guidance=3.5, size=8)
    condition = {"encoder_hidden_states": torch.randn(1, 5, 8), "pooled_projections": torch.randn(1, 8)}
    x, time = noisy(4), 0.5
    pack, places = diffusers.FluxPipeline._pack_latents, diffusers.FluxPipeline._prepare_latent_image_ids
    with torch.no_grad():
        output = model(
            pack(x / 2, 2, 4, 8, 8),
            encoder_hidden_states=condition["encoder_hidden_states"].expand(2, -1, -1),
            pooled_projections=condition["pooled_projections"].expand(2, -1),
            timestep=torch.full((2,), time),
            img_ids=places(2, 4, 4, "cpu", torch.float32),
            txt_ids=torch.zeros(5, 3),
            guidance=torch.full((2,), 3.5),
        ).sample
    expected = x / 2 - time * diffusers.FluxPipeline._unpack_latents(output, 8, 8, 1)
    torch.testing.assert_close(loaded.denoiser(x, torch.tensor(1.0), condition), expected, rtol=1e-4, atol=1e-4)
    assert loaded.shape == (4, 8, 8)


def test_an_sdxl_prompt_brings_its_pooled_embedding_and_size(tmp_path: Path) -> None:
    model = unet_condition(
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=encoder(transformers.CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        unet=model,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers_model(tmp_path, prompt="a cat", negative_prompt="dog", guidance=2.0)
    x, sigma = noisy(4), SIGMAS[200].float()
    with torch.no_grad():
        told = pipeline.encode_prompt("a cat", None, negative_prompt="dog")
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, -1)
        given, null = (
            model(
                x / (1 + sigma**2).sqrt(),
                200,
                states.expand(2, -1, -1),
                added_cond_kwargs={"text_embeds": pooled.expand(2, -1), "time_ids": sizes},
            ).sample
            for states, pooled in ((told[0], told[2]), (told[1], told[3]))
        )
    expected = x - sigma * (null + 2 * (given - null))
    torch.testing.assert_close(loaded.denoiser(x, sigma), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "missing",
    [
        "unet",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder",
        "text_encoder/model.safetensors",
        "tokenizer",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_part_is_named_in_one_line(missing: str, latent_folder: Path, tmp_path: Path) -> None:
    folder = copy(latent_folder, tmp_path)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError) as error:
        diffusers_model(folder, prompt="a cat")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_refused_without_the_flag(pixel_folder: Path, tmp_path: Path) -> None:
    folder = copy(pixel_folder, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="allow_pickle"):
        diffusers_model(folder)
    x, sigma = noisy(3), torch.tensor(1.0)
    expected = diffusers_model(pixel_folder).denoiser(x, sigma)
    torch.testing.assert_close(diffusers_model(folder, allow_pickle=True).denoiser(x, sigma), expected)


def test_half_precision_files_are_found(pixel_folder: Path, tmp_path: Path) -> None:
    folder = copy(pixel_folder, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    x, sigma = noisy(3), torch.tensor(1.0)
    torch.testing.assert_close(
        diffusers_model(folder).denoiser(x, sigma), diffusers_model(pixel_folder).denoiser(x, sigma)
    )


def test_incomplete_weights_are_an_error_and_not_random_numbers(pixel_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(pixel_folder, tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("conv_in.weight")
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"'conv_in\.weight' is missing"):
        diffusers_model(folder)


def test_wrong_channels_are_said_by_the_denoiser(pixel_folder: Path) -> None:
    loaded = diffusers_model(pixel_folder)
    with pytest.raises(InputError, match="3 channels"):
        loaded.denoiser(torch.zeros(2, 4, 8, 8), torch.tensor(1.0))
    with pytest.raises(InputError, match="unconditional"):
        loaded.denoiser(torch.zeros(2, 3, 8, 8), torch.tensor(1.0), torch.tensor([1, 2]))


def test_text_models_say_that_they_need_text(latent_folder: Path) -> None:
    loaded = diffusers_model(latent_folder)
    with pytest.raises(InputError, match="needs a prompt"):
        loaded.denoiser(noisy(4), torch.tensor(1.0))
    with pytest.raises(InputError, match="3 rows for 2 samples"):
        loaded.denoiser(noisy(4), torch.tensor(1.0), torch.zeros(3, 8, 8))


def test_other_mistakes_are_one_clear_line(pixel_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no id of the Hugging Face hub"):
        diffusers_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="does not know text"):
        diffusers_model(pixel_folder, prompt="a cat")
    with pytest.raises(InputError, match="unknown prediction_type 'eps'"):
        diffusers_model(pixel_folder, prediction_type="eps")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        diffusers_model(tmp_path / "empty", prediction_type="epsilon")
    folder = copy(pixel_folder, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be loaded as UNet2DModel"):
        diffusers_model(folder)
    change(folder / "unet" / "config.json", _class_name="UNet1DModel")
    with pytest.raises(InputError, match="unknown kind of network"):
        diffusers_model(folder)


def test_inpainting_and_variance_exploding_networks_are_refused(tmp_path: Path) -> None:
    diffusers.DDPMPipeline(unet(in_channels=7), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="takes 7 channels and returns 3"):
        diffusers_model(tmp_path / "a")
    model = unet(time_embedding_type="fourier")
    diffusers.ScoreSdeVePipeline(model, diffusers.ScoreSdeVeScheduler()).save_pretrained(tmp_path / "b")
    with pytest.raises(InputError, match="ScoreSdeVeScheduler"):
        diffusers_model(tmp_path / "b")
    with pytest.raises(InputError, match="VE models"):
        diffusers_model(tmp_path / "b" / "unet", prediction_type="epsilon")


def test_a_hub_id_out_of_reach_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub does not give it"):
        diffusers_model("stillroom-nobody/no-such-model")


def test_the_command_samples_a_bare_model_told_what_it_predicts(pixel_folder: Path, tmp_path: Path) -> None:
    command = ["diffusion", "sample", "--model", f"diffusers:{pixel_folder / 'unet'}", "--count", "2", "--nfe", "3"]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    assert main([*command, "--prediction_type", "epsilon"]) == 0
    assert len([file for file in (tmp_path / "out").rglob("*.png") if file.name != "grid.png"]) == 2
