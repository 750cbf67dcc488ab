"""DFME: steal without any data, by a generator that learns where clone and victim differ.

J.-B. Truong, P. Maini, R. J. Walls, N. Papernot, "Data-Free Model Extraction", CVPR 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.split import random_stream
from stillroom.defense.attacks._data_free import asking, check_counts, steal_without_data, stepwise
from stillroom.defense.attacks.clone import Measure, log_answers
from stillroom.defense.attacks.forward_differences import forward_differences, random_directions
from stillroom.defense.attacks.generator import Generator
from stillroom.defense.attacks.target import Ask
from stillroom.defense.attacks.transfer import Stolen
from stillroom.errors import unknown_name
from stillroom.losses.checks import positive

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DFME", "Correction", "Discrepancy", "discrepancy", "reconstruct_logits"]

Correction = Literal["mean", "min"]
Discrepancy = Literal["l1", "kl"]


def reconstruct_logits(probabilities: Tensor, *, correction: Correction = "mean") -> Tensor:
    """Guess the victim's logits from its probabilities: their logarithm, moved to mean (or minimum) zero.

    Shapes:
        probabilities: [N, K]. Returns [N, K].

    Example:
        >>> reconstruct_logits(torch.tensor([1.0, -1.0]).softmax(0)[None])
        tensor([[ 1., -1.]])
    """
    logits = log_answers(probabilities)
    return logits - (logits.mean(1, keepdim=True) if correction == "mean" else logits.amin(1, keepdim=True))


def discrepancy(student: Tensor, victim: Tensor, *, kind: Discrepancy = "l1") -> Tensor:
    """Return how far the clone is from the victim on each sample.

    ``l1``: ``(1/K) Σ_k |z_k - t_k|`` of logits; ``kl``: ``KL(softmax(t) ‖ softmax(z))``.

    Shapes:
        student, victim: [N, K], logits. Returns [N].

    Example:
        >>> discrepancy(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])).tolist()
        [1.0]
    """
    if kind == "l1":
        return (student - victim).abs().mean(1)
    return F.kl_div(student.log_softmax(1), victim.log_softmax(1), reduction="none", log_target=True).sum(1)


class DFME:
    """A generator looks for images the clone gets wrong; the victim's gradient is estimated by forward differences.

    The victim has to return probabilities, and take images as they are: perturbations of ``epsilon`` do not survive
    8-bit pixels, so that the estimates are only worth something in process.

    Args:
        batch_size: Images of a step.
        generator_steps: Steps of the generator in an iteration.
        clone_steps: Steps of the clone in an iteration.
        directions: Directions a gradient is estimated from.
        epsilon: Length of the steps along them, before tanh.
        loss: What clone and generator fight about.
        correction: How logits are made of probabilities.
        latent: Numbers of noise an image is made of.
        lr_generator: Of Adam.
        lr_clone: Of SGD.

    Raises:
        InputError: A hyperparameter is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="dfme",
        summary="Steals without data: a generator seeks disagreement, gradients are estimated from answers.",
        papers=(
            Paper(
                title="Data-Free Model Extraction",
                authors="J.-B. Truong, P. Maini, R. J. Walls, N. Papernot",
                venue="CVPR",
                year=2021,
                identifier="arXiv:2011.14779",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the generator's loss is the mean of the samples' losses",
                code="the l1 estimate is divided by classes and batch though it is a mean over classes already, "
                "the kl estimate by neither",
                default="code",
            ),
        ),
    )

    def __init__(
        self,
        *,
        batch_size: int = 256,
        generator_steps: int = 1,
        clone_steps: int = 5,
        directions: int = 1,
        epsilon: float = 1e-3,
        loss: Discrepancy = "l1",
        correction: Correction = "mean",
        latent: int = 256,
        lr_generator: float = 1e-4,
        lr_clone: float = 0.1,
    ) -> None:
        check_counts(
            batch_size, generator_steps=generator_steps, clone_steps=clone_steps, directions=directions, latent=latent
        )
        for kind, value, known in (("loss", loss, Discrepancy), ("correction", correction, Correction)):
            if value not in get_args(known):
                raise unknown_name(kind, value, get_args(known))
        self.batch_size, self.generator_steps, self.clone_steps = batch_size, generator_steps, clone_steps
        self.directions, self.epsilon = directions, positive("epsilon", epsilon)
        self.loss, self.correction, self.latent = loss, correction, latent
        self.lr_generator, self.lr_clone = positive("lr_generator", lr_generator), positive("lr_clone", lr_clone)

    @property
    def cost(self) -> int:
        """Queries of one iteration."""
        return self.batch_size * (self.generator_steps * (self.directions + 1) + self.clone_steps)

    def steal(
        self,
        ask: Ask,
        clone: nn.Module,
        shape: tuple[int, int, int],
        *,
        budget: int,
        seed: int,
        measure: Measure | None = None,
        fabric: Fabric | None = None,
        show_progress: bool = True,
    ) -> Stolen:
        """Steal; the attack ends with the last iteration the budget pays for.

        Args:
            ask: The victim; it is sent float32 images in 0..1.
            clone: Fresh; maps pixels in 0..1 to logits; trained in place.
            shape: Channels, height and width of the images.
            budget: Queries to make; the learning rates fall after 10, 30 and 50 % of it.
            seed: Seed of every draw.
            measure: Measures the clone at regular shares of the budget.
            fabric: Its device is used; by default the processor.
            show_progress: Whether to show progress on standard error.

        Raises:
            InputError: The budget does not pay for one iteration.
            TrainingDivergedError: A loss is not finite.
        """
        return steal_without_data(
            lambda generator, iterations: _Theft(self, ask, clone, generator, iterations, seed).step,
            clone,
            shape,
            latent=self.latent,
            cost=self.cost,
            budget=budget,
            seed=seed,
            measure=measure,
            fabric=fabric,
            show_progress=show_progress,
        )


