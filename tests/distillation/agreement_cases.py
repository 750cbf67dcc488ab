"""Inputs for every golden function: shapes, sizes and hyperparameters beyond those of the golden files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Example = tuple[str, dict[str, Tensor], dict[str, Any]]

ROLES = ("student", "teacher")
GENERATOR = torch.Generator()


def randn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def randint(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=GENERATOR)


def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
    return {f"param.{name}.weight": randn(out, into), f"param.{name}.bias": randn(out)}


def norm(name: str, channels: int) -> dict[str, Tensor]:
    numbers = {"weight": 1 + randn(channels, scale=0.3), "bias": randn(channels, scale=0.3)}
    running = {"running_mean": randn(channels, scale=0.3), "running_var": 0.5 + randn(channels).abs()}
    return {f"param.{name}.{part}": value for part, value in (numbers | running).items()}


def maps(batch: int, **stages: list[tuple[int, int]]) -> dict[str, Tensor]:
    return {
        f"feat_{role}.{i}": randn(batch, channels, side, side)
        for role, sizes in stages.items()
        for i, (channels, side) in enumerate(sizes)
    }


def logits() -> Iterator[Example]:
    for batch, classes, scale in ((1, 2, 1.0), (5, 2, 3.0), (4, 3, 1.0), (3, 20, 2.0), (3, 10, 40.0)):
        pair = {f"logits_{role}": randn(batch, classes, scale=scale) for role in ROLES}
        teacher = pair["logits_teacher"]
        for labels in (randint(classes, batch), teacher.argmax(1), teacher.argmin(1)):
            named = pair | {"labels": labels}
            for temperature, standardise in itertools.product((0.5, 1.0, 4.0), (False, True)):
                how: dict[str, Any] = {"temperature": temperature, "standardise": standardise}
                yield "dkd", named, {"alpha": 1.0, "beta": 8.0} | how
                yield "rld", named, {"alpha": 2.0, "beta": 0.5, "alpha_temperature": 1.0} | how
                yield "rld", named, {"alpha": 1.0, "beta": 0.0, "alpha_temperature": 4.0} | how
            yield "dkd", named, {"alpha": 0.0, "beta": 2, "temperature": 4, "standardise": False}
            for lambda1, lambda2, eta in ((4.0, 1.0, 0.8), (0.0, 2.0, 0.3), (1.0, 0.0, 1.0)):
                weights = {"lambda1": lambda1, "lambda2": lambda2, "eta": eta}
                yield "teacher_correction", named, {"temperature": 2.0} | weights
        for temperature, standardise in itertools.product((0.5, 1.0, 4.0), (False, True)):
            yield "kd_kl", pair, {"temperature": temperature, "standardise": standardise}
        yield "logits_matching", pair, {"high_temperature": 10.0}
        for epsilon, weight, alpha in ((0.1, 0.1, 0.9), (0.0, 0.0, 0.0), (1.0, 2.0, 1.0)):
            shares = {"epsilon": epsilon, "entropy_weight": weight, "alpha": alpha}
            yield "output_regularisation", pair | {"labels": randint(classes, batch)}, shares


def ties() -> Iterator[Example]:
    teacher = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 1.0, 0.0]], dtype=torch.float64)
    for labels in ([0, 1, 2], [3, 2, 1], [2, 0, 0]):
        tied = {"logits_student": randn(3, 4), "logits_teacher": teacher, "labels": torch.tensor(labels)}
        for standardise in (False, True):
            how = {"alpha": 1.0, "beta": 8.0, "temperature": 2.0, "standardise": standardise}
            yield "dkd", tied, how
            yield "rld", tied, how | {"alpha_temperature": 1.0}
        yield "teacher_correction", tied, {"temperature": 4.0, "lambda1": 4.0, "lambda2": 1.0, "eta": 0.8}


def single_maps() -> Iterator[Example]:
    for batch, (c_s, h_s), (c_t, h_t), factor, training in (
        (4, (6, 4), (8, 4), 2, True),
        (1, (3, 2), (5, 4), 3, True),
        (2, (4, 6), (9, 4), 4, False),
        (3, (4, 1), (8, 1), 8, True),
        (1, (4, 1), (8, 3), 2, False),
    ):
        m = c_t // factor
        weights = {"conv1": (m, c_s, 1, 1), "conv2": (m, m, 3, 3), "conv3": (c_t, m, 1, 1)}
        yield (
            "simkd",
            {"feat_student": randn(batch, c_s, h_s, h_s), "feat_teacher": randn(batch, c_t, h_t, h_t).relu()}
            | {f"param.{name}.weight": randn(*shape) for name, shape in weights.items()}
            | norm("bn1", m) | norm("bn2", m) | norm("bn3", c_t) | linear("classifier", 5, c_t),
            {"factor": factor, "training": training},
        )  # fmt: skip
    for h_s, h_t in ((8, 4), (3, 6), (4, 4), (5, 3), (3, 7), (2, 1), (1, 2), (1, 1), (1, 5), (4, 6)):
        kernel = 3 if h_s == 2 * h_t else 4 if 2 * h_s == h_t else 1 + h_s - h_t if h_s >= h_t else 3
        shape = (3, 5) if 2 * h_s == h_t else (5, 3)
        pair = {"feat_student": randn(3, 3, h_s, h_s), "feat_teacher": randn(3, 5, h_t, h_t)}
        conv = {"param.conv.weight": randn(*shape, kernel, kernel), "param.conv.bias": randn(5)}
        for training in (True, False):
            yield "fitnet", pair | conv | norm("bn", 5), {"training": training}
    for h_s, h_t, variance, eps in ((3, 3, 5.0, 1e-5), (6, 4, 1.0, 1e-3), (2, 5, 0.1, 1e-5), (1, 1, 20, 1e-5)):
        widths = {"conv1": (5, 4), "conv2": (5, 5), "conv3": (5, 5)}
        yield (
            "vid",
            {"feat_student": randn(2, 4, h_s, h_s), "feat_teacher": randn(2, 5, h_t, h_t)}
            | {f"param.{name}.weight": randn(*width, 1, 1) for name, width in widths.items()}
            | {"param.log_scale": randn(5, scale=3)},
            {"init_pred_var": variance, "eps": eps},
        )
    for batch, classes, training in ((1, 3, False), (6, 2, True), (5, 30, False)):
        pair = {"feat_student": randn(batch, 4), "feat_teacher": randn(batch, 6)}
        weights_of = {"param.conv.weight": randn(6, 4, 1, 1)} | norm("bn", 6) | linear("classifier", classes, 6)
        yield "srrl", pair | weights_of | {"logits_teacher": randn(batch, classes)}, {"training": training}


def stages() -> Iterator[Example]:
    for batch, student, teacher, factor, soft, training in (
        (4, [(3, 4)], [(4, 4), (3, 2)], 4, 1.0, True),
        (9, [(3, 4), (2, 3)], [(2, 5), (4, 2), (3, 1)], 4, 2.0, False),
        (6, [(3, 4), (2, 2)], [(2, 4)], 2, 0.5, True),
    ):
        width = batch // factor
        x = maps(batch, student=student, teacher=teacher)
        for name, count in (("query", len(student)), ("key", len(teacher))):
            for i in range(count):
                x |= linear(f"{name}.{i}.fc1", 2 * width, batch) | linear(f"{name}.{i}.fc2", width, 2 * width)
                x[f"param.{name}.{i}.fc1.bias"].abs_()  # keeps the embedding of one entry off its sign change
        for (i, (c, _)), (j, (d, _)) in itertools.product(enumerate(student), enumerate(teacher)):
            shapes = {"conv1": (2 * d, c, 1, 1), "conv2": (2 * d, 2 * d, 3, 3), "conv3": (d, 2 * d, 1, 1)}
            x |= {f"param.regressor.{i}.{j}.{name}.weight": randn(*s, scale=0.3) for name, s in shapes.items()}
            x |= norm(f"regressor.{i}.{j}.bn1", 2 * d) | norm(f"regressor.{i}.{j}.bn2", 2 * d)
        yield "semckd", x, {"soft": soft, "batch_size": batch, "embed_factor": factor, "training": training}
    for n, (alpha, beta, gamma), allocation in itertools.product(
        (1, 3), ((1.0, 1.0, 1.0), (0.0, 2.0, 0.0), (0.5, 0.0, 3.0)), ("proportional", "softmax", "uniform")
    ):
        x = {f"logits_{role}": randn(3, 4) for role in ROLES}
        x |= {"labels": randint(4, 3), "feat_teacher": randn(3, 3, 2, 2)}
        x |= {f"aux_logits.{i}": randn(3, 4) for i in range(n)} | {f"aux_feat.{i}": randn(3, 3, 2, 2) for i in range(n)}
        weights = {"alpha": alpha, "beta": beta, "gamma": gamma}
        yield "dskd", x, weights | {"temperature": 2.0, "allocation": allocation}
        perfect = x | {f"aux_logits.{i}": x["logits_teacher"] for i in range(n)}
        perfect |= {f"aux_feat.{i}": x["feat_teacher"] for i in range(n)}
        yield "dskd", perfect, weights | {"temperature": 4.0, "allocation": allocation}
    for p, student, teacher in (
        (2, [(3, 6), (3, 2)], [(4, 3), (4, 4)]),
        (1, [(2, 3)], [(2, 3)]),
        (3, [(3, 4), (3, 1), (3, 5)], [(4, 3), (4, 1), (4, 2)]),
    ):
        yield "attention_transfer", maps(2, student=student, teacher=teacher), {"p": p}
    for sides in ([1], [2], [3], [4], [5], [8, 4, 1], [7, 9, 2]):
        levels = [(3, side) for side in sides]
        yield "reviewkd_hcl", maps(2, student=levels, teacher=levels), {}
    for batch, student, teacher, mid, training in (
        (3, [(3, 8), (4, 4)], [(2, 8), (4, 4)], 5, True),
        (1, [(3, 4), (4, 2)], [(2, 8), (3, 4)], 4, False),
        (2, [(2, 8), (3, 4), (4, 2)], [(3, 7), (2, 5), (2, 2)], 3, False),
        (3, [(2, 3)], [(2, 5)], 1, True),
    ):
        x = maps(batch, student=student, teacher=teacher) | {f"pooled_{role}": randn(batch, 6) for role in ROLES}
        for level, ((c, _), (d, _)) in enumerate(zip([*student, (6, 1)], [*teacher, (6, 1)], strict=True)):
            x |= {f"param.abf.{level}.conv1.weight": randn(mid, c, 1, 1)}
            x |= {f"param.abf.{level}.conv2.weight": randn(d, mid, 3, 3)}
            x |= norm(f"abf.{level}.bn1", mid) | norm(f"abf.{level}.bn2", d)
            if level < len(student):
                x |= {f"param.abf.{level}.att.weight": randn(2, 2 * mid, 1, 1)}
                x |= {f"param.abf.{level}.att.bias": randn(2)}
        yield "reviewkd", x, {"training": training, "mid_channels": mid}


def relations() -> Iterator[Example]:
    for batch, student, teacher in ((1, (4, 3, 3), (5, 2, 2)), (2, (4, 1, 1), (5, 2, 2)), (6, (7,), (3,))):
        yield (
            "similarity_preserving",
            {"feat_student": randn(batch, *student), "feat_teacher": randn(batch, *teacher)},
            {},
        )
    for batch, d_s, d_t, scale in ((2, 4, 3, 1.0), (6, 5, 8, 1.0), (5, 3, 3, 1e4), (4, 6, 6, 1e-2)):
        x = {"feat_student": randn(batch, d_s, scale=scale), "feat_teacher": randn(batch, d_t, scale=scale)}
        for eps in (1e-7, 1e-4):
            yield "pkt", x, {"eps": eps}
        for eps, squared, distance, angle in ((1e-12, False, 25, 50), (1e-12, True, 1.0, 2.0), (1e-2, False, 0, 50)):
            weights = {"distance_weight": distance, "angle_weight": angle}
            yield "rkd", x, weights | {"eps": eps, "squared": squared}
        yield "correlation_congruence", {f"embed_{role}": randn(batch, d_s, scale=scale) for role in ROLES}, {}
    twins = {"feat_student": randn(5, 4), "feat_teacher": randn(5, 3)}
    twins["feat_student"][1], twins["feat_teacher"][3] = twins["feat_student"][0], twins["feat_teacher"][2]
    yield "rkd", twins, {"distance_weight": 25, "angle_weight": 50, "eps": 1e-12, "squared": False}
    for batch, n, width, knn, count, source, momentum, smooth, temperature in (
        (8, 30, 4, 4, 5, "own", 0.9, 0.75, 0.07),
        (8, 30, 4, 4, 5, "cross", 0.5, 0.5, 0.2),
        (1, 9, 3, 1, 1, "own", 0.9, 0.75, 0.07),
        (5, 20, 6, 8, 6, "cross", 0.9, 0.75, 0.07),
        (8, 12, 5, 8, 40, "own", 0.9, 0.0, 1.0),
        (3, 50, 64, 2, 1, "own", 1.0, 1.0, 0.07),
    ):
        x = contrast(batch, n, width) | {"negatives": randint(n, batch, count)}
        for role in ROLES:
            x |= {f"logits_{role}": randn(batch, 5, scale=2)} | linear(f"gnn_{role}", width, 2 * width)
        momenta = {"memory_momentum": momentum, "smooth_momentum": smooth}
        how = {"knn": knn, "num_negatives": count, "temperature": temperature, "negatives": source} | momenta
        yield "hkd", x, how
        x["logits_student"][-1] = x["logits_student"][0]  # a tie
        yield "hkd", x, how
    for batch, n, width, count, temperature, momentum, z_student, z_teacher in (
        (4, 20, 4, 6, 0.07, 0.5, -1.0, -1.0),
        (1, 12, 6, 5, 0.2, 0.5, 3.0, 7.0),
        (4, 20, 4, 6, 0.1, 0.9, -1.0, 50.0),
        (3, 9, 3, 40, 0.07, 0.0, -1.0, -1.0),
        (2, 500, 64, 1, 1.0, 1.0, 2e5, -1.0),
    ):
        x = contrast(batch, n, width)
        x["contrast_index"] = torch.cat((x["index"][:, None], randint(n, batch, count)), 1)
        x |= {"z_student": torch.tensor(z_student).double(), "z_teacher": torch.tensor(z_teacher).double()}
        yield "crd", x, {
            "num_data": n, "num_negatives": count, "temperature": temperature, "momentum": momentum, "eps": 1e-7
        }  # fmt: skip


def contrast(batch: int, n: int, width: int) -> dict[str, Tensor]:
    x = {"index": torch.randperm(n, generator=GENERATOR)[:batch]}
    for role, features in (("student", 5), ("teacher", 7)):
        x |= {f"feat_{role}": randn(batch, features), f"memory_{role}": randn(n, width, scale=0.5)}
        x |= linear(f"embed_{role}", width, features)
    return x


def examples() -> Iterator[Example]:
    GENERATOR.manual_seed(0)
    for family in (logits, ties, single_maps, stages, relations):
        yield from family()
