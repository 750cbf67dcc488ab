"""AMED: predictor, step rules, training that survives a kill, stored samplers. Golden files are in tests/golden."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.diffusion.amed import AMEDOptions, AMEDSampler, Predictor, Student, bottleneck, train_amed
from stillroom.diffusion.amed.steps import RULES
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.closed_form import GaussianMixture
from stillroom.diffusion.network import EDMDenoiser, NetworkOptions
from stillroom.diffusion.sampling import sample, trajectory
from stillroom.diffusion.schedules import polynomial
from stillroom.diffusion.solvers import DPM2, IPNDM, DPMpp, Euler, Heun
from stillroom.diffusion.solvers.plan import Plan
from stillroom.errors import FailureError, InputError, TrainingDivergedError

SHAPE = (1, 4, 4)
SIGMAS = (80.0, 6.0, 0.5, 0.002)


def mixture(seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.ones(4), mean, torch.full_like(mean, 0.05))


def mixture_model() -> DenoisingModel:
    return DenoisingModel(denoiser=mixture(), shape=SHAPE, name="mixture")


def noise(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictor(**options: Any) -> Predictor:
    return Predictor(generator=torch.Generator().manual_seed(3), **options).double()


class Constant(nn.Module):
    """A predictor that says the same for every sample."""

    def __init__(self, r: float, scale_dir: float = 1.0, scale_time: float = 1.0) -> None:
        super().__init__()
        self.fc_r = nn.Linear(1, 1)
        self.said = [torch.tensor([[value]], dtype=torch.float64) for value in (r, scale_dir, scale_time)]

    def forward(self, feature: Tensor | None, s: Tensor, t: Tensor) -> Any:
        from stillroom.diffusion.amed import Prediction

        return Prediction(*self.said)


class Fixed:
    """A solver whose plan is given."""

    name = "fixed"

    def __init__(self, plan: Plan) -> None:
        self.made = plan

    def plan(self, sigmas: Any) -> Plan:
        return self.made


def halves(r: float) -> tuple[float, ...]:
    """Return the student's noise levels with a point in every step."""
    inner = [(t**r * s ** (1 - r), t) for s, t in itertools.pairwise(SIGMAS)]
    return (SIGMAS[0], *(level for pair in inner for level in pair))


