"""What the adaptive strategy of Knockoff Nets chooses its queries by: rewards, and a bandit over classes of images.

T. Orekondy, B. Schiele, M. Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models", CVPR 2019.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from stillroom.defense.attacks.clone import FLOOR
from stillroom.defense.contracts import Floats, softmax
from stillroom.errors import InputError, unknown_name

__all__ = ["Bandit", "Reward", "Rewards", "certainty", "diversity", "imitation_loss"]

Reward = Literal["certainty", "diversity", "loss", "all"]


def certainty(victim: Floats) -> Floats:
    """Return how sure the victim is: its highest probability less the second.

    Shapes:
        victim: [N, K]. Returns [N].

    Example:
        >>> certainty(np.array([[0.25, 0.75, 0.0]])).tolist()
        [0.5]
    """
    ordered = np.sort(victim, -1)
    return np.asarray(ordered[..., -1] - ordered[..., -2])


def diversity(victim: Floats, mean: Floats) -> Floats:
    """Return how far each answer exceeds the mean of the answers so far: ``Σ_k max(0, y_k - ȳ_k)``.

    Shapes:
        victim, mean: [N, K]; the mean includes the answer itself. Returns [N].

    Example:
        >>> diversity(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])).tolist()
        [0.5]
    """
    return np.asarray(np.maximum(0, victim - mean).sum(-1))


def imitation_loss(victim: Floats, clone: Floats) -> Floats:
    """Return the cross-entropy of the victim's and the clone's probabilities, ``-Σ_k y_k log ŷ_k``.

    Shapes:
        victim, clone: [N, K], probabilities. Returns [N].

    Example:
        >>> imitation_loss(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]])).tolist()
        [0.0]
    """
    return np.asarray(-(victim * np.log(np.maximum(clone, FLOOR))).sum(-1) + 0.0)


class Rewards:
    """The reward of one query after another, with the running means it needs.

    Args:
        kind: One of the three rewards, or the mean of all of them, each standardised by its running mean and variance.
    """

    def __init__(self, kind: Reward = "all") -> None:
        if kind not in get_args(Reward):
            raise unknown_name("reward", kind, get_args(Reward))
        self.kind = kind
        self._count = 0
        self._sum: Floats | float = 0.0
        self._steps = 0
        self._mean, self._variance = np.zeros(3), np.zeros(3)

    def __call__(self, victim: Floats, clone: Floats) -> float:
        """Return the reward of one answer [K], given the clone's probabilities [K]."""
        self._count += 1
        self._sum = self._sum + victim
        found = {
            "certainty": certainty(victim),
            "diversity": diversity(victim, self._sum / self._count),
            "loss": imitation_loss(victim, clone),
        }
        return self.standardise(np.array(list(found.values()))) if self.kind == "all" else float(found[self.kind])

    def standardise(self, rewards: Floats) -> float:
        """Return the mean of the three rewards [3], each less its running mean, over its running deviation.

        The first rewards have no deviation yet: they are clipped to 0..1 instead.
        """
        self._steps += 1
        self._mean = self._mean + (rewards - self._mean) / self._steps
        self._variance = self._variance + ((rewards - self._mean) ** 2 - self._variance) / self._steps
        if self._steps == 1:
            return float(rewards.clip(0, 1).mean())
        deviation = np.sqrt(self._variance)
        steady = deviation == 0  # it never changed, so there is nothing to prefer
        return float(np.where(steady, 0, (rewards - self._mean) / np.where(steady, 1, deviation)).mean())


class Bandit:
    """A gradient bandit over classes of images.

    With preferences H, policy π = softmax(H), and r̄ the mean of the rewards so far, this one included:
    ``H_k += (r - r̄) (1[k = a] - π_k) / n_a``, where n_a counts the draws of class a, this one included.

    Args:
        actions: Classes there are.

    Example:
        >>> bandit = Bandit(2)
        >>> for reward in (0.0, 1.0):
        ...     bandit.reward(0, reward)
        >>> bandit.preferences.tolist()
        [0.125, -0.125]
    """

    def __init__(self, actions: int) -> None:
        if actions < 1:
            raise InputError(f"{actions} classes to choose from; give at least 1")
        self.preferences = np.zeros(actions)
        self._visits = np.zeros(actions, np.int64)
        self._mean, self._steps = 0.0, 0

    def policy(self) -> Floats:
        """Return the probability of every class [A]."""
        return softmax(self.preferences)

    def reward(self, action: int, reward: float) -> None:
        """Learn what a class brought."""
        self._steps += 1
        self._visits[action] += 1
        self._mean += (reward - self._mean) / self._steps
        step = -self.policy()
        step[action] += 1
        self.preferences = self.preferences + (reward - self._mean) * step / self._visits[action]
