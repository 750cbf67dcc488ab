"""Measure the six trained CIFAR-10 networks on the JPEG test images and set them beside what their README records.

    python benchmarks/trained_networks.py

The data sets lie where STILLROOM_DATA says (default ../shared/data). The accuracies are those of float32 on one thread.
"""

from __future__ import annotations

import sys

import torch

from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.distillation.evaluate import evaluate
from stillroom.reports.tables import Column, Table, markdown

# Top-1 in percent on the JPEG test images, from the README of cifar10-resnets.
RECORDED = {
    "resnet20": 81.03,
    "resnet32": 82.56,
    "resnet44": 82.67,
    "resnet56": 83.20,
    "resnet20-jpeg": 88.15,
    "resnet56-jpeg": 90.02,
}
COLUMNS = [
    Column("weights"),
    Column("recorded [%]", ".2f"),
    Column("measured [%]", ".2f"),
    Column("cross-entropy", ".4f"),
    Column("parameters", ",d"),
    Column("MFLOPs", ".1f"),
]


def main() -> None:
    torch.set_num_threads(1)
    root = data_root()
    if root is None:
        sys.exit("no data sets here: name their folder in STILLROOM_DATA")
    data = load_data(DataOptions(name="cifar10"))
    rows = []
    for name, recorded in RECORDED.items():
        spec = f"{name.removesuffix('-jpeg')}_a@{root / 'cifar10-resnets' / name}.safetensors"
        found = evaluate(spec, data, "imagenet", device="cpu")
        cost = (int(found["parameters"]), found["flops"] / 1e6)
        rows.append([f"{name}.safetensors", recorded, found["accuracy"], found["cross_entropy"], *cost])
        print(f"{name}: {found['accuracy']:.2f} %, recorded {recorded:.2f} %", file=sys.stderr, flush=True)
    print(markdown(Table(COLUMNS, rows)))


if __name__ == "__main__":
    main()
