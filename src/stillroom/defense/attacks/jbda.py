"""JBDA: grow a handful of real images along the clone's own Jacobian.

N. Papernot, P. McDaniel, I. Goodfellow, S. Jha, Z. B. Celik, A. Swami, "Practical Black-Box Attacks against Machine
Learning", AsiaCCS 2017; the targeted forms after M. Juuti, S. Szyller, S. Marchal, N. Asokan, "PRADA: Protecting
Against DNN Model Stealing Attacks", EuroS&P 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.options import Augment
from stillroom.data.split import random_stream
from stillroom.defense.attacks.clone import Measure, Objective, train_clone
from stillroom.defense.attacks.target import Ask
from stillroom.defense.attacks.transfer import Stolen, TransferSet, ask_within
from stillroom.defense.contracts import Images
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import positive
from stillroom.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["JBDA", "JBDA_RECIPE", "Form", "fgsm_perturbation", "jacobian_augment", "targeted_perturbation"]

Model = Callable[[Tensor], Tensor]
Form = Literal["jacobian", "fgsm", "top", "random"]

JBDA_RECIPE = Recipe(epochs=10, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant")


def jacobian_augment(
    model: Model, images: Tensor, labels: Tensor, *, step: float = 0.1, span: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Return the images and after them ``clip(x + λ sign(∂S(x)_y / ∂x))``: Jacobian-based data set augmentation.

    Args:
        model: S, maps images to logits, in evaluation mode.
        images: x.
        labels: y, the victim's labels.
        step: λ.
        span: Lowest and highest value of a pixel.

    Shapes:
        images: [N, C, H, W]. labels: [N], int64. Returns [2 N, C, H, W].

    Example:
        >>> image = torch.tensor([0.5, 0.95]).view(1, 1, 1, 2)
        >>> jacobian_augment(lambda x: x.flatten(1), image, torch.tensor([1]))[1].flatten().tolist()
        [0.5, 1.0]
    """
    moved = images + step * _gradient(lambda x: _chosen(model(x), labels), images).sign()
    return torch.cat([images, moved.clamp(*span)])


def fgsm_perturbation(model: Model, images: Tensor, labels: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Return ``δ = ε sign(∂CE(S(x), y) / ∂x)``, cut so that x + δ stays in 0..1.

    Shapes:
        images: [N, C, H, W], in 0..1. labels: [N], int64. Returns [N, C, H, W].

    Example:
        >>> image = torch.tensor([0.5, 0.95]).view(1, 1, 1, 2)
        >>> fgsm_perturbation(lambda x: x.flatten(1), image, torch.tensor([0])).flatten()
        tensor([-0.1000,  0.0500])
    """
    delta = epsilon * _gradient(lambda x: F.cross_entropy(model(x), labels, reduction="none"), images).sign()
    return torch.minimum(torch.maximum(delta, -images), 1 - images)


def targeted_perturbation(
    model: Model,
    images: Tensor,
    target: Tensor,
    *,
    epsilon: float = 0.1,
    alpha: float = 0.01,
    steps: int = 8,
    clip: bool = True,
) -> Tensor:
    """Return δ after ``steps`` times ``δ = clip(δ + α sign(∂S(x + δ)_c / ∂x), -ε, ε)``: towards class c.

    Args:
        model: S, maps images to logits, in evaluation mode.
        images: x.
        target: c, the class to walk towards.
        epsilon: Largest change of a pixel.
        alpha: Change of a pixel in a step.
        steps: Steps.
        clip: Whether x + δ stays in 0..1; the released code does not see to it.

    Shapes:
        images: [N, C, H, W], in 0..1. target: [N], int64. Returns [N, C, H, W].

    Example:
        >>> image = torch.tensor([0.5, 0.95]).view(1, 1, 1, 2)
        >>> targeted_perturbation(lambda x: x.flatten(1), image, torch.tensor([1])).flatten()
        tensor([0.0000, 0.0500])
    """
    delta = torch.zeros_like(images)
    for _ in range(steps):
        slope = _gradient(lambda x: _chosen(model(x), target), images + delta)
        delta = (delta + alpha * slope.sign()).clamp(-epsilon, epsilon)
        if clip:
            delta = torch.minimum(torch.maximum(delta, -images), 1 - images)
    return delta


def _chosen(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _gradient(losses: Model, images: Tensor) -> Tensor:
    """Return the gradient of each sample's own loss; in evaluation mode no sample depends on another."""
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(points).sum(), points)
    return gradient


