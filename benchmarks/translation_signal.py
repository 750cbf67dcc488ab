"""How much of a small block can be told from the large block it was trained in the place of.

    python benchmarks/translation_signal.py --pairs runs/kt-mnist/pairs

A linear map is fitted by ridge regression on four fifths of the pairs and judged on the rest, once from weights to
weights as the translator does, once between composed kernels: ``conv2 ∘ conv1`` without what lies in between is a 5×5
kernel for each pair of input and output channel, which does not change when hidden channels are exchanged or rescaled.
R² is the share of the variance about the mean that is explained; at most 0 means nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from stillroom.distillation.translation.layout import to_tokens

STRENGTHS = (1e0, 1e1, 1e2, 1e3, 1e4)


def composed(conv1: Tensor, conv2: Tensor) -> Tensor:
    """Return the kernels [N, P, P, 5, 5] of the second convolution behind the first one."""
    count, middle, planes = conv1.shape[:3]
    # Every product of two kernels is a full convolution: the second, padded, with the first one mirrored.
    first = conv1.flip(-1, -2).reshape(-1, 1, 3, 3)
    second = conv2.permute(1, 0, 2, 3, 4)[:, :, :, None].expand(-1, -1, -1, planes, -1, -1)
    products = F.conv2d(F.pad(second.reshape(planes, -1, 3, 3), (2,) * 4), first, groups=len(first))
    return products.view(planes, count, middle, planes, 5, 5).sum(2).transpose(0, 1)


def explained(x: Tensor, y: Tensor) -> float:
    """Return R² on the last fifth of the pairs, for the best of several strengths of ridge regression."""
    kept = len(x) * 4 // 5
    mean_x, mean_y = x[:kept].flatten(0, -2).mean(0), y[:kept].flatten(0, -2).mean(0)
    a, b = (x[:kept] - mean_x).flatten(0, -2), (y[:kept] - mean_y).flatten(0, -2)
    c, d = (x[kept:] - mean_x).flatten(0, -2), (y[kept:] - mean_y).flatten(0, -2)
    ridge = torch.eye(a.shape[1], dtype=a.dtype) * a.var()
    scores = []
    for strength in STRENGTHS:
        fitted = torch.linalg.solve(a.T @ a + strength * ridge, a.T @ b)
        scores.append(1 - ((d - c @ fitted).square().sum() / d.square().sum()).item())
    return max(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of the pairs")
    shards = [load_file(file) for file in sorted(parser.parse_args().pairs.glob("train-*.safetensors"))]

    def read(size: str) -> tuple[Tensor, Tensor]:
        conv1, conv2 = (torch.cat([shard[f"{size}.{conv}.weight"] for shard in shards]) for conv in ("conv1", "conv2"))
        return conv1.double(), conv2.double()

    large, small = read("large"), read("small")
    print(f"{len(large[0])} pairs")
    print(f"weights to weights: R² {explained(to_tokens(*large).flatten(1), to_tokens(*small).flatten(1)):.3f}")
    kernels = [composed(*weights).flatten(1, 2).flatten(2) for weights in (large, small)]
    print(f"composed kernels:   R² {explained(*kernels):.3f}")


if __name__ == "__main__":
    main()
