"""Knockoff Nets: query other images than the victim's, at random or by what teaches most, and train on the answers.

T. Orekondy, B. Schiele, M. Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models", CVPR 2019.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.options import Augment
from stillroom.data.split import random_stream
from stillroom.defense.attacks.clone import CLONE_RECIPE, Measure, Objective, soft_cross_entropy, train_clone
from stillroom.defense.attacks.rewards import Bandit, Reward, Rewards
from stillroom.defense.attacks.target import Ask
from stillroom.defense.attacks.transfer import Stolen, TransferSet, ask_within
from stillroom.defense.contracts import Images, Ints
from stillroom.errors import InputError, unknown_name
from stillroom.training.progress import counting
from stillroom.training.recipe import Recipe, make_optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Knockoff", "Strategy"]

Strategy = Literal["random", "adaptive"]

CHUNK = 256  # queries the random strategy hands over at once


class Knockoff:
    """Query images from elsewhere and train the clone on the answers.

    Args:
        strategy: ``random`` draws without replacement; ``adaptive`` learns which classes of images pay.
        reward: What the adaptive strategy is paid for.
        step: Images the adaptive strategy asks about, and trains on, at a time.
        recipe: How the clone is trained on the transfer set; its optimiser also drives the adaptive strategy's clone.
        objective: Loss of the clone, see :mod:`stillroom.defense.attacks.clone`.
        augment: What to do to the images while training.

    Raises:
        InputError: A hyperparameter is out of its range.
    """

    card: ClassVar[Card] = Card(
        name="knockoff",
        summary="Queries images from elsewhere and trains a clone on the answers.",
        papers=(
            Paper(
                title="Knockoff Nets: Stealing Functionality of Black-Box Models",
                authors="T. Orekondy, B. Schiele, M. Fritz",
                venue="CVPR",
                year=2019,
                identifier="arXiv:1812.02766",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="the loss reward is the cross-entropy of two probabilities",
                code="a public implementation applies softmax to both of them again",
                default="paper",
            ),
            Quirk(
                paper="the adaptive strategy trains after every single query",
                code="so does the public implementation",
                default="neither",
                option="step=1",
            ),
        ),
    )

    def __init__(
        self,
        *,
        strategy: Strategy = "random",
        reward: Reward = "all",
        step: int = 16,
        recipe: Recipe = CLONE_RECIPE,
        objective: Objective = "soft",
        augment: Augment = "none",
    ) -> None:
        for kind, value, known in (("strategy", strategy, Strategy), ("reward", reward, Reward)):
            if value not in get_args(known):
                raise unknown_name(kind, value, get_args(known))
        if step < 1:
            raise InputError(f"step is {step}; it must be at least 1")
        self.strategy, self.reward, self.step = strategy, reward, step
        self.recipe, self.objective, self.augment = recipe, objective, augment

    def steal(
        self,
        ask: Ask,
        clone: nn.Module,
        surrogate: Images,
        *,
        labels: NDArray[np.integer] | None = None,
        budget: int,
        seed: int,
        measure: Measure | None = None,
        fabric: Fabric | None = None,
        show_progress: bool = True,
    ) -> Stolen:
        """Steal. With :class:`~stillroom.defense.attacks.transfer.Recorded` as ``ask`` a killed attack can go on.

        Args:
            ask: The victim.
            clone: Fresh; maps pixels in 0..1 to logits; trained in place.
            surrogate: The images to query.
            labels: Classes of the surrogate images, for the adaptive strategy.
            budget: Queries to make; no image is asked about twice, so at most as many as there are images.
            seed: Seed of every draw.
            measure: Measures the clone after every epoch.
            fabric: Device and precision; by default the processor.
            show_progress: Whether to show progress on standard error.

        Shapes:
            surrogate: [N, C, H, W], uint8. labels: [N].

        Raises:
            InputError: There are no 8-bit images, no budget, or the adaptive strategy lacks labels.
        """
        if budget < 1 or len(surrogate) == 0 or surrogate.dtype != np.uint8:
            raise InputError(
                f"{len(surrogate)} images of type {surrogate.dtype}, {budget} queries; give 8-bit images and queries"
            )
        budget = min(budget, len(surrogate))
        if self.strategy == "random":
            asked = self._random(ask, surrogate, budget, seed, show_progress)
        elif labels is None or len(labels) != len(surrogate):
            raise InputError("the adaptive strategy needs one label for every surrogate image; pass labels=...")
        else:
            # The clone that guides the choice is another one: the transfer set is learnt from scratch afterwards.
            guide = copy.deepcopy(clone) if fabric is None else fabric.to_device(copy.deepcopy(clone))
            asked = self._adaptive(ask, guide, surrogate, np.asarray(labels, np.int64), budget, seed, show_progress)
        if not asked:
            raise InputError("the victim answers no query any more; give the attack a budget")
        transfer = TransferSet.joined(asked)
        history = train_clone(
            clone,
            transfer,
            recipe=self.recipe,
            objective=self.objective,
            augment=self.augment,
            seed=seed,
            measure=measure,
            fabric=fabric,
            show_progress=show_progress,
        )
        return Stolen(clone.eval(), transfer, history)

    def _random(self, ask: Ask, surrogate: Images, budget: int, seed: int, show: bool) -> list[TransferSet]:
        order = torch.randperm(len(surrogate), generator=random_stream(seed)).numpy()[:budget]
        asked: list[TransferSet] = []
        with counting("queries", budget, show=show) as tell:
            for start in range(0, budget, CHUNK):
                part = ask_within(ask, surrogate[order[start : start + CHUNK]])
                if part is None:
                    break
                asked.append(part)
                tell(start + len(part))
        return asked

    def _adaptive(
        self, ask: Ask, guide: nn.Module, surrogate: Images, labels: Ints, budget: int, seed: int, show: bool
    ) -> list[TransferSet]:
        stream = np.random.default_rng(seed)
        waiting = [stream.permutation(np.flatnonzero(labels == c)).tolist() for c in np.unique(labels)]
        bandit, rewards = Bandit(len(waiting)), Rewards(self.reward)
        optimizer = make_optimizer(self.recipe, guide.parameters())
        device = next(guide.parameters()).device
        asked: list[TransferSet] = []
        done = 0
        with counting("queries", budget, show=show) as tell:
            while done < budget:
                actions, chosen = _draw(bandit, waiting, min(self.step, budget - done), stream)
                part = ask_within(ask, surrogate[chosen])
                if part is None:
                    break
                asked.append(part)
                done += len(part)
                pixels = torch.from_numpy(part.images).to(device, torch.float32) / 255
                # A batch of one has no statistics to normalise with where the last maps are single numbers.
                guide.train(len(part) > 1)
                optimizer.zero_grad()
                torch.autograd.backward(soft_cross_entropy(guide(pixels), torch.from_numpy(part.answers).to(device)))
                optimizer.step()
                guide.eval()
                with torch.no_grad():
                    imitated = guide(pixels).double().softmax(1).cpu().numpy()
                paid = actions[: len(part)]  # the budget may have ended within the step
                for action, answer, imitation in zip(paid, part.answers, imitated, strict=True):
                    bandit.reward(action, rewards(answer, imitation))
                tell(done)
        return asked


def _draw(bandit: Bandit, waiting: list[list[int]], count: int, stream: np.random.Generator) -> tuple[list[int], Ints]:
    """Draw classes by the policy among those with images left, and an unseen image of each."""
    actions, chosen = [], []
    policy = bandit.policy()
    for _ in range(count):
        left = np.array([len(images) > 0 for images in waiting], np.float64)
        weight = policy * left
        if weight.sum() == 0:  # only classes the policy has given up have images left
            weight = left
        action = int(stream.choice(len(waiting), p=weight / weight.sum()))
        actions.append(action)
        chosen.append(waiting[action].pop())
    return actions, np.array(chosen, np.int64)
