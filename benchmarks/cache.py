"""What KD costs once the teacher's answers are cached: our loop with a cached teacher against the student alone.

    python benchmarks/cache.py --pair resnet

Both run through the same training loop; the student alone is trained on the labels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from _loops import PAIRS, distillation, make_pair, ours
from _rounds import TimedLoader, compare, environment, make_batches, print_table, rounds_parser

from stillroom.models.taps import Tapped
from stillroom.training.supervised import Supervised
from stillroom.training.teacher import LiveTeacher
from stillroom.training.teacher_cache import CachedTeacher, build_cache

ALONE = "student alone"


def main() -> None:
    parser = rounds_parser("Time KD from a teacher cache against training the student alone.")
    parser.add_argument("--pair", choices=PAIRS, default="resnet")
    arguments = parser.parse_args()
    device = environment(arguments)
    pair = make_pair(arguments.pair, device)
    batches = make_batches(8, shape=pair.shape, batch=arguments.batch, classes=pair.classes, device=device)
    live = LiveTeacher(Tapped(pair.teacher, pair.teacher.tap_paths(), {"pooled"})).to(device)
    with tempfile.TemporaryDirectory() as folder:
        cache = build_cache(live, lambda view: batches, len(batches) * arguments.batch, 1, Path(folder) / "cache")
        cached = CachedTeacher(cache).to(device)
        contenders = {
            ALONE: ours(Supervised(make_pair(arguments.pair, device).student), device),
            "KD, cached teacher": ours(
                distillation(make_pair(arguments.pair, device), "kd", batches[0], teacher=cached), device
            ),
            "KD, live teacher": ours(distillation(make_pair(arguments.pair, device), "kd", batches[0]), device),
        }
        loader = TimedLoader(batches, warm_up=arguments.warm_up, steps=arguments.steps)
        times = compare(contenders, loader, rounds=arguments.rounds)
    print(f"### KD, pair {arguments.pair}\n")
    print_table(times, baseline=ALONE, targets={"KD, cached teacher": 1.05})


if __name__ == "__main__":
    main()
