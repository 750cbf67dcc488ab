"""DisGUIDE: two clones, and a generator that needs no query because it seeks where the clones disagree.

J. Rosenthal, E. Enouen, H. V. Pham, L. Tan, "DisGUIDE: Disagreement-Guided Data-Free Model Extraction", AAAI 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.split import random_stream
from stillroom.defense.attacks._data_free import asking, check_counts, steal_without_data, stepwise
from stillroom.defense.attacks.clone import Measure
from stillroom.defense.attacks.dfme import discrepancy, reconstruct_logits
from stillroom.defense.attacks.generator import Generator, Replay
from stillroom.defense.attacks.target import Ask, Labels
from stillroom.defense.attacks.transfer import Stolen
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import not_negative, positive

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DisGUIDE", "Ensemble", "disagreement_loss"]


def disagreement_loss(logits: Tensor, *, weight_diversity: float = 0.2, eps: float = 1e-12) -> Tensor:
    """Return the generator's loss, ``-mean_{b,k} std_m(p) + λ Σ_k q_k log q_k``.

    p are the clones' softmax, the deviation is over the clones with divisor M - 1, and ``q_k = mean_{b,m}(p + 1e-6)``.

    Args:
        logits: Of the M clones.
        weight_diversity: λ, weight of the term that asks for all classes alike.
        eps: Added to the variance: the root's gradient is infinite where all clones agree exactly.

    Shapes:
        logits: [B, M, K] with M >= 2. Returns a scalar.

    Example:
        >>> print(f"{disagreement_loss(torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])):.4f}")
        -0.8457
    """
    shares = logits.softmax(2)
    deviation = (shares.var(1, correction=1) + eps).sqrt()
    mean = (shares + 1e-6).mean((0, 1))
    return -deviation.mean() + weight_diversity * (mean * mean.log()).sum()


class Ensemble(nn.Module):
    """Several clones that answer as one: the mean of their softmax.

    Args:
        members: Fresh clones, each initialised on its own; all map pixels in 0..1 to logits.

    Shapes:
        Takes [B, C, H, W], returns the logarithm of the mean [B, K], which serves as logits.

    Raises:
        InputError: There are fewer than two.

    Example:
        >>> both = Ensemble([nn.Flatten(), nn.Flatten()])
        >>> both(torch.zeros(1, 1, 1, 2)).exp().tolist()
        [[0.5, 0.5]]
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"{len(members)} clones cannot disagree; give at least 2")
        self.members = nn.ModuleList(members)

    def logits(self, images: Tensor) -> Tensor:
        """Return the members' logits [B, M, K]."""
        return torch.stack([member(images) for member in self.members], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithm of the members' mean softmax."""
        return self.logits(images).log_softmax(2).logsumexp(1) - math.log(len(self.members))


class DisGUIDE:
    """Clones that learn the victim's answers, and a generator that learns where they disagree, at no query.

    Args:
        labels: What the victim returns: the clones match its logits (L1) or its class (cross-entropy).
        batch_size: Images of a step.
        generator_steps: Steps of the generator in an iteration; they cost no query.
        clone_steps: Steps of the clones on new images in an iteration.
        replay_steps: Steps of the clones on earlier queries in an iteration.
        replay_size: Earlier queries that are kept.
        weight_diversity: λ, weight of the term that asks for all classes alike; the paper's for 10 classes.
        latent: Numbers of noise an image is made of.
        lr_generator: Of Adam.
        lr_clone: Of SGD.

    Raises:
        InputError: A hyperparameter is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="disguide",
        summary="Steals without data: two clones whose disagreement guides the generator.",
        papers=(
            Paper(
                title="DisGUIDE: Disagreement-Guided Data-Free Model Extraction",
                authors="J. Rosenthal, E. Enouen, H. V. Pham, L. Tan",
                venue="AAAI",
                year=2023,
                identifier="doi:10.1609/aaai.v37i8.26150",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the deviation of the clones' outputs",
                code="its gradient is NaN where all of them agree exactly",
                default="neither",
                option="disagreement_loss(eps=0)",
            ),
        ),
    )

    def __init__(
        self,
        *,
        labels: Labels = "soft",
        batch_size: int = 256,
        generator_steps: int = 1,
        clone_steps: int = 1,
        replay_steps: int = 3,
        replay_size: int = 1_000_000,
        weight_diversity: float = 0.2,
        latent: int = 256,
        lr_generator: float = 1e-4,
        lr_clone: float = 0.03,
    ) -> None:
        check_counts(
            batch_size, generator_steps=generator_steps, clone_steps=clone_steps, latent=latent, replay_size=replay_size
        )
        if labels not in get_args(Labels):
            raise unknown_name("kind of labels", labels, get_args(Labels))
        self.labels = labels
        self.batch_size, self.generator_steps, self.clone_steps = batch_size, generator_steps, clone_steps
        self.replay_steps, self.replay_size = int(not_negative("replay_steps", replay_steps)), replay_size
        self.weight_diversity, self.latent = not_negative("weight_diversity", weight_diversity), latent
        self.lr_generator, self.lr_clone = positive("lr_generator", lr_generator), positive("lr_clone", lr_clone)

    @property
    def cost(self) -> int:
        """Queries of one iteration."""
        return self.batch_size * self.clone_steps

    def steal(
        self,
        ask: Ask,
        clone: Ensemble,
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
            clone: Fresh clones, which map pixels in 0..1 to logits; trained in place.
            shape: Channels, height and width of the images.
            budget: Queries to make; the learning rates fall after 10, 30 and 50 % of it.
            seed: Seed of every draw.
            measure: Measures the clones, as one, at regular shares of the budget.
            fabric: Its device is used; by default the processor.
            show_progress: Whether to show progress on standard error.

        Raises:
            InputError: The budget does not pay for one iteration, or there is a single clone.
            TrainingDivergedError: A loss is not finite.
        """
        if not isinstance(clone, Ensemble):
            raise InputError("DisGUIDE trains several clones; pass clone=Ensemble([...]) with at least 2 fresh ones")
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
        self, attack: DisGUIDE, ask: Ask, clones: Ensemble, generator: Generator, iterations: int, seed: int
    ) -> None:
        self.attack, self.clones, self.generator = attack, clones, generator
        self.device = next(generator.parameters()).device
        self.ask = asking(ask, self.device)
        self.stream = random_stream(seed)
        self.replay = Replay(attack.replay_size)
        self.clone_optimizer = torch.optim.SGD(clones.parameters(), attack.lr_clone, momentum=0.9, weight_decay=5e-4)
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), attack.lr_generator)
        optimizers = (self.clone_optimizer, self.generator_optimizer)
        self.schedules = [stepwise(optimizer, iterations) for optimizer in optimizers]

    def step(self) -> dict[str, Tensor]:
        """Do one iteration: generator, clones, replay."""
        for _ in range(self.attack.generator_steps):
            generator_loss = self._teach_generator()
        for _ in range(self.attack.clone_steps):
            self.generator.eval()
            with torch.no_grad():
                pixels = self._pixels()
            answers = self.ask(pixels)
            self.replay.add(pixels.cpu(), answers.cpu())
            clone_loss = self._teach_clones(pixels, answers)
        for _ in range(self.attack.replay_steps):
            earlier = self.replay.draw(self.attack.batch_size, self.stream)
            self._teach_clones(*(tensor.to(self.device) for tensor in earlier))
        for schedule in self.schedules:
            schedule.step()
        return {"generator_loss": generator_loss, "clone_loss": clone_loss}

    def _pixels(self) -> Tensor:
        noise = torch.randn((self.attack.batch_size, self.attack.latent), generator=self.stream)
        return Generator.pixels(self.generator(noise.to(self.device)))

    def _teach_generator(self) -> Tensor:
        self.clones.eval()
        self.generator.train()
        loss = disagreement_loss(self.clones.logits(self._pixels()), weight_diversity=self.attack.weight_diversity)
        self.generator_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.generator_optimizer.step()
        return loss.detach()

    def _teach_clones(self, pixels: Tensor, answers: Tensor) -> Tensor:
        self.clones.train()
        each = self.clones.logits(pixels)
        if self.attack.labels == "hard":
            loss = sum((F.cross_entropy(logits, answers.argmax(1)) for logits in each.unbind(1)), each.new_zeros(()))
        else:
            victim = reconstruct_logits(answers)
            loss = sum((discrepancy(logits, victim).mean() for logits in each.unbind(1)), each.new_zeros(()))
        self.clone_optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.clone_optimizer.step()
        return loss.detach() / each.shape[1]
