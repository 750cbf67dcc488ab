"""The training task of every online method, and what is measured of its group."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.distillation.networks import Network
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.diversity import disagreement, diversity
from stillroom.distillation.online.peers import PeerGroup
from stillroom.distillation.online.rampup import consistency_weight
from stillroom.errors import InputError
from stillroom.models._trace import evaluating
from stillroom.training._sums import sum_over_processes
from stillroom.training.contracts import Loader
from stillroom.training.evaluate import evaluation_mode, to_device

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["OnlineTask", "PeerFigures", "peer_figures"]


class OnlineTask(nn.Module):
    """A group of peers, a method with its own modules, and their objective; one optimiser trains them all.

    Args:
        group: The peers, the deployed one first.
        method: A built method, see :meth:`~stillroom.distillation.online._method.Method.build`.
        epochs: Of the whole training, for the ramp-up.
    """

    def __init__(self, group: PeerGroup, method: Method, *, epochs: int) -> None:
        super().__init__()
        self.group = group
        self.method = method
        self.epochs = epochs
        self.register_buffer("weight", torch.tensor(1.0), persistent=False)
        self.weight: Tensor

    def start_epoch(self, epoch: int) -> None:
        """Set the ramp-up weight of the terms between peers."""
        method = self.method
        self.weight.fill_(
            consistency_weight(epoch - 1, length=method.rampup, start_fraction=method.rampup_start, epochs=self.epochs)
        )

    def say(self, images: Tensor) -> Said:
        """Return what all members answer."""
        said: Said = self.group(images, self.method.at_trunk)
        return said

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        said = self.say(batch.images)
        parts: dict[str, Tensor] = self.method(said, batch.target, self.weight)
        return {**parts, "output": said.logits[:, 0].detach()}

    def predict(self, images: Tensor) -> Tensor:
        return self.group.first(images)

    @classmethod
    def build(
        cls,
        members: Sequence[Network],
        method: Method,
        sample: Batch,
        *,
        branch: str | None,
        epochs: int,
        seed: int,
    ) -> OnlineTask:
        """Form the group and create the method's own modules, sized by one forward pass on a sample batch.

        Args:
            members: Networks on the training device, trained in place; the deployed one first.
            method: A fresh method; its modules are created here.
            sample: One training batch on the training device, of the size of all batches to come.
            branch: Where the members part, see :meth:`PeerGroup.form`.
            epochs: Of the whole training.
            seed: Seed of the method's own modules.

        Raises:
            InputError: The method cannot work for this group.
        """
        group = PeerGroup.form(members, method, sample.images[:2], branch)
        with evaluating(group):
            said = group(sample.images)
        device = sample.images.device
        # The modules start alike whatever was drawn before, and nothing is taken from the training's random numbers.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            method.build(said)
        return cls(group, method, epochs=epochs).to(device)

    def rehearse(self, sample: Batch) -> None:
        """Do one step's forward and backward pass on a copy.

        Raises:
            InputError: The group cannot be trained with such a batch.
        """
        copy.deepcopy(self).train()(sample)["loss"].backward()


@dataclass(frozen=True)
class PeerFigures:
    """What a data set says of a group; accuracies in percent.

    Args:
        cross_entropy: Of the deployed member.
        members: Accuracy of every member, the deployed one first.
        peers: Accuracy of those that are peers (all, or all but the leader).
        combined: Accuracy of every ensemble by name.
        diversity: Mean distance between the distributions of two peers; none for a single peer.
        disagreement: Fraction of samples and pairs of peers that answer different classes; none for a single peer.
    """

    cross_entropy: float
    members: tuple[float, ...]
    peers: tuple[float, ...]
    combined: dict[str, float]
    diversity: float | None
    disagreement: float | None

    @property
    def mean(self) -> float:
        """Mean accuracy of the peers."""
        return sum(self.peers) / len(self.peers)

    def record(self) -> dict[str, float]:
        """Return all that one epoch's record holds, by name."""
        found = {"accuracy": self.members[0], "cross_entropy": self.cross_entropy, "mean_accuracy": self.mean}
        found |= {f"{name}_accuracy": value for name, value in self.combined.items()}
        if self.diversity is not None and self.disagreement is not None:
            found |= {"diversity": self.diversity, "disagreement": self.disagreement}
        return found


def peer_figures(task: OnlineTask, loader: Loader, fabric: Fabric) -> PeerFigures:
    """Measure all members, their ensembles and their diversity in one pass over a loader, all processes together."""
    totals: Tensor | None = None
    names: list[str] = []
    peers, count = 0, len(task.group.members)
    with evaluation_mode(task):
        for batch in loader.epoch(1):
            images, target, _ = to_device(batch, fabric.device)
            with fabric.autocast():
                said = task.say(images)
                combined = task.method.ensembles(said)
            logits = said.logits.float()
            only_peers = task.method.peers(logits)
            names, peers = list(combined), only_peers.shape[1]
            hits = (logits.argmax(2) == target[:, None]).sum(0)
            joint = torch.stack([(answer.argmax(1) == target).sum() for answer in combined.values()])
            apart = logits.new_zeros(2)
            if peers > 1:
                apart = torch.stack([diversity(only_peers), disagreement(only_peers)]) * len(target)
            entropy = F.cross_entropy(logits[:, 0], target, reduction="sum")
            seen = torch.full_like(entropy, len(target))
            sums = torch.cat([torch.stack([seen, entropy]), apart, hits.float(), joint.float()])
            totals = sums if totals is None else totals + sums
    if totals is None:
        raise InputError("there is nothing to evaluate on: the loader has no batch")
    number, entropy_sum, distance, disagreed, *right = sum_over_processes(totals, fabric).tolist()
    accuracies = [100 * hits / number for hits in right]
    return PeerFigures(
        cross_entropy=entropy_sum / number,
        members=tuple(accuracies[:count]),
        peers=tuple(accuracies[count - peers : count]),
        combined=dict(zip(names, accuracies[count:], strict=True)),
        diversity=distance / number if peers > 1 else None,
        disagreement=disagreed / number if peers > 1 else None,
    )
