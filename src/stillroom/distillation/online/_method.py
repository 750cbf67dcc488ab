"""What the online task drives: a method with its own modules, and what the group of peers said."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from stillroom.cards import Card
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision

__all__ = ["Method", "Said"]

Signal = Literal["stages", "pooled"]


class Said(NamedTuple):
    """What all M members of a group answered for one batch; the deployed member comes first.

    Shapes:
        logits: [B, M, K].
        pooled: [B, M, D], the input of every member's classifier; ``None`` unless asked for.
        maps: [B, M, C, H, W], every member's last feature map; ``None`` unless asked for.
        trunk: [B, C', H', W'], the map all branches start from; ``None`` for complete networks.
        classifiers: M weights [K, D] of the members' final linear layers; empty where there are none.
    """

    logits: Tensor
    pooled: Tensor | None = None
    maps: Tensor | None = None
    trunk: Tensor | None = None
    classifiers: tuple[Tensor, ...] = ()


class Method(nn.Module):
    """Base of the online methods: hyperparameters in the constructor, own modules in :meth:`build`.

    A subclass states its ``card``, the ``signals`` it reads beyond the logits, whether it needs a trunk, the fewest
    members it works with, and whether the first member is a leader that takes no part among the peers.
    """

    card: ClassVar[Card]
    signals: ClassVar[frozenset[Signal]] = frozenset()
    needs_trunk: ClassVar[bool] = False
    fewest: ClassVar[int] = 2
    has_leader: ClassVar[bool] = False
    warmup_epochs: int = 0  # epochs until the terms between peers have their full weight
    rampup: int = 0
    rampup_start: float = 0.0

    def build(self, said: Said) -> None:
        """Create the method's own trainable modules from what the group said about a sample batch.

        Raises:
            InputError: The method cannot work for this group; the message says why.
        """

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, ...}``; the other entries are detached scalar parts for the log.

        Args:
            said: What the group answered.
            target: Classes [B].
            weight: Ramp-up weight of the terms between peers, a scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def at_trunk(self, features: Tensor, members: int) -> Tensor:
        """Return what the branches get of the trunk's output; CL-ILR rescales its gradient here."""
        return features

    def peers(self, logits: Tensor) -> Tensor:
        """Return the logits [B, P, K] of those members that are peers: all of them, or all but the leader."""
        return logits[:, 1:] if self.has_leader else logits

    def ensembles(self, said: Said) -> dict[str, Tensor]:
        """Return the logits [B, K] of every way to combine the peers; ``ensemble`` is the mean of their logits."""
        return {"ensemble": full_precision(self.peers(said.logits)).mean(1)}

    def _ramp(self, rampup: int, rampup_start: float) -> None:
        """Keep the hyperparameters of the ramp-up."""
        if rampup < 0:
            raise InputError(f"rampup must not be negative, got {rampup}")
        if not 0 <= rampup_start <= 1:
            raise InputError(f"rampup_start must be between 0 and 1, got {rampup_start}")
        self.rampup, self.rampup_start, self.warmup_epochs = rampup, rampup_start, rampup
