"""Golden adapters of the relational and contrastive methods."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stillroom.distillation.offline._graph import GraphLayer, prediction_neighbours
from stillroom.distillation.offline._memory import UnitLinear, update_memory
from stillroom.distillation.offline.cc import cc_loss
from stillroom.distillation.offline.crd import crd_loss
from stillroom.distillation.offline.hkd import hkd_loss
from stillroom.distillation.offline.pkt import pkt_loss
from stillroom.distillation.offline.rkd import rkd_angle_loss, rkd_distance_loss
from stillroom.distillation.offline.sp import sp_loss

SYSTEM = "offline-kd"


def leaves(case: Any, *names: str) -> list[Tensor]:
    return [case.inputs[name].clone().requires_grad_() for name in names]


def loaded(layer: nn.Linear, case: Any, name: str) -> nn.Linear:
    layer.to(case.inputs[f"param.{name}.weight"].dtype)
    layer.load_state_dict({part: case.inputs[f"param.{name}.{part}"] for part in ("weight", "bias")})
    return layer


def embedding(case: Any, role: str) -> UnitLinear:
    width, features = case.inputs[f"param.embed_{role}.weight"].shape
    return loaded(UnitLinear(features, width), case, f"embed_{role}")


def similarity_preserving(case: Any) -> dict[str, Tensor]:
    student, teacher = leaves(case, "feat_student", "feat_teacher")
    loss = sp_loss(student, teacher)
    loss.backward()
    return {"loss": loss, "grad.feat_student": student.grad}


def pkt(case: Any) -> dict[str, Tensor]:
    student, teacher = leaves(case, "feat_student", "feat_teacher")
    loss = pkt_loss(student, teacher, eps=case.hyperparameters["eps"])
    loss.backward()
    return {"loss": loss, "grad.feat_student": student.grad}


def rkd(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    student, teacher = leaves(case, "feat_student", "feat_teacher")
    distance = rkd_distance_loss(student, teacher, eps=options["eps"], squared=options["squared"])
    angle = rkd_angle_loss(student, teacher, eps=1e-12)  # eps of the case bounds the distances only
    loss = options["distance_weight"] * distance + options["angle_weight"] * angle
    loss.backward()
    return {"loss": loss, "loss_distance": distance, "loss_angle": angle, "grad.feat_student": student.grad}


def correlation_congruence(case: Any) -> dict[str, Tensor]:
    student, teacher = leaves(case, "embed_student", "embed_teacher")
    loss = cc_loss(student, teacher)
    loss.backward()
    return {"loss": loss, "grad.embed_student": student.grad}


def crd(case: Any) -> dict[str, Tensor]:
    options, index = case.hyperparameters, case.inputs["index"]
    student, teacher = leaves(case, "feat_student", "feat_teacher")
    layers = {role: embedding(case, role) for role in ("student", "teacher")}
    embed_student, embed_teacher = layers["student"](student), layers["teacher"](teacher.detach())
    memory_student, memory_teacher = case.inputs["memory_student"].clone(), case.inputs["memory_teacher"].clone()
    assert memory_student.shape[0] == options["num_data"]
    assert case.inputs["contrast_index"].shape[1] == options["num_negatives"] + 1
    terms = crd_loss(
        embed_student,
        embed_teacher,
        memory_student,
        memory_teacher,
        case.inputs["contrast_index"],
        case.inputs["z_student"],
        case.inputs["z_teacher"],
        temperature=options["temperature"],
        eps=options["eps"],
    )
    # Before the backward pass, as in training: the update in place must not disturb the gradient.
    update_memory(memory_student, index, embed_student, momentum=options["momentum"])
    update_memory(memory_teacher, index, embed_teacher, momentum=options["momentum"])
    loss = terms.student + terms.teacher
    loss.backward()
    return {
        "embed_student": embed_student,
        "embed_teacher": embed_teacher,
        "loss": loss,
        "memory_student": memory_student,
        "memory_teacher": memory_teacher,
        "z_student": terms.z_student,
        "z_teacher": terms.z_teacher,
        "grad.feat_student": student.grad,
        "grad.param.embed_teacher.weight": layers["teacher"].weight.grad,
    }


def hkd(case: Any) -> dict[str, Tensor]:
    options, index = case.hyperparameters, case.inputs["index"]
    student, teacher = leaves(case, "feat_student", "feat_teacher")
    layers = {role: embedding(case, role) for role in ("student", "teacher")}
    embed = {"student": layers["student"](student), "teacher": layers["teacher"](teacher.detach())}
    memory = {role: case.inputs[f"memory_{role}"].clone() for role in embed}
    graphs: dict[str, GraphLayer] = {}
    graph: dict[str, Tensor | None] = {"student": None, "teacher": None}
    results: dict[str, Tensor] = {}
    if len(index) >= options["knn"]:
        for role in embed:
            neighbours = prediction_neighbours(case.inputs[f"logits_{role}"], knn=options["knn"])
            graphs[role] = GraphLayer(embed[role].shape[1])
            loaded(graphs[role].linear, case, f"gnn_{role}")
            graph[role] = results[f"graph_{role}"] = graphs[role](embed[role], neighbours)
            results[f"neighbours_{role}"] = neighbours.sort(dim=1).values
    terms = hkd_loss(
        embed["student"],
        embed["teacher"],
        graph["student"],
        graph["teacher"],
        memory["student"],
        memory["teacher"],
        index,
        case.inputs["negatives"],
        temperature=options["temperature"],
        smooth_momentum=options["smooth_momentum"],
        source=options["negatives"],
    )
    if graphs:
        for role in embed:
            update_memory(memory[role], index, embed[role], momentum=options["memory_momentum"])
    loss = terms.individual + terms.graph
    loss.backward()
    results["loss"] = loss
    results["grad.feat_student"] = student.grad
    results["grad.param.embed_teacher.weight"] = layers["teacher"].weight.grad
    if graphs:
        results["grad.param.gnn_student.weight"] = graphs["student"].linear.weight.grad
    return results | {f"memory_{role}": rows for role, rows in memory.items()}


ADAPTERS = {
    "similarity_preserving": similarity_preserving,
    "pkt": pkt,
    "rkd": rkd,
    "correlation_congruence": correlation_congruence,
    "crd": crd,
    "hkd": hkd,
}
