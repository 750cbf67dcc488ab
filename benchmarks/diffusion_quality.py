"""RMSE to a fine reference, side by side: our solvers x schedules, GITS, auto and AMED against every stock scheduler.

    python benchmarks/diffusion_quality.py --out quality.json
    python benchmarks/diffusion_quality.py --out quality.json --print

Three models, sigma from 0.002 to 80: the closed form of the first 2,000 training images of MNIST, the same smeared with
bandwidth 0.2, and a learned model (``--learned RUN_DIR``, made by ``stillroom diffusion train --config
examples/mnist-diffusion.yaml``). All entries start from the same noise; what is searched or trained (GITS, auto, AMED)
sees other noise only. Finished entries are kept in the file, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from _stock import stock
from torch import Tensor

from stillroom.diffusion.amed import AMEDOptions, AMEDSampler, train_amed
from stillroom.diffusion.auto import choose_sampler
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.gits import gits
from stillroom.diffusion.load import load_denoiser
from stillroom.diffusion.quality import rmse
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.errors import InputError

BUDGETS = (5, 6, 4, 8, 10)
AMED_BUDGETS = (3, 4, 5)
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SOLVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("euler", {}),
    ("heun", {}),
    ("dpm2", {}),
    ("dpmpp", {"order": 2}),
    ("dpmpp", {"order": 3}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("deis", {"order": 2}),
    ("deis", {"order": 3}),
    ("ipndm", {"order": 2}),
    ("ipndm", {"order": 4}),
    ("ipndm_v", {"order": 3}),
)
SCHEDULES = ("polynomial", "logsnr", "time_uniform", "karras_zero", "exponential_zero", "beta")


def models(learned: str | None) -> Iterator[tuple[str, DenoisingModel]]:
    """Yield the three models."""
    yield "closed form", load_denoiser("optimal:mnist", images=2000)
    yield "smeared 0.2", load_denoiser("optimal:mnist@0.2", images=2000)
    if learned is not None:
        yield "learned", load_denoiser(learned)


class Store:
    """Finished entries: model -> budget -> entry -> RMSE."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text()) if path.exists() else {}

    def fill(self, model: str, budget: int, entry: str, measure: Callable[[], float | None]) -> None:
        cells = self.found.setdefault(model, {}).setdefault(str(budget), {})
        if entry in cells:
            return
        started = time.monotonic()
        try:
            value = measure()
        except (RuntimeError, ValueError, IndexError) as error:
            print(f"{model}, {budget}, {entry}: {type(error).__name__}: {error}", file=sys.stderr)
            return
        if value is None:
            return
        cells[entry] = value
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.found, indent=1))
        os.replace(temporary, self.path)
        seconds = time.monotonic() - started
        print(f"{model}, {budget} evaluations, {entry}: {value:.4g} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def measure_all(
    name: str, model: DenoisingModel, store: Store, count: int, steps: int, seed: int, kinds: str, warmup: int
) -> None:
    """Measure every entry on one model."""
    noise = torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(seed))
    fine = schedule("polynomial", steps + 1, SIGMA_MIN, SIGMA_MAX)
    file = store.path.with_name(f"{store.path.stem}-{name.replace(' ', '-')}-reference.pt")
    if file.exists():
        reference = torch.load(file, weights_only=True)
    else:
        reference = torch.cat([sample(model.denoiser, part, fine, make_solver("heun")) for part in noise.split(64)])
        torch.save(reference, file)

    def score(sampler: Callable[[Any, Tensor], Tensor]) -> float:
        return rmse(torch.cat([sampler(model.denoiser, part) for part in noise.split(64)]), reference)

    if "stock" in kinds:
        for budget, entry in itertools.product(BUDGETS, stock()):
            label = f"diffusers {entry.label}"
            store.fill(name, budget, label, lambda e=entry, b=budget: _stock(e, model, noise, reference, b))
    if "ours" in kinds:
        costs = gits(model, seed=seed + 1)
        for budget, (key, options) in itertools.product(BUDGETS, SOLVERS):
            solver = make_solver(key, **options)
            try:
                steps = steps_for(solver, budget)
            except InputError:
                continue
            searched = Sampler(solver, costs.sigmas(steps))
            store.fill(name, budget, f"{solver.name} · gits", lambda s=searched: score(s))
            for kind in SCHEDULES:
                sampler = Sampler(solver, tuple(schedule(kind, steps + 1, SIGMA_MIN, SIGMA_MAX).tolist()))
                if sampler.nfe == budget:
                    store.fill(name, budget, f"{solver.name} · {kind}", lambda s=sampler: score(s))
    if "auto" in kinds:
        for budget in BUDGETS:
            store.fill(
                name,
                budget,
                "auto",
                lambda b=budget: score(choose_sampler(model, b, count=warmup, seed=seed + 1).sampler),
            )
    if "amed" in kinds:
        for budget in AMED_BUDGETS:
            store.fill(name, budget, "amed", lambda b=budget: score(amed(model, b, seed + 1)))