@pytest.mark.parametrize(
    ("student", "solver", "sigmas"),
    [
        (Student(rule="euler"), Euler(), halves(0.4)),
        (Student(rule="dpm2"), DPM2(r=0.4), SIGMAS),
        (Student(rule="ipndm", order=1), Euler(), halves(0.4)),
        (Student(rule="ipndm", order=4), IPNDM(4), halves(0.4)),
        (Student(rule="dpmpp", order=2), DPMpp(2), halves(0.4)),
        (Student(rule="dpmpp", order=3), DPMpp(3), halves(0.4)),
        (Student(rule="dpmpp", order=3, predict="noise", lower_order_final=False),
         DPMpp(3, predict="noise", lower_order_final=False), halves(0.4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("afs", [False, True])
def test_a_plugin_with_constant_predictions_is_its_solver(
    student: Student, solver: Any, sigmas: Any, afs: bool
) -> None:
    sampler = AMEDSampler(Constant(0.4), student, SIGMAS, afs, "nothing")  # type: ignore[arg-type]
    expected = sample(mixture(), noise(), sigmas, solver, afs=afs)
    torch.testing.assert_close(sampler(mixture(), noise()), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("afs", [False, True])
def test_a_sampler_without_feature_is_a_plan(rule: Any, afs: bool) -> None:
    student = Student(rule=rule, order=3)
    sampler = AMEDSampler(predictor(scale_dir=0.1, scale_time=0.2), student, SIGMAS, afs, "nothing")
    plan = sampler.plan()
    assert len(plan.calls) - afs == sampler.nfe
    states, _ = sampler.trajectory(mixture(), noise())
    way = trajectory(mixture(), noise(), plan.sigmas, Fixed(plan), afs=afs)
    every = 1 if student.holds else 2
    torch.testing.assert_close(way.states[::every], torch.stack(states), rtol=1e-9, atol=1e-11)
    assert way.sigmas[::every] == SIGMAS


def test_the_table_says_where_the_model_is_asked_and_what_it_is_told(tmp_path: Path) -> None:
    sampler = AMEDSampler(predictor(scale_dir=0.1, scale_time=0.2), Student(), SIGMAS, True, "nothing")
    sampler.export(tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    assert (len(table["sigmas"]), len(table["scale_dir"]), table["nfe"]) == (7, 3, 5)
    asked = [call.sigma for call in sampler.plan().calls]
    told = [level * scale for level, scale in zip(table["sigmas"][1::2], table["scale_time"], strict=True)]
    assert asked[0::2] == table["sigmas"][:-1:2]
    assert asked[1::2] == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_predictor_of_r_alone_keeps_small_batches_apart(batch: int) -> None:
    net = predictor(scale_dir=0.0, scale_time=0.0)
    feature = torch.randn(batch, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s, t = torch.tensor(80.0), torch.tensor(2.0)
    prediction = net(feature, s, t)
    assert [value.shape for value in prediction] == [(batch, 1)] * 3
    for value in prediction[1:]:
        assert torch.equal(value, torch.ones_like(value))
    alone = torch.cat([net(feature[i : i + 1], s, t).r for i in range(batch)])
    torch.testing.assert_close(prediction.r, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_does_not_depend_on_its_batch(rule: Any) -> None:
    torch.manual_seed(0)
    latest: list[Tensor] = []
    inner = mixture()

    def denoiser(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        latest[:] = [x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt()]
        return inner(x, sigma)

    net = predictor(inputs=16, scale_dir=0.1, scale_time=0.2)
    sampler = AMEDSampler(net, Student(rule=rule), SIGMAS, True, feature=lambda: latest[0])
    together = sampler(denoiser, noise(3))
    alone = torch.cat([sampler(denoiser, part) for part in noise(3).split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    _, predictions = sampler.trajectory(denoiser, noise(3))
    assert predictions[0].r.shape == (1, 1), "at the analytical first step there is no feature"
    assert predictions[1].r.unique().numel() == 3


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (2, 16, 4, 4), (2, 7, 13, 9), (2, 77, 10), (2, 30)])
def test_features_of_any_size_are_pooled(shape: tuple[int, ...]) -> None:
    net = Predictor()
    s, t = torch.tensor(80.0), torch.tensor([2.0])
    torch.testing.assert_close(net(torch.ones(shape), s, t), net(torch.ones(2, 8, 8), s, t))


def test_guidance_shows_the_predictor_the_conditional_half() -> None:
    feature = torch.cat([torch.zeros(5, 64), torch.ones(5, 64)]).double()
    net = predictor(scale_dir=0.1)
    guided = AMEDSampler(net, Student(), SIGMAS, False, feature=lambda: feature)
    plain = AMEDSampler(net, Student(), SIGMAS, False, feature=lambda: feature[5:])
    assert torch.equal(guided(mixture(), noise()), plain(mixture(), noise()))


def unet_model() -> DenoisingModel:
    torch.manual_seed(0)
    denoiser = EDMDenoiser((1, 8, 8), 3, NetworkOptions(width=8)).eval()
    nn.init.normal_(denoiser.network.last.weight, std=0.1)
    feature = bottleneck(denoiser, "network.middle")
    return DenoisingModel(denoiser=denoiser, shape=(1, 8, 8), classes=3, feature=feature, name="tiny")


def test_the_bottleneck_of_a_network_is_read_through_a_hook() -> None:
    model = unet_model()
    assert model.feature is not None
    with pytest.raises(FailureError, match="before the network ran"):
        model.feature()
    model.denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(1.0))
    assert model.feature().shape == (2, 16, 4, 4)
    assert not model.feature().requires_grad
    with pytest.raises(InputError, match="no module 'midle'; did you mean 'middle'"):
        bottleneck(model.denoiser.network, "midle")  # type: ignore[attr-defined]


TINY = AMEDOptions(trajectories=96, batch_size=16, scale_dir=0.1, scale_time=0.1)


def test_training_on_a_network_changes_the_predictor_alone() -> None:
    model = unet_model()
    assert isinstance(model.denoiser, nn.Module)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    sampler = train_amed(model, options=replace(TINY, trajectories=16), steps=2, show_progress=False)
    assert sampler.uses == "bottleneck"
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in model.denoiser.parameters())
    labels = torch.tensor([0, 2])
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert sampler(model.denoiser, latents, labels).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("student", "teacher", "objective"),
    [
        (Student(), Heun(), "steps"),
        (Student(rule="ipndm", order=4), IPNDM(4), "steps"),
        (Student(rule="dpmpp", order=2), DPMpp(2), "final"),
    ],
)
def test_training_brings_the_samples_closer_to_the_reference(student: Student, teacher: Any, objective: Any) -> None:
    model, latents = mixture_model(), noise(64).float()
    options = AMEDOptions(
        trajectories=960, batch_size=32, intermediate=3, scale_dir=0.3, scale_time=0.1, lr=0.02, objective=objective
    )
    reference = sample(model.denoiser, latents, polynomial(200, 0.002, 80.0), Heun())
    trained = train_amed(model, student=student, teacher=teacher, steps=2, options=options, show_progress=False)
    fresh = replace(
        trained, predictor=Predictor(scale_dir=0.3, scale_time=0.1, generator=torch.Generator().manual_seed(0))
    )
    errors = [(sampler(model.denoiser, latents) - reference).square().mean() for sampler in (fresh, trained)]
    assert errors[1] < 0.7 * errors[0]
    assert trained.about["broken_gradients"] == 0


class KilledError(Exception):
    pass


LEARNED = replace(TINY, objective="final", uses="denoised", lr_levels=0.02, decay="cosine")


@pytest.mark.parametrize("options", [TINY, LEARNED], ids=["paper", "learned-levels"])
def test_a_killed_training_ends_like_an_uninterrupted_one(options: AMEDOptions, tmp_path: Path) -> None:
    model, inner, calls = mixture_model(), mixture(), []

    def dying(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        calls.append(1)
        if len(calls) > 45:
            raise KilledError
        return inner(x, sigma)

    whole = train_amed(model, options=options, seed=4, show_progress=False)
    with pytest.raises(KilledError):
        train_amed(replace(model, denoiser=dying), options=options, seed=4, folder=tmp_path, show_progress=False)
    assert list(tmp_path.glob("*.pt"))
    with pytest.raises(InputError, match="holds checkpoints already"):
        train_amed(model, options=options, seed=4, folder=tmp_path, show_progress=False)
    with pytest.raises(InputError, match="another training: seed was 4, is now 5"):
        train_amed(model, options=options, seed=5, folder=tmp_path, resume=True, show_progress=False)
    resumed = train_amed(model, options=options, seed=4, folder=tmp_path, resume=True, show_progress=False)
    for name, value in whole.predictor.state_dict().items():
        assert torch.equal(value, resumed.predictor.state_dict()[name]), name
    assert whole.about == resumed.about
    assert whole.sigmas == resumed.sigmas
    other = train_amed(model, options=options, seed=5, show_progress=False)
    assert not torch.equal(other.predictor.fc_r.weight, whole.predictor.fc_r.weight)


def test_broken_gradients_are_replaced_and_counted() -> None:
    inner, broken = mixture(), []

    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            broken.append(1)
            return torch.full_like(gradient, torch.nan) if len(broken) == 3 else gradient

    model = replace(mixture_model(), denoiser=lambda x, sigma, condition: Break.apply(inner(x, sigma)))
    sampler = train_amed(model, options=TINY, show_progress=False)
    assert sampler.about["broken_gradients"] > 0
    assert all(bool(value.isfinite().all()) for value in sampler.predictor.parameters())


def test_a_training_without_any_finite_loss_stops() -> None:
    inner = mixture()

    def denoiser(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        return inner(x, sigma) * (torch.nan if torch.is_grad_enabled() and sigma.requires_grad else 1.0)

    with pytest.raises(TrainingDivergedError, match=r"no loss is finite in batches 1 to 1; lower amed\.lr"):
        train_amed(replace(mixture_model(), denoiser=denoiser), options=TINY, show_progress=False)


def test_a_stored_sampler_samples_the_same(tmp_path: Path) -> None:
    model = unet_model()
    sampler = train_amed(
        model, student=Student(rule="dpmpp", order=2), options=replace(TINY, trajectories=16), show_progress=False
    )
    sampler.save(tmp_path / "amed.safetensors")
    loaded = AMEDSampler.load(tmp_path / "amed.safetensors")
    assert (loaded.student, loaded.sigmas, loaded.afs, loaded.nfe) == (sampler.student, sampler.sigmas, True, 5)
    assert loaded.about == sampler.about
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="bind it first"):
        loaded(model.denoiser, latents)
    with pytest.raises(InputError, match="mixture has none hooked"):
        loaded.bind(mixture_model())
    assert torch.equal(loaded.bind(model)(model.denoiser, latents), sampler(model.denoiser, latents))


def test_a_file_that_is_no_sampler_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "amed.safetensors"
    with pytest.raises(InputError, match="cannot read the AMED sampler"):
        AMEDSampler.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(InputError, match="is no AMED sampler"):
        AMEDSampler.load(path)
    sampler = AMEDSampler(Predictor(), Student(), SIGMAS, uses="nothing")
    sampler.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'\\"hidden\\": 128', b'\\"hidden\\": 129'))
    with pytest.raises(InputError, match="is damaged: "):
        AMEDSampler.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is no AMED sampler"):
        AMEDSampler.load(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Student(rule="heun"), "unknown AMED student 'heun'"),  # type: ignore[arg-type]
        (lambda: Student(rule="dpmpp", order=4), "must be from 1 to 3"),
        (lambda: Student(threshold=True), "needs the student dpmpp"),
        (lambda: Predictor(scale_dir=1.0), "amed.scale_dir is 1.0; it must be at least 0 and below 1"),
        (lambda: AMEDOptions(lr=-1.0), "amed.lr is -1.0"),
        (lambda: AMEDOptions(uses="pixels"), "one of auto, bottleneck, denoised, nothing"),  # type: ignore[arg-type]
        (lambda: AMEDOptions(lr_levels=0.01), "amed.lr_levels needs amed.objective final"),
        (lambda: AMEDOptions(decay="linear"), "one of constant, cosine"),  # type: ignore[arg-type]
        (lambda: AMEDSampler(Predictor(), Student(), (1.0, 2.0)), "must fall strictly"),
        (lambda: AMEDSampler(Predictor(), Student(), (1.0, 0.0)), "ends above 0"),
        (lambda: train_amed(mixture_model(), steps=0), "steps of the AMED student is 0"),
        (lambda: train_amed(mixture_model(), schedule="karras_zero"), "ends above 0; karras_zero ends at 0"),
        (lambda: train_amed(mixture_model(), options=AMEDOptions(uses="bottleneck")), "no feature hooked"),
        (lambda: train_amed(mixture_model(), resume=True), "resume needs the folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_model_that_cuts_the_graph_is_refused() -> None:
    model = replace(mixture_model(), denoiser=torch.no_grad()(mixture().__call__))
    with pytest.raises(InputError, match="mixture passes no gradient"):
        train_amed(model, options=TINY, show_progress=False)


def test_a_model_that_returns_nan_is_named_with_the_step() -> None:
    sampler = AMEDSampler(Predictor(), Student(), SIGMAS, uses="nothing")
    with pytest.raises(InputError, match="in step 2"):
        sampler(lambda x, sigma, condition: 0 * x if float(sigma) > 6 else x * torch.nan, noise())


@pytest.mark.parametrize("search", [(80.0, 4.0, 0.1, 0.002), None])
def test_the_students_noise_levels_are_the_teachers(search: Any) -> None:
    options = replace(TINY, trajectories=16, intermediate=2)
    sampler = train_amed(mixture_model(), sigmas=search, options=options, show_progress=False)
    expected = search or tuple(polynomial(4, 0.002, 80.0).tolist())
    assert sampler.sigmas == pytest.approx(expected, rel=1e-12)
    assert len(sampler.about["sigmas"]) == 10


def test_noise_levels_are_learned_when_asked_for() -> None:
    fixed = train_amed(mixture_model(), options=replace(LEARNED, lr_levels=None), show_progress=False)
    learned = train_amed(mixture_model(), options=LEARNED, show_progress=False)
    assert fixed.sigmas == pytest.approx(polynomial(4, 0.002, 80.0).tolist(), rel=1e-12)
    assert (learned.sigmas[0], learned.sigmas[-1]) == (fixed.sigmas[0], fixed.sigmas[-1])
    moved = [abs(a / b - 1) for a, b in zip(learned.sigmas[1:-1], fixed.sigmas[1:-1], strict=True)]
    assert min(moved) > 1e-3
    assert learned.about["sigmas"] == fixed.about["sigmas"]


def test_a_predictor_that_sees_the_denoised_sample_needs_no_hook() -> None:
    sampler = train_amed(mixture_model(), options=LEARNED, show_progress=False)
    _, predictions = sampler.trajectory(mixture(), noise(3).float())
    assert predictions[1].r.unique().numel() == 3
    assert sampler.bind(mixture_model()) is sampler


class HostReads(TorchDispatchMode):
    """Counts what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def test_the_steps_read_nothing_on_the_host() -> None:
    sampler = AMEDSampler(predictor(inputs=16), Student(rule="ipndm"), SIGMAS, uses="denoised")
    latents = noise()
    with HostReads() as reads:
        sampler.trajectory(lambda x, sigma, condition: x / (1 + sigma.reshape(-1, 1, 1, 1)), latents)
    assert reads.count == 0
