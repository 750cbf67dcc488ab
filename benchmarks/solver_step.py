"""What a step of a solver costs beyond the network: a free denoiser, against one addition and against diffusers.

    OMP_NUM_THREADS=1 python benchmarks/solver_step.py --shape 16,3,32,32
    OMP_NUM_THREADS=1 python benchmarks/solver_step.py --shape 4,4,64,64

The denoiser returns a tensor that is there already. A timed step is one whole loop of ``--points`` evaluations, turn by
turn with the others; the baseline is the same number of additions ``x + h * e``. diffusers' schedulers are given their
timesteps before the clock starts, as our coefficients are computed before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor

from stillroom.diffusion.sampling import integrate
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.solvers.plan import as_sigmas, coefficients

ADDITION = "x + h * e"
OURS: dict[str, tuple[str, dict[str, Any], float]] = {
    "Euler": ("euler", {}, 5),
    "iPNDM-4": ("ipndm", {"order": 4}, 5),
    "iPNDM_v-4": ("ipndm_v", {"order": 4}, 5),
    "DEIS-3": ("deis", {"order": 3}, 5),
    "DPM++ 2M": ("dpmpp", {"order": 2}, 6),
    "DPM++ 3M": ("dpmpp", {"order": 3}, 6),
    "UniPC-3": ("unipc", {"order": 3}, 10),
}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "DEIS-3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "iPNDM-4": ("IPNDMScheduler", {}),
}


def additions(points: int) -> Contender:
    """Return the lower bound: nothing but one addition a step."""

    def run(loader: TimedLoader) -> None:
        for batch in loader.epoch():
            x, free = batch.images, batch.images
            for _ in range(points):
                x = x + 0.1 * free

    return run


def fused(points: int) -> Contender:
    """Return the same in one kernel."""

    def run(loader: TimedLoader) -> None:
        for batch in loader.epoch():
            x, free = batch.images, batch.images
            for _ in range(points):
                x = torch.add(x, free, alpha=0.1)

    return run


def ours(name: str, points: int, like: Tensor) -> Contender:
    """Return the loop behind ``stillroom.diffusion.sampling.sample``."""
    key, options, _ = OURS[name]
    plan = make_solver(key, **options).plan(as_sigmas(schedule("polynomial", points + 1, 0.002, 80.0)))
    table = coefficients(plan, like)

    def run(loader: TimedLoader) -> None:
        with torch.no_grad():
            for batch in loader.epoch():
                free = batch.images
                integrate(plan, table, lambda x, sigma, condition, free=free: free, batch.images)

    return run


def theirs(name: str, points: int) -> Contender:
    """Return diffusers' scheduler of the same name, called as a pipeline calls it."""
    kind, options = THEIRS[name]
    prepared = getattr(diffusers, kind)(**options)
    prepared.set_timesteps(points)

    def run(loader: TimedLoader) -> None:
        copies = iter([copy.deepcopy(prepared) for _ in range(len(loader))])
        with torch.no_grad():
            for batch in loader.epoch():
                scheduler, x = next(copies), batch.images
                for timestep in scheduler.timesteps:
                    scheduler.scale_model_input(x, timestep)
                    x = scheduler.step(batch.images, timestep, x, return_dict=False)[0]

    return run


def main() -> None:
    """Print one table against the addition and the ratios of ours to diffusers'."""
    parser = rounds_parser(__doc__.splitlines()[0])
    parser.add_argument("--shape", default="16,3,32,32", help="shape of the samples")
    parser.add_argument("--points", type=int, default=20, help="evaluations of a loop")
    arguments = parser.parse_args()
    batch, *shape = (int(size) for size in arguments.shape.split(","))
    arguments.batch = batch
    device = environment(arguments)
    batches = make_batches(2, shape=shape, batch=batch, classes=2, device=device)
    loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
    like, points = batches[0].images, arguments.points
    contenders: dict[str, Callable[[TimedLoader], None]] = {
        ADDITION: additions(points),
        "fused addition": fused(points),
    }
    contenders |= {name: ours(name, points, like) for name in OURS}
    contenders |= {f"diffusers {name}": theirs(name, points) for name in THEIRS}
    times = compare(contenders, loader, rounds=arguments.rounds)
    print(f"Samples of {arguments.shape}, {points} evaluations a loop; a step of the table is one loop.\n")
    print_table(times, baseline=ADDITION, targets={name: limit for name, (_, _, limit) in OURS.items()})
    for name in THEIRS:
        print_table(
            {name: times[name], f"diffusers {name}": times[f"diffusers {name}"]},
            baseline=f"diffusers {name}",
            targets={name: 0.25},
        )


if __name__ == "__main__":
    main()
