"""The relational and contrastive methods written down a second time from the specification, with loops and sums."""

from __future__ import annotations

import torch
from torch import Tensor

from distillation.naive_logits import Options, Tensors, log_softmax, mean, softmax
from distillation.naive_maps import under


def unit(v: Tensor) -> Tensor:
    return v / (v**2).sum(-1, keepdim=True).sqrt()


def embeddings(x: Tensors, name: str) -> Tensor:
    p = under(x, f"param.embed_{name}.")
    return unit(x[f"feat_{name}"] @ p["weight"].T + p["bias"])


def moved(memory: Tensor, index: Tensor, e: Tensor, momentum: float) -> Tensor:
    memory = memory.clone()
    for b, i in enumerate(index.tolist()):
        memory[i] = unit(momentum * memory[i] + (1 - momentum) * e[b].detach())
    return memory


def hkd(x: Tensors, o: Options) -> Tensors:
    e = {r: embeddings(x, r) for r in ("student", "teacher")}
    m = {r: x[f"memory_{r}"] for r in e}
    index, neg, B = x["index"].tolist(), x["negatives"].tolist(), len(x["index"])
    source = {"student": "student", "teacher": "teacher"}
    if o["negatives"] == "cross":
        source = {"student": "teacher", "teacher": "student"}
    other = {"student": "teacher", "teacher": "student"}
    out: Tensors = {}

    def nce(anchor: Tensor, positive: Tensor, memory: Tensor) -> Tensor:
        rows = []
        for b in range(B):
            z = [anchor[b] @ positive[b]] + [anchor[b] @ memory[i] for i in neg[b]]
            rows.append(-log_softmax(torch.stack(z) / o["temperature"])[0])
        return mean(rows)

    loss = sum(nce(e[r], m[other[r]][index], m[source[r]]) for r in e)
    if o["knn"] <= B:
        g = {}
        for r in e:
            p = [softmax(z) for z in x[f"logits_{r}"].detach()]
            near = []
            for a in range(B):
                dist = [1 - (p[a] @ p[b]) / max(p[a].norm() * p[b].norm(), 1e-7) for b in range(B)]
                dist[a] = -1
                near.append(sorted(sorted(range(B), key=lambda b: (float(dist[b]), b))[: o["knn"]]))
            out[f"neighbours_{r}"] = torch.tensor(near)
            w = under(x, f"param.gnn_{r}.")
            ehat = torch.stack([e[r][near[a]].mean(0) for a in range(B)])
            g[r] = unit(torch.cat((e[r], ehat), 1) @ w["weight"].T + w["bias"])
            out[f"graph_{r}"] = g[r]
        s = o["smooth_momentum"]
        smooth = {r: unit(s * m[r][index] + (1 - s) * g[r].detach()) for r in e}
        loss = loss + sum(nce(g[r], smooth[other[r]], m[source[r]]) for r in e)
    out["loss"] = loss
    for r in e:
        out[f"memory_{r}"] = moved(m[r], x["index"], e[r], o["memory_momentum"]) if o["knn"] <= B else m[r]
    return out


def crd(x: Tensors, o: Options) -> Tensors:
    e = {r: embeddings(x, r) for r in ("student", "teacher")}
    other = {"student": "teacher", "teacher": "student"}
    n, K, eps, c = o["num_data"], o["num_negatives"], o["eps"], x["contrast_index"]
    noise, loss, out = K / n, 0, {}
    for r in e:
        raw = torch.stack([(x[f"memory_{other[r]}"][c[b]] @ e[r][b] / o["temperature"]).exp() for b in range(len(c))])
        z = x[f"z_{r}"]
        z = z if z >= 0 else raw.detach().mean() * n
        q = raw / z
        rows = []
        for b in range(len(c)):
            value = (q[b, 0] / (q[b, 0] + noise + eps)).log()
            rows.append(value + sum((noise / (q[b, k] + noise + eps)).log() for k in range(1, K + 1)))
        loss = loss - mean(rows)
        out |= {f"z_{r}": z, f"embed_{r}": e[r]}
        out[f"memory_{r}"] = moved(x[f"memory_{r}"], x["index"], e[r], o["momentum"])
    return out | {"loss": loss}


def similarity_preserving(x: Tensors, o: Options) -> Tensors:
    g = []
    for r in ("student", "teacher"):
        f = x[f"feat_{r}"].flatten(1)
        gram = torch.stack([torch.stack([(a * b).sum() for b in f]) for a in f])
        g.append(gram / gram.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return {"loss": ((g[0] - g[1]) ** 2).sum() / len(g[0]) ** 2}


def pkt(x: Tensors, o: Options) -> Tensors:
    p = []
    for r in ("student", "teacher"):
        f = x[f"feat_{r}"]
        f = torch.stack([v / ((v**2).sum().sqrt() + o["eps"]) if v.any() else 0 * v for v in f])
        s = torch.stack([torch.stack([((a * b).sum() + 1) / 2 for b in f]) for a in f])
        p.append(s / s.sum(1, keepdim=True))
    return {"loss": (p[1] * ((p[1] + o["eps"]) / (p[0] + o["eps"])).log()).mean()}


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    d = (a - b).abs()
    return torch.where(d < 1, d * d / 2, d - 0.5).mean()


def distances(f: Tensor, eps: float, squared: bool) -> Tensor:
    rows = []
    for a in range(len(f)):
        row = []
        for b in range(len(f)):
            square = ((f[a] - f[b]) ** 2).sum().clamp_min(eps)
            row.append(0 * f.sum() if a == b else square if squared else square.sqrt())
        rows.append(torch.stack(row))
    d = torch.stack(rows)
    return d / d[d > 0].mean()


def angles(f: Tensor) -> Tensor:
    def u(i: int, j: int) -> Tensor:
        v = f[j] - f[i]
        return v / (v**2).sum().sqrt().clamp_min(1e-12) if v.any() else 0 * v

    every = range(len(f))
    return torch.stack([(u(i, j) * u(i, k)).sum() for i in every for j in every for k in every])


def rkd(x: Tensors, o: Options) -> Tensors:
    s, t, how = x["feat_student"], x["feat_teacher"], (o["eps"], o["squared"])
    ld, la = smooth_l1(distances(s, *how), distances(t, *how)), smooth_l1(angles(s), angles(t))
    return {"loss_distance": ld, "loss_angle": la, "loss": o["distance_weight"] * ld + o["angle_weight"] * la}


def correlation_congruence(x: Tensors, o: Options) -> Tensors:
    d = (x["embed_student"] - x["embed_teacher"]).abs()
    return {"loss": mean([(d[b] * d[b + 1]).sum() for b in range(len(d) - 1)])}
