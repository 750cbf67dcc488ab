"""How much of the machine's matrix-product rate the closed-form denoiser reaches, at 60,000 x 784 and batch 64.

    python benchmarks/optimal_denoiser.py --threads 1

The denoiser computes in float64, whatever the type of its input, so the yardstick is a float64 product of nearly square
matrices with exactly as many operations as the denoiser's two products together. To reach 60 % of its rate, the
denoiser may take 1 / 0.6 times as long. On a machine that others use too, the column of processor time is the truer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _rounds import Contender, TimedLoader, compare, environment, make_batches, print_table, rounds_parser
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser

DATA, PIXELS = 60_000, 784
PRODUCT = "a square product of as many operations"
RATE = 0.6


def repeated(step: Callable[[Tensor], Tensor]) -> Contender:
    """Return the loop that takes this step with every batch of queries."""

    def loop(loader: TimedLoader) -> None:
        for images, _, _ in loader.epoch():
            step(images)

    return loop


def main() -> None:
    parser = rounds_parser("Time the closed-form denoiser of 60,000 images against matrix products.")
    parser.set_defaults(rounds=10, steps=2)
    arguments = parser.parse_args()
    device = environment(arguments)
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(DATA, PIXELS, generator=generator) * 2 - 1).to(device)
    batches = make_batches(2, shape=(PIXELS,), batch=arguments.batch, classes=10, device=device)
    denoiser, side = OptimalDenoiser(data), 28 * arguments.batch
    inner = 2 * arguments.batch * DATA * PIXELS // side**2  # side * side * inner multiplications
    left, right = torch.rand(2, side, inner, generator=generator, dtype=torch.float64).to(device)
    points = data.double()

    def two_products(queries: Tensor) -> Tensor:
        return (queries.double() @ points.t()) @ points

    with torch.inference_mode():
        contenders = {
            PRODUCT: repeated(lambda queries: left @ right.t()),
            "the denoiser's two products alone": repeated(two_products),
            "the denoiser, sigma 0.002": repeated(lambda queries: denoiser(queries, queries.new_tensor(0.002))),
            "the denoiser, sigma 80": repeated(lambda queries: denoiser(80 * queries, queries.new_tensor(80.0))),
        }
        loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
        times = compare(contenders, loader, rounds=arguments.rounds)
    print(f"### The optimal denoiser of {DATA:,} x {PIXELS}, float64\n")
    print_table(times, baseline=PRODUCT, targets={name: 1 / RATE for name in contenders if "sigma" in name})
    best = {name: min(cpu for _, cpu in own) for name, own in times.items()}
    print(f"Best rounds, by processor time: {PRODUCT} runs at {2 * side**2 * inner / best[PRODUCT] / 1e9:.1f} GFLOP/s;")
    print("; ".join(f"{name} at {best[PRODUCT] / best[name]:.0%} of that" for name in list(contenders)[1:]) + ".")


if __name__ == "__main__":
    main()
