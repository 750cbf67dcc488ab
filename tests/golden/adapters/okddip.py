"""Golden adapters of online distillation; the files keep peers on the last axis of logits, we on the second."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.online.clilr import clilr_loss, rescale_gradient
from stillroom.distillation.online.diversity import diversity
from stillroom.distillation.online.dml import dml_loss
from stillroom.distillation.online.independent import independent_loss
from stillroom.distillation.online.kl import kl_loss, mean_of_others
from stillroom.distillation.online.okddip import PeerAttention, okddip_loss
from stillroom.distillation.online.one import Gate, one_loss
from stillroom.distillation.online.rampup import consistency_weight

SYSTEM = "okddip"


def leaves(case: Any, *names: str) -> list[Tensor]:
    return [case.inputs[name].clone().requires_grad_() for name in names]


def peers_second(logits: Tensor) -> Tensor:
    return logits.transpose(1, 2)


def gradients(loss: Tensor, **leaves: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {f"grad.{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def weights_of(case: Any) -> dict[str, Any]:
    about = case.hyperparameters
    return {"temperature": about["temperature"], "alpha": about["alpha"], "weight": about["consistency_weight"]}


def attention_of(case: Any) -> PeerAttention:
    """The case's projections, whose height need not be the features' over a whole number."""
    query, key = case.inputs["param.query_weight"], case.inputs["param.key_weight"]
    attention = PeerAttention(query.shape[1], factor=1).to(query.dtype)
    attention.query.weight, attention.key.weight = nn.Parameter(query.clone()), nn.Parameter(key.clone())
    return attention


def kl(case: Any) -> dict[str, Tensor]:
    student, soft_target = leaves(case, "student_logits", "target_logits")
    loss = kl_loss(student, soft_target, temperature=case.hyperparameters["temperature"])
    return {"loss": loss} | gradients(loss, student_logits=student, target_logits=soft_target)


def peer_targets(case: Any) -> dict[str, Tensor]:
    features, logits = leaves(case, "peer_features", "peer_logits")
    module = attention_of(case)
    attention, targets = module(features, peers_second(logits))
    targets = peers_second(targets)
    product = (targets * case.inputs["cotangent"]).sum()
    found = gradients(
        product,
        peer_features=features,
        peer_logits=logits,
        query_weight=module.query.weight,
        key_weight=module.key.weight,
    )
    return {"attention": attention, "targets": targets} | found


def okddip_total_loss(case: Any) -> dict[str, Tensor]:
    logits, targets, leader = leaves(case, "peer_logits", "targets", "leader_logits")
    parts = okddip_loss(peers_second(logits), peers_second(targets), leader, case.inputs["labels"], **weights_of(case))
    outputs = {
        "loss": parts["loss"],
        "loss_ce_peers": parts["cross_entropy_peers"],
        "loss_kl_peers": parts["kl_peers"],
    }
    return outputs | gradients(parts["loss"], peer_logits=logits, targets=targets, leader_logits=leader)


def okddip_step(case: Any) -> dict[str, Tensor]:
    features, logits, leader = leaves(case, "peer_features", "peer_logits", "leader_logits")
    module, peers = attention_of(case), peers_second(logits)
    targets = module(features, peers).targets
    loss = okddip_loss(peers, targets, leader, case.inputs["labels"], **weights_of(case))["loss"]
    return {"loss": loss} | gradients(
        loss,
        peer_features=features,
        peer_logits=logits,
        leader_logits=leader,
        query_weight=module.query.weight,
        key_weight=module.key.weight,
    )


def gate_of(case: Any) -> Gate:
    inputs = case.inputs
    weight = inputs["param.gate_linear.weight"]
    gate = Gate(weight.shape[1], weight.shape[0]).to(weight.dtype)
    prefix = "param.gate_"
    state = {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
    gate.load_state_dict(state | {"bn.num_batches_tracked": gate.bn.num_batches_tracked})
    return gate.train(case.hyperparameters["training"])


def one_gate(case: Any) -> dict[str, Tensor]:
    return {"ensemble_logits": gate_of(case)(case.inputs["trunk"], peers_second(case.inputs["branch_logits"]))}


def one_step(case: Any) -> dict[str, Tensor]:
    trunk, logits = leaves(case, "trunk", "branch_logits")
    gate, peers = gate_of(case), peers_second(logits)
    ensemble = gate(trunk, peers)
    parts = one_loss(peers, ensemble, case.inputs["labels"], **weights_of(case))
    own = {f"gate_{name}": value for name, value in gate.named_parameters()}
    outputs = {
        "ensemble_logits": ensemble,
        "loss": parts["loss"],
        "loss_ce": parts["cross_entropy"],
        "loss_kl": parts["kl"],
    }
    return outputs | gradients(parts["loss"], trunk=trunk, branch_logits=logits, **own)


def clilr_step(case: Any) -> dict[str, Tensor]:
    trunk, offset = leaves(case, "trunk", "branch_offset")
    members = case.hyperparameters["num_branches"]
    shared = rescale_gradient(trunk, 1 / members) if case.hyperparameters["rescale_trunk_gradient"] else trunk
    logits = offset + torch.einsum("bd,mkd->bkm", shared.mean((2, 3)), case.inputs["branch_weight"])
    parts = clilr_loss(peers_second(logits), case.inputs["labels"], **weights_of(case))
    outputs = {
        "branch_logits": logits,
        "targets": peers_second(mean_of_others(peers_second(logits))),
        "loss": parts["loss"],
        "loss_ce": parts["cross_entropy"],
        "loss_kl": parts["kl"],
    }
    return outputs | gradients(parts["loss"], trunk=trunk, branch_offset=offset)


def independent(case: Any) -> dict[str, Tensor]:
    (logits,) = leaves(case, "branch_logits")
    loss = independent_loss(peers_second(logits), case.inputs["labels"])["loss"]
    return {"loss": loss} | gradients(loss, branch_logits=logits)


def dml(case: Any) -> dict[str, Tensor]:
    (logits,) = leaves(case, "logits")
    about = case.hyperparameters
    options = {"temperature": about["temperature"], "pairwise": about["pairwise"]}
    loss = dml_loss(peers_second(logits), case.inputs["labels"], **options)["loss"]
    return {"loss": loss} | gradients(loss, logits=logits)


def rampup(case: Any) -> dict[str, Tensor]:
    about = case.hyperparameters
    options = {name: about[name] for name in ("length", "start_fraction")} | {"epochs": about["num_epochs"]}
    weights = [consistency_weight(epoch, **options) for epoch in case.inputs["epoch"].tolist()]
    return {"weight": torch.tensor(weights, dtype=torch.float64)}


def distance(case: Any) -> dict[str, Tensor]:
    return {"diversity": diversity(peers_second(case.inputs["peer_logits"]))}


ADAPTERS = {
    "kl_loss": kl,
    "peer_targets": peer_targets,
    "okddip_total_loss": okddip_total_loss,
    "okddip_step": okddip_step,
    "one_gate": one_gate,
    "one_step": one_step,
    "clilr_step": clilr_step,
    "independent_loss": independent,
    "dml_loss": dml,
    "consistency_weight": rampup,
    "diversity": distance,
}