class _Theft:
    """One attack under way."""

    def __init__(
        self, attack: DFME, ask: Ask, clone: nn.Module, generator: Generator, iterations: int, seed: int
    ) -> None:
        self.attack, self.clone, self.generator = attack, clone, generator
        self.device = next(generator.parameters()).device
        self.ask = asking(ask, self.device)
        self.stream = random_stream(seed)
        self.clone_optimizer = torch.optim.SGD(clone.parameters(), attack.lr_clone, momentum=0.9, weight_decay=5e-4)
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), attack.lr_generator)
        optimizers = (self.clone_optimizer, self.generator_optimizer)
        self.schedules = [stepwise(optimizer, iterations) for optimizer in optimizers]

    def step(self) -> dict[str, Tensor]:
        """Do one iteration: the generator's steps, then the clone's."""
        for _ in range(self.attack.generator_steps):
            generator_loss = self._teach_generator()
        for _ in range(self.attack.clone_steps):
            clone_loss = self._teach_clone()
        for schedule in self.schedules:
            schedule.step()
        return {"generator_loss": generator_loss, "clone_loss": clone_loss}

    def _made(self) -> Tensor:
        noise = torch.randn((self.attack.batch_size, self.attack.latent), generator=self.stream)
        made: Tensor = self.generator(noise.to(self.device))
        return made

    def _victim(self, pixels: Tensor) -> Tensor:
        return reconstruct_logits(self.ask(pixels), correction=self.attack.correction)

    def _losses(self, pre_activation: Tensor) -> Tensor:
        pixels = Generator.pixels(pre_activation)
        return -discrepancy(self.clone(pixels), self._victim(pixels), kind=self.attack.loss)

    def _teach_generator(self) -> Tensor:
        self.clone.eval()
        self.generator.train()
        made = self._made()
        directions = random_directions(made.detach(), self.attack.directions, self.stream)
        estimate, losses = forward_differences(made.detach(), self._losses, directions, epsilon=self.attack.epsilon)
        if self.attack.loss == "l1":
            estimate = estimate / (self._classes(made) * len(made))
        self.generator_optimizer.zero_grad()
        torch.autograd.backward(made, estimate)
        self.generator_optimizer.step()
        return losses.mean()

    def _classes(self, made: Tensor) -> int:
        with torch.no_grad():
            return int(self.clone(Generator.pixels(made[:1])).shape[1])

    def _teach_clone(self) -> Tensor:
        self.clone.train()
        with torch.no_grad():
            pixels = Generator.pixels(self._made())
        loss = discrepancy(self.clone(pixels), self._victim(pixels), kind=self.attack.loss).mean()
        self.clone_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.clone_optimizer.step()
        return loss.detach()
