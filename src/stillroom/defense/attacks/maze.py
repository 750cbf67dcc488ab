"""MAZE: data-free stealing on the Kullback-Leibler divergence, with several directions and experience replay.

S. Kariyappa, A. Prakash, M. K. Qureshi, "MAZE: Data-Free Model Stealing Attack Using Zeroth-Order Gradient Estimation",
CVPR 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.split import random_stream
from stillroom.defense.attacks._data_free import asking, check_counts, steal_without_data
from stillroom.defense.attacks.clone import Measure
from stillroom.defense.attacks.forward_differences import forward_differences, random_directions
from stillroom.defense.attacks.generator import Generator, Replay
from stillroom.defense.attacks.target import Ask
from stillroom.defense.attacks.transfer import Stolen
from stillroom.losses.checks import not_negative, positive

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["MAZE", "negative_kl"]


def negative_kl(student: Tensor, victim: Tensor) -> Tensor:
    """Return the generator's loss of each sample, ``-KL(y ‖ softmax(z))``.

    Shapes:
        student: [N, K], logits of the clone. victim: [N, K], probabilities. Returns [N].

    Example:
        >>> print(f"{negative_kl(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item():.4f}")
        -0.6931
    """
    return -F.kl_div(student.log_softmax(1), victim, reduction="none").sum(1)


class MAZE:
    """A generator looks for images on which the clone diverges most; the clone also trains on what was asked before.

    The victim has to return probabilities, and take images as they are: perturbations of ``mu`` do not survive 8-bit
    pixels, so that the estimates are only worth something in process.

    Args:
        batch_size: Images of a step.
        generator_steps: Steps of the generator in an iteration.
        clone_steps: Steps of the clone in an iteration; the first one takes the generator's images and answers.
        replay_steps: Steps of the clone on earlier queries in an iteration.
        replay_size: Earlier queries that are kept; the last batch of each iteration is.
        directions: Directions a gradient is estimated from.
        mu: Length of the steps along them, before tanh.
        latent: Numbers of noise an image is made of.
        lr_generator: Of SGD.
        lr_clone: Of SGD.

    Raises:
        InputError: A hyperparameter is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="maze",
        summary="Steals without data, on the Kullback-Leibler divergence, with experience replay.",
        papers=(
            Paper(
                title="MAZE: Data-Free Model Stealing Attack Using Zeroth-Order Gradient Estimation",
                authors="S. Kariyappa, A. Prakash, M. K. Qureshi",
                venue="CVPR",
                year=2021,
                identifier="arXiv:2005.03161",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the generator's answers serve the clone's first step",
                code="counts them once and asks for them twice",
                default="paper",
            ),
            Quirk(
                paper="earlier queries are replayed",
                code="only the last batch of every iteration is kept, all of them in memory",
                default="code",
                option="replay_size",
            ),
        ),
    )

    def __init__(
        self,
        *,
        batch_size: int = 128,
        generator_steps: int = 1,
        clone_steps: int = 5,
        replay_steps: int = 10,
        replay_size: int = 1_000_000,
        directions: int = 10,
        mu: float = 1e-3,
        latent: int = 100,
        lr_generator: float = 1e-4,
        lr_clone: float = 0.1,
    ) -> None:
        check_counts(
            batch_size,
            generator_steps=generator_steps,
            clone_steps=clone_steps,
            directions=directions,
            latent=latent,
            replay_size=replay_size,
        )
        self.batch_size, self.generator_steps, self.clone_steps = batch_size, generator_steps, clone_steps
        self.replay_steps, self.replay_size = int(not_negative("replay_steps", replay_steps)), replay_size
        self.directions, self.mu, self.latent = directions, positive("mu", mu), latent
        self.lr_generator, self.lr_clone = positive("lr_generator", lr_generator), positive("lr_clone", lr_clone)

    @property
    def cost(self) -> int:
        """Queries of one iteration."""
        return self.batch_size * (self.clone_steps - 1 + (1 + self.directions) * self.generator_steps)

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
            budget: Queries to make; the learning rates fall to zero with it, as a cosine.
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
        self, attack: MAZE, ask: Ask, clone: nn.Module, generator: Generator, iterations: int, seed: int
    ) -> None:
        self.attack, self.clone, self.generator = attack, clone, generator
        self.device = next(generator.parameters()).device
        self.ask = asking(ask, self.device)
        self.stream = random_stream(seed)
        self.replay = Replay(attack.replay_size)
        self.clone_optimizer = torch.optim.SGD(clone.parameters(), attack.lr_clone, momentum=0.9, weight_decay=5e-4)
        self.generator_optimizer = torch.optim.SGD(
            generator.parameters(), attack.lr_generator, momentum=0.9, weight_decay=5e-4
        )
        optimizers = (self.clone_optimizer, self.generator_optimizer)
        self.schedules = [CosineAnnealingLR(optimizer, iterations) for optimizer in optimizers]

    def step(self) -> dict[str, Tensor]:
        """Do one iteration: generator, clone, replay."""
        for _ in range(self.attack.generator_steps):
            pixels, answers, generator_loss = self._teach_generator()
        clone_loss = self._teach_clone(pixels, answers)
        for _ in range(self.attack.clone_steps - 1):
            with torch.no_grad():
                pixels = Generator.pixels(self._made())
            answers = self.ask(pixels)
            clone_loss = self._teach_clone(pixels, answers)
        self.replay.add(pixels.cpu(), answers.cpu())
        for _ in range(self.attack.replay_steps):
            earlier = self.replay.draw(self.attack.batch_size, self.stream)
            self._teach_clone(*(tensor.to(self.device) for tensor in earlier))
        for schedule in self.schedules:
            schedule.step()
        return {"generator_loss": generator_loss, "clone_loss": clone_loss}

    def _made(self) -> Tensor:
        noise = torch.randn((self.attack.batch_size, self.attack.latent), generator=self.stream)
        made: Tensor = self.generator(noise.to(self.device))
        return made

    def _teach_generator(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generator's images, their answers and its loss."""
        self.clone.eval()
        self.generator.train()
        made = self._made()
        answered: list[Tensor] = []

        def losses(pre_activation: Tensor) -> Tensor:
            pixels = Generator.pixels(pre_activation)
            answered.append(self.ask(pixels))
            return negative_kl(self.clone(pixels), answered[-1])

        directions = random_directions(made.detach(), self.attack.directions, self.stream)
        estimate, found = forward_differences(made.detach(), losses, directions, epsilon=self.attack.mu)
        self.generator_optimizer.zero_grad()
        torch.autograd.backward(made, estimate / len(made))
        self.generator_optimizer.step()
        # Of each image's m + 1 answers the last is that to the image itself.
        return (
            Generator.pixels(made.detach()),
            answered[0][self.attack.directions :: self.attack.directions + 1],
            found.mean(),
        )

    def _teach_clone(self, pixels: Tensor, answers: Tensor) -> Tensor:
        self.clone.train()
        loss = -negative_kl(self.clone(pixels), answers).mean()
        self.clone_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.clone_optimizer.step()
        return loss.detach()
