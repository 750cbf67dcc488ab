"""Inverting a trained classifier: images that it recognises and whose statistics it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from stillroom.distillation.data_free.bn_statistics import BNStatistics
from stillroom.distillation.data_free.generator import Generator, reinitialise
from stillroom.distillation.data_free.head import AuxiliaryHead
from stillroom.distillation.data_free.rotation import rotation_batch
from stillroom.distillation.data_free.views import Views
from stillroom.losses.checks import full_precision
from stillroom.models.signals import Signals

__all__ = ["Made", "Scene", "adversarial_loss", "customisation_loss", "from_generator", "optimise", "synthesis_loss"]

Answer = Callable[[Tensor], Tensor]
Look = Callable[[Tensor], Signals]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one round of synthesis works with. All networks are fixed and in evaluation mode.

    Args:
        teacher: Normalised images to logits, differentiable.
        statistics: Of the teacher's BatchNorm layers, switched on.
        student: Normalised images to the student's signals, differentiable.
        head: The auxiliary head; only CSD has one.
        views: How images are shown to the networks.
        target: [B] int64, the class of every image to make.
        shape: Channels, height and width of the images.
        generator: The only source of random numbers.
        state: What the round before handed on; empty at the first.
        earlier: Returns the rows that the earlier rounds still in the bank left, oldest first.
        told: To be told how many steps are done.
    """

    teacher: Answer
    statistics: BNStatistics
    student: Look
    head: AuxiliaryHead | None
    views: Views
    target: Tensor
    shape: tuple[int, int, int]
    generator: torch.Generator
    state: Mapping[str, Tensor] = field(default_factory=dict)
    earlier: Callable[[], Sequence[Tensor]] = list
    told: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class Made:
    """What one round of synthesis made.

    Args:
        images: [B, C, H, W], in 0..1.
        parts: What the objective said of them; scalars among it go into the log.
        rows: One row an image that later rounds may ask for as long as the images are in the bank.
        state: What the next round takes up.
    """

    images: Tensor
    parts: Mapping[str, Tensor]
    rows: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)


def customisation_loss(joint_logits: Tensor, joint_target: Tensor) -> Tensor:
    """Return the negative error of the student on the auxiliary task: images become hard for it.

    S. Luo, D. Chen, C. Wang, "Customizing Synthetic Data for Data-Free Student Learning", ICME 2023:
    ``L_CSD = −CE(h(f_S(rot(x))), 4y + k)``.

    Shapes:
        joint_logits: [4B, 4C]. joint_target: [4B], int64.
    """
    return -F.cross_entropy(full_precision(joint_logits), joint_target)


def adversarial_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, only_agreeing: bool = False
) -> Tensor:
    """Return the negative divergence of student from teacher, ``−T² (1/B) Σ_b KL(p_T ‖ p_S)``.

    Gradient flows through both networks, the teacher's distribution included.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        temperature: T.
        only_agreeing: CMI's decision-adversarial form: samples on whose class the two disagree count 0.

    Shapes:
        student, teacher: [B, K].
    """
    log_student = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    if only_agreeing:
        divergence = divergence * (student.argmax(1) == teacher.argmax(1))
    return -(temperature**2) * divergence.mean()


