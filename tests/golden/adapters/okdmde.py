"""Golden adapters of the reconstructed feature fusion and classifier diversification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.online.okddip import PeerAttention
from stillroom.distillation.online.okdmde import FeatureFusion, cd_loss

SYSTEM = "okdmde"


def classifier_diversification(case: Any) -> dict[str, Tensor]:
    weights = case.inputs["classifier_weights"].clone().requires_grad_()
    loss = cd_loss(weights, mode=case.hyperparameters["mode"])
    return {"loss": loss, "grad.classifier_weights": torch.autograd.grad(loss, weights)[0]}


def ffm_targets(case: Any) -> dict[str, Tensor]:
    inputs = case.inputs
    maps, logits = (inputs[name].clone().requires_grad_() for name in ("peer_features", "peer_logits"))
    query, key = inputs["param.query_weight"], inputs["param.key_weight"]
    fusion = FeatureFusion(maps.shape[2], maps.shape[1]).to(maps.dtype)
    fusion.bn.eps = case.hyperparameters["bn_eps"]
    prefix = "param.fuse_"
    state = {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
    fusion.load_state_dict(state, strict=False)
    attention = PeerAttention(query.shape[1], factor=1).to(query.dtype)
    attention.query.weight, attention.key.weight = nn.Parameter(query.clone()), nn.Parameter(key.clone())
    weights, targets = attention(fusion(maps), logits.transpose(1, 2))
    targets = targets.transpose(1, 2)
    leaves = {
        "peer_features": maps,
        "peer_logits": logits,
        "query_weight": attention.query.weight,
        "key_weight": attention.key.weight,
        "fuse_conv.weight": fusion.conv.weight,
        "fuse_bn.weight": fusion.bn.weight,
        "fuse_bn.bias": fusion.bn.bias,
    }
    found = torch.autograd.grad((targets * inputs["cotangent"]).sum(), list(leaves.values()))
    gradients = {f"grad.{name}": gradient for name, gradient in zip(leaves, found, strict=True)}
    return {"fused": fusion.fuse(maps), "attention": weights, "targets": targets} | gradients


ADAPTERS = {"cd_loss": classifier_diversification, "ffm_targets": ffm_targets}
