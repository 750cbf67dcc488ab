"""The losses on logits written down a second time from the specification, with loops and sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Options = dict[str, Any]


def softmax(z: Tensor) -> Tensor:
    e = (z - z.max()).exp()
    return e / e.sum()


def log_softmax(z: Tensor) -> Tensor:
    return z - z.max() - (z - z.max()).exp().sum().log()


def kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return sum((p[k] * (log_p[k] - log_q[k]) for k in range(len(p)) if p[k] > 0), torch.zeros((), dtype=p.dtype))


def standard(z: Tensor) -> Tensor:
    mean = z.sum() / len(z)
    return (z - mean) / (1e-7 + (((z - mean) ** 2).sum() / (len(z) - 1)).sqrt())


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() / len(values)


def kd(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    return (
        t
        * t
        * mean(
            [kl(softmax(b / t), log_softmax(b / t), log_softmax(a / t)) for a, b in zip(student, teacher, strict=True)]
        )
    )


def kd_kl(x: Tensors, o: Options) -> Tensors:
    s, t = x["logits_student"], x["logits_teacher"]
    if o["standardise"]:
        s, t = torch.stack([standard(z) for z in s]), torch.stack([standard(z) for z in t])
    return {"loss": kd(s, t, o["temperature"])}


def logits_matching(x: Tensors, o: Options) -> Tensors:
    rows = []
    for s, t in zip(x["logits_student"], x["logits_teacher"], strict=True):
        rows.append((((s - s.mean()) - (t - t.mean())) ** 2).sum() / (2 * len(s)))
    return {"loss": mean(rows), "kd_loss_high_T": kd(x["logits_student"], x["logits_teacher"], o["high_temperature"])}


def output_regularisation(x: Tensors, o: Options) -> Tensors:
    a, e = o["alpha"], o["epsilon"]
    ce, h, ls, mixed, ht = [], [], [], [], []
    for s, t, y in zip(x["logits_student"], x["logits_teacher"], x["labels"], strict=True):
        log_p, p_t, one = log_softmax(s), softmax(t), torch.eye(len(s), dtype=s.dtype)[y]
        ce.append(-log_p[y])
        h.append(-(log_p.exp() * log_p).sum())
        ht.append(-(p_t * p_t.log()).sum())
        ls.append(-(((1 - e) * one + e / len(s)) * log_p).sum())
        mixed.append(-(((1 - a) * one + a * p_t) * log_p).sum())
    return {
        "cross_entropy": mean(ce),
        "entropy": mean(h),
        "label_smoothing": mean(ls),
        "confidence_penalty": mean(ce) - o["entropy_weight"] * mean(h),
        "kd_T1": (1 - a) * mean(ce) + a * kd(x["logits_student"], x["logits_teacher"], 1.0),
        "mixed_target_ce": mean(mixed),
        "teacher_entropy": mean(ht),
    }


def binary(log_p: Tensor, k: int) -> Tensor:
    return torch.stack((log_p[k], torch.cat((log_p[:k], log_p[k + 1 :])).logsumexp(0)))


def confidence(s: Tensor, t: Tensor, i: int, j: int, temp: float) -> Tensor:
    a, b = binary(log_softmax(s / temp), i), binary(log_softmax(t / temp), j)
    return temp**2 * kl(b.exp(), b, a)


def without(s: Tensor, t: Tensor, keep: Tensor, temp: float) -> Tensor:
    if not keep.any():
        return 0 * s.sum()
    s, t = s[keep] / temp, t[keep] / temp
    return temp**2 * kl(softmax(t), log_softmax(t), log_softmax(s))


def pairs(x: Tensors, o: Options) -> list[tuple[Tensor, Tensor, int]]:
    rows = zip(x["logits_student"], x["logits_teacher"], x["labels"].tolist(), strict=True)
    return [(standard(s), standard(t), y) if o["standardise"] else (s, t, y) for s, t, y in rows]


def dkd(x: Tensors, o: Options) -> Tensors:
    rows, temp = pairs(x, o), o["temperature"]
    tckd = mean([confidence(s, t, y, y, temp) for s, t, y in rows])
    nckd = mean([without(s, t, torch.arange(len(s)) != y, temp) for s, t, y in rows])
    return {"loss_tckd": tckd, "loss_nckd": nckd, "loss": o["alpha"] * tckd + o["beta"] * nckd}


def rld(x: Tensors, o: Options) -> Tensors:
    rows = pairs(x, o)
    scd = mean([confidence(s, t, y, t.tolist().index(t.max()), o["alpha_temperature"]) for s, t, y in rows])
    mcd = mean([without(s, t, t < t[y], o["temperature"]) for s, t, y in rows])
    mask = torch.stack([t >= t[y] for _, t, y in rows]).to(torch.uint8)
    return {"mask": mask, "loss_scd": scd, "loss_mcd": mcd, "loss": o["alpha"] * scd + o["beta"] * mcd}


def teacher_correction(x: Tensors, o: Options) -> Tensors:
    swapped, own, ce, raw, prob = x["logits_teacher"].clone(), x["logits_student"].detach().clone(), [], [], []
    for b, y in enumerate(x["labels"].tolist()):
        s, t = x["logits_student"][b], x["logits_teacher"][b]
        m = t.tolist().index(t.max())
        swapped[b, m], swapped[b, y] = t[y].item(), t[m].item()
        own[b, y] = own[b, y] + s.detach().max()
        if m == y:
            ce.append(-log_softmax(s)[y])
            raw.append(((s - t) ** 2).mean())
        else:
            p = softmax(t)
            beta = o["eta"] / (p.max() - p[y] + 1)
            q = beta * p + (1 - beta) * torch.eye(len(t), dtype=t.dtype)[y]
            prob.append(((softmax(s) - q) ** 2).mean())
    revision = 0 * x["logits_student"].sum()
    if ce:
        revision = revision + mean(ce) + o["lambda1"] * mean(raw)
    if prob:
        revision = revision + o["lambda2"] * mean(prob)
    return {
        "swapped_teacher": swapped,
        "loss_swap": kd(x["logits_student"], swapped, o["temperature"]),
        "loss_rc": kd(x["logits_student"], own, o["temperature"]),
        "loss_revision": revision,
    }
