"""Golden adapter of Alignahead++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.graph_networks import edges_of
from stillroom.graphs.online.alignahead_pp import alignahead_pp_loss

SYSTEM = "alignahead_pp"


def loss(case: Any) -> dict[str, Tensor]:
    about = case.hyperparameters
    layers = range(about["num_layers"])
    leaves = {f"student.{layer}": case.inputs[f"student.{layer}"].clone().requires_grad_() for layer in layers}
    leaves |= {f"aux_logits.{layer}": case.inputs[f"aux_logits.{layer}"].clone().requires_grad_() for layer in layers}
    leaves["logits"] = case.inputs["logits"].clone().requires_grad_()
    rows = case.inputs["train_mask"].nonzero()[:, 0]
    parts = alignahead_pp_loss(
        [leaves[f"student.{layer}"] for layer in layers],
        [[case.inputs[f"peer.{j}.{layer}"] for layer in layers] for j in range(about["num_students"] - 1)],
        leaves["logits"][rows],
        [leaves[f"aux_logits.{layer}"][rows] for layer in layers],
        case.inputs["labels"][rows],
        edges_of(case.inputs),
        **{
            name: about[name] for name in ("structure_weight", "feature_weight", "aux_weight", "shift", "wrap", "scale")
        },
    )
    gradients = torch.autograd.grad(parts["loss"], list(leaves.values()), allow_unused=True)
    outputs = {
        f"grad.{name}": torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    named = {"cls_loss": "labels", "aux_loss": "aux", "structure_loss": "structure", "feature_loss": "features"}
    return outputs | {"loss": parts["loss"]} | {name: parts[ours] for name, ours in named.items()}


ADAPTERS = {"alignahead_pp_loss": loss}
