"""A trained AMED: student, noise levels and predictor together, callable like any sampler and stored as one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from stillroom.diffusion.amed.predictor import Prediction, Predictor
from stillroom.diffusion.amed.steps import Memory, Mix, Reader, Student, between, first_half, second_half, student_step
from stillroom.diffusion.denoiser import Denoiser, DenoisingModel
from stillroom.diffusion.solvers.plan import Call, Plan, Update, as_sigmas
from stillroom.errors import InputError, unknown_name
from stillroom.files import plain, write_bytes_atomic, write_json_atomic

__all__ = ["USES", "AMEDSampler", "Uses", "levels_of", "reader"]

Uses = Literal["bottleneck", "denoised", "nothing"]
USES = get_args(Uses)

FORMAT = "stillroom-amed"
VERSION = 1


@dataclass(frozen=True, eq=False)
class AMEDSampler:
    """A student on a schedule with the predictor that was trained for it.

    Args:
        predictor: Says where the second evaluation of each step lies.
        student: How a step uses its two evaluations.
        sigmas: The student's noise levels, falling to above 0; two evaluations each.
        afs: Analytical first step: the first evaluation is the unit-variance prior's.
        uses: What the predictor sees of the first evaluation of a step: the network's ``bottleneck``, what it returned
            (``denoised``; not in the paper, needs no hook), or ``nothing``, so that all samples share one schedule.
        about: Where it came from: model, teacher, losses. Kept in the file.
        feature: Returns the network's feature of its latest call; see :meth:`bind`.

    Raises:
        InputError: The schedule is none, or ends at 0.

    Example:
        >>> sampler = AMEDSampler(Predictor(), Student(), (80.0, 1.0, 0.002), uses="nothing")
        >>> sampler.nfe, sampler(lambda x, sigma, condition: 0 * x, torch.zeros(2, 3)).shape
        (3, torch.Size([2, 3]))
    """

    predictor: Predictor
    student: Student
    sigmas: tuple[float, ...]
    afs: bool = True
    uses: Uses = "bottleneck"
    about: Mapping[str, Any] = field(default_factory=dict)
    feature: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", as_sigmas(self.sigmas))
        if self.sigmas[-1] == 0:
            raise InputError("AMED needs a schedule that ends above 0: it spaces its points in ln sigma")
        if self.uses not in USES:
            raise unknown_name("feature of AMED", self.uses, USES)

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser a sample costs (guidance counts each twice)."""
        return 2 * (len(self.sigmas) - 1) - self.afs

    def bind(self, model: DenoisingModel) -> AMEDSampler:
        """Return the sampler with its predictor reading the model's bottleneck; nothing changes if it reads none.

        Raises:
            InputError: The model has no feature.
        """
        if self.uses != "bottleneck":
            return self
        if model.feature is None:
            raise InputError(
                f"the sampler reads the network's bottleneck, but {model.name} has none hooked; "
                "see stillroom.diffusion.amed.bottleneck, or train AMED on this model"
            )
        return replace(self, feature=model.feature)

    def __call__(self, denoiser: Denoiser, noise: Tensor, condition: Any = None) -> Tensor:
        """Sample.

        Args:
            denoiser: The model.
            noise: [B, ...], unit-variance Gaussian noise, float32 or float64.
            condition: Passed to every evaluation.

        Returns:
            [B, ...], samples at the last noise level.

        Raises:
            InputError: The noise has another type, or the sampler is not bound to the model whose feature it reads.
            InputError: The denoiser returned a value that is not finite, or another shape.
        """
        states, _ = self.trajectory(denoiser, noise, condition)
        result = states[-1]
        if result.shape != noise.shape or not bool(result.isfinite().all()):
            step = next((k for k, x in enumerate(states) if not bool(x.isfinite().all())), len(states) - 1)
            raise InputError(f"the denoiser returned a value that is not finite, or another shape, in step {step}")
        return result

    def trajectory(
        self, denoiser: Denoiser, noise: Tensor, condition: Any = None
    ) -> tuple[list[Tensor], list[Prediction]]:
        """Return the states at the student's noise levels, N + 1 of [B, ...], and the predictions of its N steps.

        Raises:
            InputError: As for calling it.
        """
        if noise.dtype not in (torch.float32, torch.float64):
            raise InputError(f"noise must be float32 or float64, got {noise.dtype}")
        read = reader(self.uses, self.feature)
        predictor = self.predictor.to(noise.device)
        sigmas = levels_of(self.sigmas, noise.device)
        memory = Memory(noise.contiguous() * self.sigmas[0])
        states, predictions = [memory.x], []
        with torch.no_grad():
            for k in range(len(self.sigmas) - 1):
                memory, prediction = student_step(
                    denoiser,
                    self.student,
                    predictor,
                    memory,
                    k,
                    sigmas,
                    condition=condition,
                    read=read,
                    afs=self.afs,
                )
                states.append(memory.x)
                predictions.append(prediction)
        return states, predictions

    def predictions(self, feature: Tensor | None = None) -> list[Prediction]:
        """Return what the predictor says for one feature, [1, ...], or for none, in every step.

        At the analytical first step it sees no feature, as in sampling.
        """
        sigmas = levels_of(self.sigmas, self.predictor.fc_r.weight.device)
        with torch.no_grad():
            return [
                self.predictor(None if self.afs and k == 0 else feature, sigmas[k], sigmas[k + 1])
                for k in range(len(self.sigmas) - 1)
            ]

    def plan(self, feature: Tensor | None = None) -> Plan:
        """Return the sampler as a plan that all samples share, for :func:`~stillroom.diffusion.sampling.integrate`.

        Args:
            feature: [1, ...], what the predictor sees in every step, the mean over samples say; zeros by default.

        Raises:
            InputError: Dynamic thresholding is on, which a plan does not hold.
        """
        if self.student.threshold:
            raise InputError("a plan does not hold dynamic thresholding; pass it as transform to the sampling instead")
        sigmas = levels_of(self.sigmas, torch.device("cpu"))
        student, steps = self.student, len(self.sigmas) - 1
        levels: list[Tensor] = []
        grid, calls = [self.sigmas[0]], []
        for k, prediction in enumerate(self.predictions(feature)):
            r, scale_dir, scale_time = (value[0, 0].cpu().to(sigmas.dtype) for value in prediction)
            s, t = sigmas[k], sigmas[k + 1]
            m = between(s, t, r)
            levels = [s, *levels][: student.depth]
            first = _update(first_half(student, k, steps, levels, m))
            levels = [m, *levels][: max(student.depth, 2)]
            second = _update(second_half(student, k, steps, levels, t, r, scale_dir))
            number = k if student.holds else 2 * k
            calls.append(Call(float(s), number, None, first, hold=student.holds))
            calls.append(Call(float(scale_time * m), number + (not student.holds), None, second))
            grid += [self.sigmas[k + 1]] if student.holds else [float(m), self.sigmas[k + 1]]
        return Plan(tuple(grid), "denoised" if student.keeps_denoised else "residual", tuple(calls))

    def table(self, feature: Tensor | None = None) -> dict[str, Any]:
        """Return the plain schedule for one feature: 2 N + 1 noise levels, and both scales of every step.

        Sampling with another library: evaluate at ``sigmas[0]``, then at ``scale_time[0] * sigmas[1]``, and so on; the
        rule is the student's.
        """
        predictions = self.predictions(feature)
        sigmas = [self.sigmas[0]]
        for s, t, prediction in zip(self.sigmas[:-1], self.sigmas[1:], predictions, strict=True):
            r = float(prediction.r)
            sigmas += [t**r * s ** (1 - r), t]
        return {
            "format": "stillroom-amed-table",
            "format_version": VERSION,
            "student": asdict(self.student),
            "sigmas": sigmas,
            "scale_dir": [float(prediction.scale_dir) for prediction in predictions],
            "scale_time": [float(prediction.scale_time) for prediction in predictions],
            "afs": self.afs,
            "nfe": self.nfe,
            "about": dict(self.about),
        }

    def export(self, path: str | Path, feature: Tensor | None = None) -> None:
        """Write :meth:`table` as JSON, atomically.

        Raises:
            OutputError: It could not be written.
        """
        write_json_atomic(Path(path), self.table(feature))

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file with what rebuilds it in the metadata, atomically.

        Raises:
            OutputError: It could not be written.
        """
        card = {
            "format": FORMAT,
            "format_version": VERSION,
            "predictor": self.predictor.options,
            "student": asdict(self.student),
            "sigmas": list(self.sigmas),
            "afs": self.afs,
            "uses": self.uses,
            "nfe": self.nfe,
            "about": plain(dict(self.about)),
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.predictor.state_dict().items()}
        write_bytes_atomic(Path(path), to_bytes(weights, {"amed": json.dumps(card, ensure_ascii=False)}))

    @classmethod
    def load(cls, path: str | Path) -> AMEDSampler:
        """Read what :meth:`save` wrote; :meth:`bind` it to the model before sampling.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("amed", "null")
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            card = json.loads(text)
        except OSError as error:
            raise InputError(f"cannot read the AMED sampler {path}: {error.strerror or error}") from None
        except (SafetensorError, ValueError, RecursionError):
            raise InputError(f"{path} is no AMED sampler; one is written by: {_MADE_BY}") from None
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise InputError(f"{path} holds no AMED sampler of stillroom; one is written by: {_MADE_BY}")
        if card.get("format_version") != VERSION:
            raise InputError(
                f"{path} has format version {card.get('format_version')!r:.20}, this stillroom reads {VERSION}"
            )
        try:
            predictor = Predictor(**card["predictor"]).to(weights["fc_r.weight"].dtype)
            predictor.load_state_dict(weights)
            student = Student(**card["student"])
            sigmas = tuple(float(sigma) for sigma in card["sigmas"])
            return cls(predictor, student, sigmas, bool(card["afs"]), card["uses"], card.get("about") or {})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


_MADE_BY = "stillroom diffusion schedule --method amed"


def reader(uses: Uses, feature: Callable[[], Tensor] | None) -> Reader | None:
    """Return what gives the predictor its feature, once the first evaluation of a step is done.

    Raises:
        InputError: The bottleneck is to be read, but no model is bound.
    """
    if uses == "nothing":
        return None
    if uses == "denoised":
        return lambda denoised: denoised
    if feature is None:
        raise InputError("this AMED sampler reads the network's bottleneck; bind it first: sampler.bind(model)")
    # Guidance evaluates a doubled batch, whose conditional half comes last.
    return lambda denoised: feature()[-len(denoised) :]


def levels_of(sigmas: tuple[float, ...], device: torch.device) -> Tensor:
    """Return noise levels as a tensor, in the widest type the device knows."""
    return torch.tensor(sigmas, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


def _update(mix: Mix) -> Update:
    return Update(1.0 if mix.state is None else float(mix.state), tuple(float(weight) for weight in mix.weights))