def synthesis_loss(
    images: Tensor,
    target: Tensor,
    teacher: Answer,
    statistics: BNStatistics,
    student: Look,
    head: AuxiliaryHead | None = None,
    *,
    bn: float = 1.0,
    oh: float = 1.0,
    csd: float = 0.0,
    adv: float = 0.0,
    only_agreeing: bool = False,
) -> dict[str, Tensor]:
    """Return ``bn · L_BN + oh · CE(teacher(x), y)`` plus ``csd · L_CSD`` or ``adv · L_ADV``, and its parts.

    S. Luo, D. Chen, C. Wang, ICME 2023. Nothing is detached between the images and the terms. Of the last two the
    customisation is taken where its weight is above 0, else the adversarial term where its weight is.

    Args:
        images: Normalised views of the images.
        target: The classes they are to show.
        teacher: Images to logits.
        statistics: Of the teacher's BatchNorm layers, switched on.
        student: Images to signals; asked for only where a term needs it.
        head: The auxiliary head, for the customisation.
        bn: Weight of the statistics.
        oh: Weight of the classes.
        csd: Weight of the customisation.
        adv: Weight of the divergence between student and teacher.
        only_agreeing: See :func:`adversarial_loss`.

    Shapes:
        images: [B, C, H, W]. target: [B], int64.

    Returns:
        ``loss`` and the unweighted ``bn``, ``onehot`` and, where it takes part, ``csd`` or ``adv``, signed as added;
        also ``teacher_logits``.
    """
    logits = teacher(images)
    parts = {"bn": statistics.loss(), "onehot": F.cross_entropy(full_precision(logits), target)}
    loss = bn * parts["bn"] + oh * parts["onehot"]
    if csd > 0 and head is not None:
        turned, joint = rotation_batch(images, target)
        pooled = student(turned).pooled
        assert pooled is not None
        assert joint is not None
        parts["csd"] = customisation_loss(head(pooled), joint)
        loss = loss + csd * parts["csd"]
    elif adv > 0:
        parts["adv"] = adversarial_loss(student(images).logits, logits, only_agreeing=only_agreeing)
        loss = loss + adv * parts["adv"]
    return {"loss": loss, **parts, "teacher_logits": logits}


def optimise(
    draw: Callable[[], Tensor],
    objective: Callable[[Tensor], dict[str, Tensor]],
    optimizer: Optimizer,
    steps: int,
    *,
    after: Callable[[], None] = lambda: None,
    told: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minimise an objective of images and return those of the smallest value, with what the objective said of them.

    Nothing is read on the host: the best iterate is chosen on the device. It is a copy; the released code of
    DeepInversion returned the optimised tensor itself, hence always the last iterate.

    Args:
        draw: Makes the images of the present parameters.
        objective: ``loss`` and further tensors of images.
        optimizer: Over the parameters.
        steps: How many.
        after: Called after every update.
        told: To be told how many steps are done.
    """
    best, least = torch.empty(0), torch.tensor(torch.inf)
    kept: dict[str, Tensor] = {}
    for step in range(steps):
        images = draw()
        parts = objective(images)
        loss = parts["loss"]
        with torch.no_grad():
            better = loss < least
            best = torch.where(better, images, best) if step else images.detach().clone()
            least = torch.where(better, loss, least)
            kept = {name: torch.where(better, part, kept.get(name, part)) for name, part in parts.items()}
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        after()
        told(step + 1)
    return best, kept


def from_generator(
    scene: Scene,
    objective: Callable[[Tensor], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    latent: int,
    width: int = 64,
    also: Callable[[], None] = lambda: None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Optimise a freshly initialised generator together with its latent vectors; the images are its outputs.

    G. Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021: Adam with
    ``β = (0.5, 0.999)``, one latent vector an image.

    Args:
        scene: The round.
        objective: ``loss`` and parts of images in 0..1.
        steps: Updates.
        lr: Adam's learning rate.
        latent: Size of the latent vectors.
        width: Channels of the generator's last hidden map.
        also: Called after every update of the generator, for a second optimiser.
    """
    channels, size, _ = scene.shape
    device = scene.target.device
    generator = Generator(latent=latent, size=size, channels=channels, width=width)
    reinitialise(generator, scene.generator)
    generator = generator.to(device).to(memory_format=torch.channels_last).train()
    z = torch.randn(len(scene.target), latent, generator=scene.generator).to(device).requires_grad_()
    adam = torch.optim.Adam([*generator.parameters(), z], lr=lr, betas=(0.5, 0.999), fused=device.type != "mps")
    return optimise(lambda: generator(z), objective, adam, steps, after=also, told=scene.told)