def amed(model: DenoisingModel, nfe: int, seed: int) -> AMEDSampler:
    """Train AMED for a budget: two evaluations a step, the first of all analytical where the budget is odd."""
    options = AMEDOptions(afs=nfe % 2 == 1, trajectories=4096, batch_size=64)
    return train_amed(model, steps=(nfe + nfe % 2) // 2, schedule="time_uniform", options=options, seed=seed)


def _stock(entry: Any, model: DenoisingModel, noise: Tensor, reference: Tensor, nfe: int) -> float | None:
    parts = [entry.run(model.denoiser, part, nfe, SIGMA_MIN, SIGMA_MAX) for part in noise.split(64)]
    return None if parts[0] is None else rmse(torch.cat(parts), reference)


def show(store: Store) -> None:
    """Print what matters: the best of each kind, and the whole table."""
    for name, budgets in store.found.items():
        print(f"\n### {name}\n")
        print(
            "| evaluations | best stock scheduler | best plain solver | best with GITS | auto | auto / stock | AMED |"
        )
        print("|---|---|---|---|---|---|---|")
        for budget, cells in sorted(budgets.items(), key=lambda item: int(item[0])):
            kinds = {
                "stock": {k: v for k, v in cells.items() if k.startswith("diffusers ")},
                "gits": {k: v for k, v in cells.items() if k.endswith("· gits")},
                "plain": {k: v for k, v in cells.items() if "·" in k and not k.endswith("· gits")},
            }
            best = {kind: min(own.items(), key=lambda item: item[1], default=None) for kind, own in kinds.items()}
            text = {
                kind: "" if item is None else f"{item[1]:.4f} ({item[0].removeprefix('diffusers ')})"
                for kind, item in best.items()
            }
            auto, amed = cells.get("auto"), cells.get("amed")
            ratio = f"{auto / best['stock'][1]:.2f}" if auto is not None and best["stock"] is not None else ""
            numbers = ["" if value is None else f"{value:.4f}" for value in (auto, amed)]
            row = [str(budget), text["stock"], text["plain"], text["gits"], numbers[0], ratio, numbers[1]]
            print(f"| {' | '.join(row)} |")
    for name, budgets in store.found.items():
        print(f"\n<details><summary>Every entry on {name}</summary>\n")
        print(f"| entry | {' | '.join(budgets)} |\n|---|{'---|' * len(budgets)}")
        entries = {entry for cells in budgets.values() for entry in cells}
        last = list(budgets)[-1]
        for entry in sorted(entries, key=lambda e: (min(cells.get(e, 9e9) for cells in [budgets[last]]), e)):
            values = [cells.get(entry) for cells in budgets.values()]
            print(f"| {entry} | {' | '.join('' if value is None else f'{value:.4f}' for value in values)} |")
        print("\n</details>")


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of results; kept and completed")
    parser.add_argument("--learned", default=None, help="run directory of the learned model")
    parser.add_argument("--count", type=int, default=256, help="samples")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1024, help="samples auto fits on; its own default is 1024")
    parser.add_argument("--kinds", default="stock,ours,auto,amed", help="which entries to measure")
    parser.add_argument("--only", default=None, help="only the model of this name")
    parser.add_argument("--print", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = Store(arguments.out)
    if not arguments.print:
        for name, model in models(arguments.learned):
            if arguments.only in (None, name):
                measure_all(
                    name,
                    model,
                    store,
                    arguments.count,
                    arguments.steps,
                    arguments.seed,
                    arguments.kinds,
                    arguments.warmup,
                )
    print(f"`python benchmarks/diffusion_quality.py {' '.join(sys.argv[1:])}`\n")
    print(
        f"{arguments.count} samples, reference Heun with {arguments.steps} steps; Python {platform.python_version()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}."
    )
    show(store)


if __name__ == "__main__":
    main()