class JBDA:
    """Query a few real images, train, perturb all of them where the clone is sensitive, query those; again and again.

    The images sent are 8-bit, as a service takes them.

    Args:
        form: ``jacobian`` (JBDA), ``fgsm``, ``top`` (JBDA-TR towards each of the clone's likeliest other classes) or
            ``random`` (JBDA-TR towards one random class).
        rounds: Times the set is grown.
        step: Change of a pixel: λ of ``jacobian``, ε of the others.
        alpha: Change of a pixel in one of the targeted forms' steps.
        steps: Steps of the targeted forms.
        top: Classes the form ``top`` walks towards.
        recipe: How the clone is trained in every round.
        objective: Loss of the clone, see :mod:`stillroom.defense.attacks.clone`.
        augment: What to do to the images while training.

    Raises:
        InputError: A hyperparameter is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="jbda",
        summary="Grows a few real images along the clone's own Jacobian.",
        papers=(
            Paper(
                title="Practical Black-Box Attacks against Machine Learning",
                authors="N. Papernot, P. McDaniel, I. Goodfellow, S. Jha, Z. B. Celik, A. Swami",
                venue="AsiaCCS",
                year=2017,
                identifier="arXiv:1602.02697",
            ),
            Paper(
                title="PRADA: Protecting Against DNN Model Stealing Attacks",
                authors="M. Juuti, S. Szyller, S. Marchal, N. Asokan",
                venue="EuroS&P",
                year=2019,
                identifier="arXiv:1805.02628",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="perturbs along the sign of the Jacobian",
                code="appends a view of the gradient's buffer, which on a CPU is zeroed right after: nothing moves",
                default="paper",
            ),
            Quirk(
                paper="the set doubles and keeps its seeds",
                code="another implementation overwrites the original points in place",
                default="paper",
            ),
            Quirk(
                paper="stores the images it queried",
                code="the 'self' variant queries x - delta and stores x + delta",
                default="paper",
            ),
            Quirk(
                paper="images stay in the range of pixels",
                code="targeted perturbations leave it",
                default="paper",
                option="targeted_perturbation(clip=False)",
            ),
        ),
    )

    def __init__(
        self,
        *,
        form: Form = "jacobian",
        rounds: int = 6,
        step: float = 0.1,
        alpha: float = 0.01,
        steps: int = 8,
        top: int = 3,
        recipe: Recipe = JBDA_RECIPE,
        objective: Objective = "soft",
        augment: Augment = "none",
    ) -> None:
        if form not in get_args(Form):
            raise unknown_name("form of JBDA", form, get_args(Form))
        for name, value in (("rounds", rounds), ("steps", steps), ("top", top)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        self.form, self.rounds, self.steps, self.top = form, rounds, steps, top
        self.step, self.alpha = positive("step", step), positive("alpha", alpha)
        self.recipe, self.objective, self.augment = recipe, objective, augment

    def steal(
        self,
        ask: Ask,
        clone: nn.Module,
        seeds: Images,
        *,
        budget: int,
        seed: int,
        measure: Measure | None = None,
        fabric: Fabric | None = None,
        show_progress: bool = True,
    ) -> Stolen:
        """Steal.

        Args:
            ask: The victim.
            clone: Fresh; maps pixels in 0..1 to logits; trained in place.
            seeds: Real images to begin with, usually 100 to 150.
            budget: Queries to make; when a round has more images than are left, a random part of them is asked.
            seed: Seed of every draw.
            measure: Measures the clone after every epoch.
            fabric: Device and precision; by default the processor.
            show_progress: Whether to show progress on standard error.

        Shapes:
            seeds: [N, C, H, W], uint8.

        Raises:
            InputError: There are no 8-bit seeds, or the budget is below 1.
        """
        if budget < 1 or len(seeds) == 0 or seeds.dtype != np.uint8:
            raise InputError(
                f"{len(seeds)} seeds of type {seeds.dtype}, {budget} queries; give 8-bit seeds and queries"
            )
        stream = random_stream(seed)
        asked = ask_within(ask, _some(seeds, budget, stream))
        if asked is None:
            raise InputError("the victim answers no query any more; give the attack a budget")
        history: list[dict[str, Any]] = []
        for number in range(self.rounds + 1):
            records = train_clone(
                clone,
                asked,
                recipe=self.recipe,
                objective=self.objective,
                augment=self.augment,
                seed=seed + number,
                measure=measure,
                fabric=fabric,
                show_progress=show_progress,
            )
            history += [{"round": number, "queries": len(asked), **record} for record in records]
            if number == self.rounds or len(asked) >= budget:
                break
            more = ask_within(ask, _some(self._grow(clone, asked, stream), budget - len(asked), stream))
            if more is None:
                break
            asked = TransferSet.joined([asked, more])
        return Stolen(clone.eval(), asked, history)

    def _grow(self, clone: nn.Module, asked: TransferSet, stream: torch.Generator) -> Images:
        """Return the perturbed images of one round, 8-bit."""
        device = next(clone.parameters()).device
        clone.eval()
        grown = []
        labels = torch.from_numpy(asked.answers.argmax(1))
        for start in range(0, len(asked), 256):
            pixels = torch.from_numpy(asked.images[start : start + 256]).to(device, torch.float32) / 255
            moved = self._perturb(clone, pixels, labels[start : start + 256].to(device), stream)
            grown.append((moved * 255).round().to("cpu", torch.uint8))
        return torch.cat(grown).numpy()

    def _perturb(self, clone: nn.Module, pixels: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        if self.form == "jacobian":
            return jacobian_augment(clone, pixels, labels, step=self.step)[len(pixels) :]
        if self.form == "fgsm":
            return pixels + fgsm_perturbation(clone, pixels, labels, epsilon=self.step)
        with torch.no_grad():
            logits = clone(pixels).scatter(1, labels[:, None], float("-inf"))
        others = logits.shape[1] - 1
        if self.form == "top":
            targets = logits.topk(min(self.top, others)).indices  # [N, top]
        else:
            away = torch.randint(others, labels.shape, generator=stream).to(labels.device) + 1
            targets = ((labels + away) % (others + 1))[:, None]
        moved = [
            targeted_perturbation(clone, pixels, target, epsilon=self.step, alpha=self.alpha, steps=self.steps)
            for target in targets.unbind(1)
        ]
        return torch.cat([pixels + delta for delta in moved])


def _some(images: Images, count: int, stream: torch.Generator) -> Images:
    chosen: Images = images[torch.randperm(len(images), generator=stream)[:count].numpy()]
    return chosen
