"""The group of peers: complete networks, or branches of their own on one shared trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from stillroom.distillation.networks import Network
from stillroom.distillation.online._method import Method, Said
from stillroom.errors import InputError
from stillroom.models._layout import Layout, layouts_of, to_map
from stillroom.models._trace import evaluating, logits_of
from stillroom.models.signals import TapPaths
from stillroom.models.split import split
from stillroom.models.taps import Tapped

__all__ = ["Ensemble", "PeerGroup", "branch_point"]


class PeerGroup(nn.Module):
    """All members of a group as one module that says what each of them answers.

    The members' parts are their networks' own modules, so training the group trains the first network in place; of the
    others, behind a trunk, the branches alone take part.

    Args:
        trunk: What all branches start from; none for complete networks.
        members: Branches or complete networks, tapped; the deployed one first.
        classifier: Path of the final linear layer in each member, if there is one.
        layout: How the trunk's output becomes a map, for methods that read it.
    """

    def __init__(
        self,
        trunk: nn.Module | None,
        members: Sequence[Tapped],
        *,
        classifier: str | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.members = nn.ModuleList(members)
        self.classifier = classifier
        self.layout = layout

    def forward(self, images: Tensor, at_trunk: Callable[[Tensor, int], Tensor] | None = None) -> Said:
        """Return what all members answer; ``at_trunk(features, members)`` may change what the branches get."""
        features = images if self.trunk is None else self.trunk(images)
        shared = features if at_trunk is None or self.trunk is None else at_trunk(features, len(self.members))
        said = [member(shared) for member in self.members]
        pooled = [one.pooled for one in said]
        return Said(
            logits=torch.stack([one.logits for one in said], dim=1),
            pooled=None if pooled[0] is None else torch.stack(pooled, dim=1),
            maps=torch.stack([one.stages[-1] for one in said], dim=1) if said[0].stages else None,
            trunk=None if self.layout is None else to_map(features, self.layout),
            classifiers=self._classifiers(),
        )

    def first(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of the member that is deployed."""
        logits: Tensor = self.members[0](images if self.trunk is None else self.trunk(images)).logits
        return logits

    def release(self, members: slice) -> Ensemble:
        """Take all taps off, and return the mean of some members as a network of its own."""
        parts = [member.release() for member in self.members if isinstance(member, Tapped)]
        return Ensemble(self.trunk, parts[members])

    def _classifiers(self) -> tuple[Tensor, ...]:
        if self.classifier is None:
            return ()
        return tuple(member.get_parameter(f"model.{self.classifier}.weight") for member in self.members)

    @classmethod
    def form(cls, members: Sequence[Network], method: Method, sample: Tensor, branch: str | None) -> PeerGroup:
        """Make a group of networks of one architecture.

        Args:
            members: Each with weights of its own; they are trained in place. The first one is deployed.
            method: Says what is read from the members and how many it needs.
            sample: Images [B, C, H, W] on the networks' device; B = 2 is enough.
            branch: Path of the module behind which the members part; ``auto`` for the last stage but one, none for
                complete networks.

        Raises:
            InputError: Too few members, members that differ in architecture or not at all in weights, or a place where
                the network cannot be cut.
        """
        name = method.card.name
        if len(members) < method.fewest:
            beside = " beside the leader" if method.has_leader else ""
            fewest = method.fewest - method.has_leader
            raise InputError(
                f"{name} needs at least {fewest} peer{'s' * (fewest > 1)}{beside}, {method.fewest} networks in all, "
                f"not {len(members)}; give --peers {method.fewest} or more"
            )
        if branch is None and method.needs_trunk:
            raise InputError(f"{name} needs branches on a shared trunk; give --branch auto or the path of a module")
        _check_members(members)
        taps = members[0].taps
        paths = TapPaths(taps.stages[-1:], classifier=taps.classifier)
        at = None if branch is None else branch_point(members[0], branch)
        halves = [] if at is None else [split(member.model, at, sample) for member in members]
        tapped = [Tapped(member.model, paths, method.signals, sample=sample) for member in members]
        trunk = halves[0].trunk if halves else None
        layout = None
        if trunk is not None and at is not None:
            for member, half in zip(tapped, halves, strict=True):
                # The taps sit on modules that whole and branch share; on the whole network they met its real images.
                member.model = half.branch
            features = _shared_features(members[0], trunk, tapped, at, sample)
            if method.needs_trunk:
                (layout,) = layouts_of(members[0].model, [features], [at], sample)
        return cls(trunk, tapped, classifier=taps.classifier, layout=layout)


class Ensemble(nn.Module):
    """The mean of several members' logits; what they share runs once.

    Args:
        trunk: What all members start from, if anything.
        members: Branches or complete networks.
    """

    def __init__(self, trunk: nn.Module | None, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits [B, K]."""
        features = images if self.trunk is None else self.trunk(images)
        return torch.stack([logits_of(member(features)) for member in self.members]).mean(0)


def branch_point(network: Network, branch: str) -> str:
    """Return the module behind which members part: the named one, or for ``auto`` the last stage but one.

    Raises:
        InputError: The network has one stage only and nothing is named.
    """
    if branch != "auto":
        return branch
    if len(network.taps.stages) < 2:
        raise InputError(
            f"{network.name} has one stage only, so there is nothing to share in front of the last; name the module "
            "behind which the peers part with --branch PATH, or give --branch none for complete networks"
        )
    return network.taps.stages[-2]


def _check_members(members: Sequence[Network]) -> None:
    states = [dict(member.model.named_parameters()) for member in members]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise InputError("peers must be of one architecture; give the same network specification for all of them")
    for one, other in combinations(states, 2):
        if all(torch.equal(one[name], other[name]) for name in one):
            raise InputError(
                "two peers start from the same weights and would stay alike; create each one afresh (stored weights "
                "cannot start a group)"
            )


def _shared_features(network: Network, trunk: nn.Module, branches: Sequence[Tapped], at: str, sample: Tensor) -> Tensor:
    """Return the trunk's output, and refuse a cut behind which a branch overwrites it for all the others."""
    with evaluating(trunk):
        features = trunk(sample)
    if not isinstance(features, Tensor):
        raise InputError(f"{network.name} cannot part at {at!r}: what passes there is a {type(features).__name__}")
    version = features._version
    for branch in branches:
        with evaluating(branch):
            branch(features)
    if features._version != version:
        raise InputError(
            f"the peers cannot part at {at!r} of {network.name}: the next layer overwrites what they share; part "
            "behind that layer"
        )
    return features
