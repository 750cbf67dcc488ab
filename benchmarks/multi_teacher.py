"""Several teachers of uneven quality on CIFAR-10, and what one that is confidently wrong does to each method.

    python benchmarks/multi_teacher.py --out runs/multi-teacher

Teachers are trained networks of ``cifar10-resnets`` (STILLROOM_DATA): resnet20 and resnet56 adapted to the JPEG images,
a resnet44 trained on other images and so some points worse, and, in the second table, a copy of the first whose
classifier's rows are permuted. Both tables are `stillroom bench` runs, so a killed study goes on where it stood.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.distillation.bench import bench
from stillroom.distillation.multi_teacher.corrupt import corrupted
from stillroom.distillation.networks import load_network
from stillroom.models.store import save_model
from stillroom.reports.tables import markdown
from stillroom.training.recipe import PRESETS

TEACHERS = ("resnet20-jpeg", "resnet56-jpeg", "resnet44")
METHODS = ("alone", "kd", "aver", "ebkd", "aekd", "fitnet_mkd", "camkd", "mmkd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--fraction", type=float, default=0.03, help="share of the 50,000 training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--groups", default="without,with", help="the corrupted teacher")
    asked = parser.parse_args()
    root = data_root()
    if root is None:
        sys.exit("no data sets here: name their folder in STILLROOM_DATA")
    folder = root / "cifar10-resnets"
    teachers = [f"{name.removesuffix('-jpeg')}_a@{folder / name}.safetensors" for name in TEACHERS]
    # As many views as epochs: nothing repeats, and methods on logits share what the teachers said of them.
    data = DataOptions(name="cifar10", fraction=asked.fraction, views=asked.epochs)
    bad = asked.out / "corrupted"
    if not (bad / "model.json").is_file():
        network = corrupted(load_network(teachers[0], load_data(data), normalisation="imagenet"), seed=0)
        save_model(bad, network.model, network.card)
    recipe = replace(PRESETS["quick"], epochs=asked.epochs)
    groups = {"without": teachers, "with": [*teachers, str(bad)]}
    for name in asked.groups.split(","):
        group = groups[name]
        place = asked.out / name
        done = bench(
            methods=asked.methods.split(","),
            seeds=[int(seed) for seed in asked.seeds.split(",")],
            student=asked.student,
            teacher=group,
            data=data,
            recipe=recipe,
            teacher_normalisation="imagenet",
            teacher_cache=str(asked.out / "cache"),
            out=place,
            resume=place.is_dir(),
        )
        print(f"## {name} the corrupted teacher\n")
        for table in done.tables:
            print(markdown(table) + "\n", flush=True)


if __name__ == "__main__":
    main()
