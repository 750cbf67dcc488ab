"""GITS: noise levels from the shape of the model's sampling trajectories, by dynamic programming.

Source: Chen, Zhou, Wang, Shen, Lyu, On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stillroom.diffusion.denoiser import Denoiser, DenoisingModel
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import Transform, trajectory
from stillroom.diffusion.schedules import polynomial
from stillroom.diffusion.solvers import IPNDM, solver_options
from stillroom.diffusion.solvers.plan import Solver, as_sigmas
from stillroom.diffusion.warmup import Draw, warmup
from stillroom.errors import InputError
from stillroom.files import write_json_atomic

__all__ = ["CostMatrix", "Metric", "cheapest_path", "find_first_step", "gits", "jump_costs"]

Metric = Literal["dev", "l1", "l2"]
COEFFICIENT = 1.15  # the paper's gamma
FORMAT = "stillroom-gits"
VERSION = 1


def jump_costs(states: Tensor, derivatives: Tensor, sigmas: Sequence[float], *, metric: Metric = "dev") -> Tensor:
    """Return what Euler jumps between the points of teacher trajectories cost, summed over the batch.

    A jump from point i to point j ends at ``y_ij = x_i + (sigma_j - sigma_i) e_i``. ``l1`` and ``l2`` are its distance
    to ``x_j``. ``dev``, the paper's, compares distances from the chord between the trajectory's ends: that of ``y_ij``
    minus that of ``x_j``; it may be negative.

    Source: Chen et al., ICML 2024, section 4.

    Args:
        states: The teacher's trajectories x.
        derivatives: Their derivatives e at the start of each step.
        sigmas: The noise levels.
        metric: ``dev``, ``l1`` or ``l2``.

    Shapes:
        states: [n, B, ...].
        derivatives: [n - 1, B, ...].
        Returns [n, n] float64 on the host; 0 where i >= j.

    Example:
        >>> states = torch.tensor([[[4.0, 0.0]], [[2.0, 1.0]], [[0.0, 0.0]]])
        >>> jump_costs(states, states[:2] / states.new_tensor([4.0, 2.0])[:, None, None], [4.0, 2.0, 0.0])
        tensor([[ 0., -1.,  0.],
                [ 0.,  0.,  0.],
                [ 0.,  0.,  0.]], dtype=torch.float64)
    """
    if metric not in get_args(Metric):
        raise InputError(f"metric of GITS is {metric!r}; it must be one of {', '.join(get_args(Metric))}")
    levels = torch.tensor(sigmas, dtype=torch.float64, device=states.device)
    x, slope = states.flatten(2).double(), derivatives.flatten(2).double()
    total = (
        _deviations(x, slope, levels) if metric == "dev" else _distances(x, slope, levels, 1 if metric == "l1" else 2)
    )
    return total.triu(1).cpu()


def _deviations(x: Tensor, slope: Tensor, levels: Tensor) -> Tensor:
    """With p and q the parts of ``end - x_i`` and ``e_i`` across the chord, a jump of h ends ``|p - h q|`` from it.

    Split along q, that is ``sqrt((p.u - h |q|)^2 + |p - (p.u) u|^2)``, u = q / |q|: no jump has to be computed, and
    nothing cancels.
    """
    chord = F.normalize(x[-1] - x[0], dim=1, eps=torch.finfo(x.dtype).tiny)

    def across(vectors: Tensor) -> Tensor:
        return torch.addcmul(vectors, (vectors * chord).sum(-1, keepdim=True), chord, value=-1)

    p, q = across(x[-1] - x), across(slope)  # [n, B, d], [n - 1, B, d]
    length, unit = q.norm(dim=-1), F.normalize(q, dim=-1, eps=torch.finfo(x.dtype).tiny)  # [n - 1, B], [n - 1, B, d]
    along = (p[:-1] * unit).sum(-1)
    rest = (p[:-1] - along[..., None] * unit).norm(dim=-1)
    h = levels - levels[:-1, None]  # [n - 1, n]
    jumps = torch.hypot(along[:, None] - h[..., None] * length[:, None], rest[:, None])  # [n - 1, n, B]
    teacher = p.norm(dim=-1)
    teacher[-1] = 0
    costs = x.new_zeros(len(x), len(x))
    costs[:-1] = (jumps - teacher).sum(-1)
    return costs


def _distances(x: Tensor, slope: Tensor, levels: Tensor, norm: int) -> Tensor:
    costs = x.new_zeros(len(x), len(x))
    for i in range(len(x) - 1):  # row by row: a temporary is no larger than the trajectories
        h = levels[i + 1 :] - levels[i]
        missed = torch.addcmul(x[i] - x[i + 1 :], h[:, None, None], slope[i])
        costs[i, i + 1 :] = torch.linalg.vector_norm(missed, norm, dim=-1).sum(-1)
    return costs


def cheapest_path(
    cost: Tensor | NDArray[np.float64], steps: int, *, coefficient: float = COEFFICIENT
) -> tuple[int, ...]:
    """Return the path from the first point to the last, of so many steps, that costs least.

    It minimises ``sum_m gamma^m c_m`` over its steps m = 0, 1, ...; gamma above 1 gives weight to late steps, at low
    noise. ``V_k(i) = min_j c_ij + gamma V_{k-1}(j)``, with ``V_1(i) = c_in``; ties go to the smallest j.

    Args:
        cost: ``cost[i, j]``, what a step from point i to point j > i costs.
        steps: Number of steps.
        coefficient: gamma.

    Shapes:
        cost: [n, n]. Returns ``steps + 1`` rising indices, 0 first, n - 1 last.

    Raises:
        InputError: The matrix is not square and finite, there is no such path, or gamma is not positive.

    Example:
        >>> cheapest_path(np.array([[0.0, 9.0, 1.0, 9.0], [0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4]), 2)
        (0, 2, 3)
    """
    c = np.asarray(cost.detach().cpu() if isinstance(cost, Tensor) else cost, dtype=np.float64)
    if c.ndim != 2 or c.shape[0] != c.shape[1] or len(c) < 2 or not np.isfinite(c).all():
        raise InputError(f"a cost matrix is square, finite and at least 2 x 2; this one has shape {c.shape}")
    n = len(c)
    if not 1 <= steps <= n - 1:
        raise InputError(f"{n} teacher points allow schedules of 1 to {n - 1} steps, not {steps}")
    if not 0 < coefficient < np.inf:
        raise InputError(f"coefficient of GITS is {coefficient}; it must be positive and finite")
    inner = np.triu(np.ones((n, n), dtype=bool), 1)
    inner[:, -1] = False
    value, choices = c[:, -1], []
    for _ in range(steps - 1):
        through = np.where(inner, c + coefficient * value, np.inf)
        choices.append(through.argmin(1))
        value = through.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return (*path, n - 1)


@dataclass(frozen=True)
class CostMatrix:
    """What every Euler jump between the points of a teacher's grid costs: gives schedules of every length.

    It depends on the model, the guidance and the teacher's grid, not on the solver that will use the schedule.

    Args:
        levels: The teacher's noise levels, falling.
        cost: ``cost[i][j]``: mean cost of the jump from level i to level j.
        metric: What was measured.
        evaluations: Evaluations of the network that the measurement took, each of one sample.
        about: Model, teacher, samples, seed.

    Raises:
        InputError: The levels are no schedule, or the matrix does not fit them.
    """

    levels: tuple[float, ...]
    cost: tuple[tuple[float, ...], ...]
    metric: str = "dev"
    evaluations: int = 0
    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", as_sigmas(self.levels))
        cost = np.asarray(self.cost, dtype=np.float64)
        if cost.shape != (len(self.levels),) * 2 or not np.isfinite(cost).all():
            raise InputError(
                f"{len(self.levels)} noise levels need a finite square cost matrix, got shape {cost.shape}"
            )
        object.__setattr__(self, "cost", tuple(map(tuple, cost.tolist())))

    def indices(self, steps: int, *, coefficient: float = COEFFICIENT) -> tuple[int, ...]:
        """Return which of the levels the best schedule of so many steps takes; see :func:`cheapest_path`."""
        return cheapest_path(np.array(self.cost), steps, coefficient=coefficient)

    def sigmas(self, steps: int, *, coefficient: float = COEFFICIENT) -> tuple[float, ...]:
        """Return the best schedule of so many steps.

        Raises:
            InputError: The teacher's grid is too coarse for it.
        """
        return tuple(self.levels[index] for index in self.indices(steps, coefficient=coefficient))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically.

        Raises:
            OutputError: It could not be written.
        """
        content = {
            "format": FORMAT,
            "format_version": VERSION,
            "metric": self.metric,
            "evaluations": self.evaluations,
            "levels": list(self.levels),
            "cost": [list(row) for row in self.cost],
            "about": dict(self.about),
        }
        write_json_atomic(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> CostMatrix:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the cost matrix {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise InputError(f"{path} is no JSON; a cost matrix is written by CostMatrix.save") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path} holds no cost matrix of GITS; one is written by CostMatrix.save")
        if content.get("format_version") != VERSION:
            raise InputError(
                f"{path} has format version {content.get('format_version')!r:.20}, this stillroom reads {VERSION}"
            )
        try:
            parts = (content["levels"], content["cost"], str(content["metric"]), int(content["evaluations"]))
            return cls(*parts, about=content.get("about") or {})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from None


def gits(
    model: DenoisingModel,
    *,
    metric: Metric = "dev",
    levels: Sequence[float] | Tensor | None = None,
    teacher: Solver | None = None,
    count: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    condition: Draw | None = None,
    noise: Iterable[Tensor] | None = None,
    transform: Transform | None = None,
) -> CostMatrix:
    """Measure the cost matrix of a model on a few of a teacher's trajectories.

    With the defaults it takes 256 x 60 evaluations, as many as 15 trajectories of 1,000.

    Args:
        model: The model.
        metric: What a jump costs; see :func:`jump_costs`.
        levels: The teacher's noise levels; by default 61, polynomial (rho 7), over the model's range.
        teacher: The teacher's solver; by default iPNDM of order 4. It makes one evaluation per step or more.
        count: Warm-up samples.
        batch_size: Warm-up samples computed at once; their trajectories are in memory together.
        seed: Seed of the warm-up noise.
        device: Where the model computes.
        condition: Draws the conditions of a batch (:func:`~stillroom.diffusion.warmup.random_classes`, say).
        noise: Batches of warm-up noise [B, *shape], instead of drawing them.
        transform: Applied to the teacher's outputs, such as ``dynamic_threshold``.

    Raises:
        InputError: A value is out of its range.
        InputError: The model returned a value that is not finite.
    """
    grid = as_sigmas(polynomial(61, model.sigma_min, model.sigma_max) if levels is None else levels)
    teacher = teacher or IPNDM(4)
    drawn: Iterable[tuple[Tensor, Any]] = (
        ((batch, None) for batch in noise)
        if noise is not None
        else warmup(model, count=count, batch_size=batch_size, seed=seed, device=device, condition=condition)
    )
    total, samples, evaluations = torch.zeros(len(grid), len(grid), dtype=torch.float64), 0, 0
    for batch, given in drawn:
        way = trajectory(model.denoiser, batch, grid, teacher, condition=given, transform=transform)
        total += jump_costs(way.states, way.derivatives, grid, metric=metric)
        samples += len(batch)
        evaluations += way.nfe * len(batch)
    if not samples:
        raise InputError("GITS needs at least one batch of warm-up noise")
    key, options = solver_options(teacher)
    about = {"model": model.name, "teacher": key, "teacher_options": options, "samples": samples}
    about |= {"seed": seed} if noise is None else {}
    return CostMatrix(grid, tuple(map(tuple, (total / samples).tolist())), metric, evaluations, about)


def find_first_step(
    denoiser: Denoiser,
    sampler: Sampler,
    levels: Sequence[float],
    noise: Tensor,
    target: Tensor,
    *,
    condition: Any = None,
) -> Sampler | None:
    """Insert an analytical first step: one noise level more before the first step's end, without an evaluation.

    Every one of ``levels`` between the schedule's first two is tried; the one whose samples end closest to the target,
    in the mean L2 distance, is kept. A solver with two evaluations per step makes one evaluation more.

    Source: Chen et al., ICML 2024, appendix (AFS); Dockhorn, Vahdat, Kreis, GENIE, NeurIPS 2022 (the step). The
    teacher that computes the target does not use it.

    Args:
        denoiser: The model.
        sampler: Solver and schedule without such a step.
        levels: Noise levels to choose from, a teacher's.
        noise: Unit-variance noise.
        target: Where the teacher ends from it.
        condition: Passed to every evaluation.

    Shapes:
        noise, target: [B, ...].

    Returns:
        The sampler with the step, or ``None`` where no level lies in between.

    Raises:
        InputError: The model returned a value that is not finite.
    """
    start, end, *rest = sampler.sigmas
    best: tuple[float, Sampler] | None = None
    for level in levels:
        if not end < level < start:
            continue
        tried = replace(sampler, sigmas=(start, level, end, *rest), afs=True)
        missed = tried(denoiser, noise, condition) - target
        distance = float(missed.flatten(1).double().norm(dim=1).mean())
        if best is None or distance < best[0]:
            best = distance, tried
    return None if best is None else best[1]
