"""Golden adapters of data-free distillation: CSD and the pieces of DeepInversion and CMI it builds on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.data_free.align import AlignHead, student_loss
from stillroom.distillation.data_free.auxiliary import Auxiliary
from stillroom.distillation.data_free.bn_statistics import BNStatistics, bn_statistics_loss
from stillroom.distillation.data_free.cmi import FeatureMemory, ProjectionHead, cmi_loss
from stillroom.distillation.data_free.deepinversion import js_divergence, total_variation
from stillroom.distillation.data_free.generator import Generator
from stillroom.distillation.data_free.head import AuxiliaryHead
from stillroom.distillation.data_free.inversion import synthesis_loss
from stillroom.distillation.data_free.rotation import rotation_batch
from stillroom.distillation.data_free.views import Views
from stillroom.models.signals import TapPaths
from stillroom.models.taps import Tapped

SYSTEM = "csd"


def grad_of(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def leaf(value: Tensor) -> Tensor:
    return value.clone().requires_grad_()


def state_of(case: Any, name: str) -> dict[str, Tensor]:
    prefix = f"param.{name}."
    return {key.removeprefix(prefix): value for key, value in case.inputs.items() if key.startswith(prefix)}


class SmallNet(nn.Sequential):
    """The networks of the golden files, in evaluation mode."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        first, second = state["conv1.weight"], state["conv2.weight"]
        super().__init__()
        self.conv1 = nn.Conv2d(first.shape[1], first.shape[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first.shape[0])
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(second.shape[1], second.shape[0], 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second.shape[0])
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(second.shape[0], state["fc.weight"].shape[0])
        self.to(first.dtype).load_state_dict(state, strict=False)
        self.eval().requires_grad_(False)


def pooled(net: SmallNet) -> Tapped:
    return Tapped(net, TapPaths(("relu2",), classifier="fc"), {"pooled"})


def loaded(module: nn.Module, state: dict[str, Tensor]) -> Any:
    module.to(next(iter(state.values())).dtype).load_state_dict(state, strict=False)
    return module


def head_of(case: Any, **options: Any) -> AuxiliaryHead:
    state = state_of(case, "head")
    hidden, features = state["head.0.weight"].shape
    return loaded(AuxiliaryHead(features, case.hyperparameters["num_classes"], hidden=hidden, **options), state)


def views_of(case: Any) -> Views:
    views = Views(case.hyperparameters["mean"], case.hyperparameters["std"], "none")
    views.mean = torch.tensor(case.hyperparameters["mean"], dtype=torch.float64).view(-1, 1, 1)
    views.std = torch.tensor(case.hyperparameters["std"], dtype=torch.float64).view(-1, 1, 1)
    return views


def bn_statistics(case: Any) -> dict[str, Tensor]:
    x = leaf(case.inputs["x"])
    loss = bn_statistics_loss(x, case.inputs["running_mean"], case.inputs["running_var"])
    return {"loss": loss, "grad.x": grad_of(loss, x)[0]}


def rotation(case: Any) -> dict[str, Tensor]:
    images, target = rotation_batch(case.inputs["images"], case.inputs["labels"])
    assert target is not None
    return {"images": images, "labels": target}


def auxiliary_head(case: Any) -> dict[str, Tensor]:
    features = leaf(case.inputs["features"])
    logits = head_of(case)(features)
    loss = nn.functional.cross_entropy(logits, case.inputs["labels"])
    return {"logits": logits, "loss": loss, "grad.features": grad_of(loss, features)[0]}


def generator_forward(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    generator = Generator(
        latent=options["nz"], size=options["img_size"], channels=options["channels"], width=options["ngf"]
    )
    loaded(generator, state_of(case, "generator")).train(options["training"])
    return {"images": generator(case.inputs["z"])}


def synthesis(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    images = leaf(case.inputs["images"])
    teacher = SmallNet(state_of(case, "teacher"))
    pupil, head = pooled(SmallNet(state_of(case, "student"))), head_of(case)

    def parts_of(csd: float, adv: float) -> dict[str, Tensor]:
        with BNStatistics(teacher) as statistics:
            return synthesis_loss(
                views_of(case).normalise(images),
                case.inputs["labels"],
                teacher,
                statistics,
                pupil,
                head,
                bn=options["bn"],
                oh=options["onehot"],
                csd=csd,
                adv=adv,
            )

    parts = parts_of(options["csd"], options["adv"])
    return {
        "loss": parts["loss"],
        "loss_bn": parts["bn"],
        "loss_onehot": parts["onehot"],
        # The files hold both terms, whichever of them takes part.
        "loss_csd": parts_of(1.0, 0.0)["csd"],
        "loss_adv": parts_of(0.0, 1.0)["adv"],
        "teacher_logits": parts["teacher_logits"],
        "grad.images": grad_of(parts["loss"], images)[0],
    }


def student(case: Any) -> dict[str, Tensor]:
    options, inputs = case.hyperparameters, case.inputs
    state = state_of(case, "align")
    align = loaded(AlignHead(state["conv1.weight"].shape[1], state["conv3.weight"].shape[0]), state).train()
    logits, feature = leaf(inputs["student_logits"]), leaf(inputs["student_feature"])
    loss = student_loss(
        logits,
        inputs["teacher_logits"],
        inputs["labels"],
        align(feature, inputs["teacher_feature"].shape[-1]),
        inputs["teacher_feature"],
        temperature=options["temperature"],
        feature_weight=options["feature_weight"],
    )
    names, weights = zip(*align.named_parameters(), strict=True)
    grads = grad_of(loss, logits, feature, *weights)
    return {
        "loss": loss,
        "grad.student_logits": grads[0],
        "grad.student_feature": grads[1],
        **{f"grad.align.{name}": grad for name, grad in zip(names, grads[2:], strict=True)},
    }


def auxiliary_step(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    head = head_of(case)
    auxiliary = Auxiliary(head, lr=options["lr"], momentum=options["momentum"], weight_decay=options["weight_decay"])
    net = pooled(SmallNet(state_of(case, "student")))
    loss = auxiliary.step(net, case.inputs["images"], case.inputs["labels"])
    return {"loss": loss, **{f"updated.head.{name}": value for name, value in head.named_parameters()}}


def cmi(case: Any) -> dict[str, Tensor]:
    options, inputs = case.hyperparameters, case.inputs
    images = leaf(inputs["images"])
    state = state_of(case, "head")
    head = loaded(ProjectionHead(state["head.0.weight"].shape[0], state["head.2.weight"].shape[0]), state)
    whole = views_of(case).normalise(images)
    with BNStatistics(teacher := SmallNet(state_of(case, "teacher"))) as statistics:
        parts = cmi_loss(
            whole,
            whole.flip(-1),
            inputs["labels"],
            teacher,
            statistics,
            pooled(SmallNet(state_of(case, "student"))),
            head,
            inputs.get("cached"),
            bn=options["bn"],
            oh=options["onehot"],
            adv=options["adv"],
            cr=options["cr"],
            temperature=options["cr_temperature"],
        )
    names, weights = zip(*head.named_parameters(), strict=True)
    grads = grad_of(parts["loss"], images, *weights)
    width = statistics.width
    memory = inputs.get("memory", torch.empty(0, 2 * width, dtype=images.dtype))
    ring = FeatureMemory(torch.empty(len(memory) + len(images), 2 * width, dtype=images.dtype))
    ring.add(memory)
    ring.add(parts["features"])
    return {
        "loss": parts["loss"],
        "loss_bn": parts["bn"],
        "local_feature": parts["features"][:, :width],
        "global_feature": parts["features"][:, width:],
        "grad.images": grads[0],
        **{f"grad.head.{name}": grad for name, grad in zip(names, grads[1:], strict=True)},
        "memory_after": ring.data,
    }


def variation(case: Any) -> dict[str, Tensor]:
    images = leaf(case.inputs["images"])
    loss = total_variation(images)
    return {"loss": loss, "grad.images": grad_of(loss, images)[0]}


def divergence(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    logits = leaf(case.inputs["student_logits"])
    low, high = options["clamp"]
    loss = js_divergence(logits, case.inputs["teacher_logits"], temperature=options["temperature"], clamp=(low, high))
    return {"loss": loss, "grad.student_logits": grad_of(loss, logits)[0]}


def memory_bank(case: Any) -> dict[str, Tensor]:
    ring = FeatureMemory(case.inputs["initial"].clone())
    for name in sorted((n for n in case.inputs if n.startswith("add.")), key=lambda n: int(n.removeprefix("add."))):
        ring.add(case.inputs[name])
    return {
        "data": ring.data,
        "pointer": torch.tensor(ring.pointer),
        "num_updates": torch.tensor(ring.updates),
    }


ADAPTERS = {
    "bn_statistics_loss": bn_statistics,
    "rotation_batch": rotation,
    "auxiliary_head": auxiliary_head,
    "generator_forward": generator_forward,
    "synthesis_loss": synthesis,
    "student_loss": student,
    "auxiliary_step": auxiliary_step,
    "cmi_loss": cmi,
    "total_variation": variation,
    "js_divergence": divergence,
    "memory_bank": memory_bank,
}
