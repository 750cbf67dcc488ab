"""What a distillation step costs beyond the networks: our loop against the bare sum written by hand.

    python benchmarks/step.py --pair resnet --method kd rld simkd

The bare sum is the teacher's forward pass without graph, the student's forward and backward pass and the optimiser's
step (for SimKD with its projector). It computes no loss, so it does not train anything; it is what no loop can beat.
It appears twice: with torch's fused SGD, as our loop uses it (the baseline, the stricter of the two), and with the SGD
torch chooses by itself.
"""

from __future__ import annotations

from _loops import PAIRS, Pair, bare_sum, distillation, make_pair, ours, plain_kd
from _rounds import TimedLoader, compare, environment, make_batches, print_table, rounds_parser

BARE = "bare sum"
TARGETS = {"resnet": {"ours": 1.03}, "toy": {"ours": 1.10}}


def main() -> None:
    parser = rounds_parser("Time a distillation step against the bare sum of its networks.")
    parser.add_argument("--pair", choices=PAIRS, default="resnet", help="teacher and student")
    parser.add_argument("--method", nargs="+", choices=("kd", "rld", "simkd"), default=["kd", "rld", "simkd"])
    arguments = parser.parse_args()
    if arguments.pair == "mlp" and "simkd" in arguments.method:
        parser.error("simkd matches feature maps, and the mlp pair has none; choose --method kd rld")
    device = environment(arguments)
    for method in arguments.method:

        def pair() -> Pair:
            return make_pair(arguments.pair, device)

        sizes = pair()
        batches = make_batches(8, shape=sizes.shape, batch=arguments.batch, classes=sizes.classes, device=device)
        contenders = {
            BARE: bare_sum(pair(), method, batches[0], fused=True),
            "bare sum, default SGD": bare_sum(pair(), method, batches[0], fused=False),
            "ours": ours(distillation(pair(), method, batches[0]), device),
        }
        if method == "kd":
            contenders["plain loop with the loss, default SGD"] = plain_kd(pair(), fused=False)
        loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
        print(f"### {method}, pair {arguments.pair}\n")
        times = compare(contenders, loader, rounds=arguments.rounds)
        print_table(times, baseline=BARE, targets=TARGETS.get(arguments.pair))


if __name__ == "__main__":
    main()
