"""The methods on feature maps written down a second time from the specification, with loops and sums."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distillation.naive_logits import Options, Tensors, kd, log_softmax, mean, softmax


def pool(x: Tensor, n: int) -> Tensor:
    h = x.shape[-1]
    bounds = [(i * h // n, -(-(i + 1) * h // n)) for i in range(n)]
    return torch.stack([torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in bounds], -1) for a, b in bounds], -2)


def smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    n = min(a.shape[-1], b.shape[-1])
    return pool(a, n), pool(b, n)


def bn(x: Tensor, p: Tensors, name: str, training: bool, after: Tensors | None = None) -> Tensor:
    shape = (1, -1) + (1,) * (x.ndim - 2)
    axes = (0, *range(2, x.ndim))
    mu, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if training:
        n = x.numel() // x.shape[1]
        m, v = x.mean(axes), x.var(axes, unbiased=False)
        if after is not None:
            after[f"after.{name}.running_mean"] = 0.9 * mu + 0.1 * m
            after[f"after.{name}.running_var"] = 0.9 * var + 0.1 * v * n / (n - 1)
        mu, var = m, v
    x = (x - mu.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    return x * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, stride: int = 1, pad: int = 0) -> Tensor:
    return F.conv2d(x, w, b, stride=stride, padding=pad)


def under(x: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): v for n, v in x.items() if n.startswith(prefix)}


def count(x: Tensors, prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in x if n.startswith(prefix)})


def simkd(x: Tensors, o: Options) -> Tensors:
    p, after = under(x, "param."), {}
    s, t = smaller(x["feat_student"], x["feat_teacher"])
    s = bn(conv(s, p["conv1.weight"]), p, "bn1", o["training"], after).relu()
    s = bn(conv(s, p["conv2.weight"], pad=1), p, "bn2", o["training"], after).relu()
    s = bn(conv(s, p["conv3.weight"]), p, "bn3", o["training"], after).relu()
    logits = s.mean((2, 3)) @ p["classifier.weight"].T + p["classifier.bias"]
    loss = ((s - t) ** 2).mean()
    return {"feat_student_projected": s, "feat_teacher_aligned": t, "logits": logits, "loss": loss, **after}


def semckd(x: Tensors, o: Options) -> Tensors:
    S, N, B = count(x, "feat_student."), count(x, "feat_teacher."), o["batch_size"]

    def embed(f: Tensor, p: Tensors) -> Tensor:
        f = f.reshape(B, -1)
        e = (f @ f.T @ p["fc1.weight"].T + p["fc1.bias"]).relu() @ p["fc2.weight"].T + p["fc2.bias"]
        return e / (e**2).sum(1, keepdim=True).sqrt()

    q = [embed(x[f"feat_student.{i}"], under(x, f"param.query.{i}.")) for i in range(S)]
    k = [embed(x[f"feat_teacher.{j}"], under(x, f"param.key.{j}.")) for j in range(N)]
    att = torch.stack(
        [
            torch.stack(
                [softmax(torch.stack([(q[i][b] * k[j][b]).sum() for j in range(N)]) / o["soft"]) for i in range(S)]
            )
            for b in range(B)
        ]
    )
    rows = []
    for i in range(S):
        row = []
        for j in range(N):
            p = under(x, f"param.regressor.{i}.{j}.")
            s, t = smaller(x[f"feat_student.{i}"], x[f"feat_teacher.{j}"])
            s = bn(conv(s, p["conv1.weight"]), p, "bn1", o["training"]).relu()
            s = bn(conv(s, p["conv2.weight"], pad=1), p, "bn2", o["training"]).relu()
            row.append(((conv(s, p["conv3.weight"]) - t) ** 2).mean((1, 2, 3)))
        rows.append(torch.stack(row, 1))
    d = torch.stack(rows, 1)
    return {"attention": att, "pair_loss": d, "loss": (att * d).sum() / (B * S)}


def dskd(x: Tensors, o: Options) -> Tensors:
    n, T = count(x, "aux_logits."), o["temperature"]
    layer_kd = torch.stack([kd(x[f"aux_logits.{i}"], x["logits_teacher"], T) for i in range(n)])
    feat = torch.stack([((x[f"aux_feat.{i}"] - x["feat_teacher"]) ** 2).mean() for i in range(n)])
    L = layer_kd + o["gamma"] * feat
    w = torch.full((n,), 1 / n, dtype=L.dtype)
    if o["allocation"] == "softmax":
        w = softmax(L.detach())
    elif o["allocation"] == "proportional" and L.detach().sum() > 1e-12:
        w = L.detach() / L.detach().sum()
    shallow = (w * L).sum()
    ce = mean([-log_softmax(s)[y] for s, y in zip(x["logits_student"], x["labels"], strict=True)])
    total = ce + o["alpha"] * kd(x["logits_student"], x["logits_teacher"], T) + o["beta"] * shallow
    return {"layer_kd": layer_kd, "layer_feat": feat, "layer_weight": w, "loss_shallow": shallow, "loss": total}


def fitnet(x: Tensors, o: Options) -> Tensors:
    s, t, p = x["feat_student"], x["feat_teacher"], under(x, "param.")
    h, g, w, b = s.shape[-1], t.shape[-1], p["conv.weight"], p["conv.bias"]
    if h == 2 * g:
        r = conv(s, w, b, stride=2, pad=1)
    elif 2 * h == g:
        r = F.conv_transpose2d(s, w, b, stride=2, padding=1)
    elif h >= g:
        assert w.shape[-1] == 1 + h - g
        r = conv(s, w, b)
    else:
        r, t = conv(s, w, b, pad=1), pool(t, h)
    r = bn(r, p, "bn", o["training"]).relu()
    return {"feat_student_regressed": r, "feat_teacher_aligned": t, "loss": ((r - t) ** 2).mean()}


def attention_transfer(x: Tensors, o: Options) -> Tensors:
    layers = []
    for i in range(count(x, "feat_student.")):
        rows = []
        for s, t in zip(*smaller(x[f"feat_student.{i}"], x[f"feat_teacher.{i}"]), strict=True):
            a = [(f ** o["p"]).mean(0).flatten() for f in (s, t)]
            a = [v / max((v**2).sum().sqrt(), 1e-12) if v.any() else 0 * v for v in a]
            rows.append(((a[0] - a[1]) ** 2).mean())
        layers.append(mean(rows))
    return {"layer_loss": torch.stack(layers), "loss": torch.stack(layers).sum()}


def vid(x: Tensors, o: Options) -> Tensors:
    s, t = smaller(x["feat_student"], x["feat_teacher"])
    p = under(x, "param.")
    m = conv(conv(conv(s, p["conv1.weight"]).relu(), p["conv2.weight"]).relu(), p["conv3.weight"])
    v = ((1 + p["log_scale"].exp()).log() + o["eps"]).view(1, -1, 1, 1)
    start = torch.tensor([o["init_pred_var"] - o["eps"]], dtype=torch.float64).exp().sub(1).log()
    return {"init_log_scale": start.float(), "loss": (0.5 * ((m - t) ** 2 / v + v.log())).mean()}


def srrl(x: Tensors, o: Options) -> Tensors:
    p = under(x, "param.")
    r = bn(conv(x["feat_student"][:, :, None, None], p["conv.weight"]), p, "bn", o["training"]).relu()[:, :, 0, 0]
    logits = r @ p["classifier.weight"].T + p["classifier.bias"]
    f, g = ((r - x["feat_teacher"]) ** 2).mean(), ((logits - x["logits_teacher"]) ** 2).mean()
    return {"feat_student_projected": r, "logits": logits, "loss_feature": f, "loss_regression": g, "loss": f + g}


def hcl(students: list[Tensor], teachers: list[Tensor]) -> Tensor:
    total = 0
    for s, t in zip(students, teachers, strict=True):
        loss, weights, w = ((s - t) ** 2).mean(), 1.0, 1.0
        for size in (4, 2, 1):
            if size < s.shape[2]:
                w /= 2
                loss, weights = loss + w * ((pool(s, size) - pool(t, size)) ** 2).mean(), weights + w
        total = total + loss / weights
    return total


def reviewkd_hcl(x: Tensors, o: Options) -> Tensors:
    n = count(x, "feat_student.")
    return {"loss": hcl([x[f"feat_student.{i}"] for i in range(n)], [x[f"feat_teacher.{i}"] for i in range(n)])}


def nearest(x: Tensor, n: int) -> Tensor:
    at = [i * x.shape[-1] // n for i in range(n)]
    return x[:, :, at][:, :, :, at]


def reviewkd(x: Tensors, o: Options) -> Tensors:
    n = count(x, "feat_student.")
    s = [x[f"feat_student.{i}"] for i in range(n)] + [x["pooled_student"][:, :, None, None]]
    t = [x[f"feat_teacher.{i}"] for i in range(n)] + [x["pooled_teacher"][:, :, None, None]]
    out, fused = [], None
    for level in range(n, -1, -1):
        p = under(x, f"param.abf.{level}.")
        f = bn(conv(s[level], p["conv1.weight"]), p, "bn1", o["training"])
        if fused is not None:
            y = nearest(fused, f.shape[-1])
            a = 1 / (1 + (-conv(torch.cat((f, y), 1), p["att.weight"], p["att.bias"])).exp())
            f = a[:, 0:1] * f + a[:, 1:2] * y
        fused = nearest(f, t[level].shape[-1])
        out.append(bn(conv(fused, p["conv2.weight"], pad=1), p, "bn2", o["training"]))
    return {"loss": hcl(out[::-1], t)}
