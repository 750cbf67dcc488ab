"""A deliberately bad teacher: confident, and wrong about every class."""

from __future__ import annotations

import torch

from stillroom.distillation.networks import Network, twin
from stillroom.errors import InputError

__all__ = ["corrupted"]


def corrupted(network: Network, *, seed: int) -> Network:
    """Return a copy whose classifier answers, wherever the network would answer a class, always the same other one.

    The rows of its last linear layer are permuted in one cycle, so no class keeps its own; features and confidence
    stay what they were.

    Args:
        network: A trained network.
        seed: Chooses the cycle.

    Raises:
        InputError: The network has no final linear layer, or fewer than two classes.
    """
    bad = twin(network)
    classifier = bad.classifier
    if classifier is None or classifier.out_features < 2:
        raise InputError(f"{network.name} has no final linear layer of at least 2 classes to be corrupted")
    order = torch.randperm(classifier.out_features, generator=torch.Generator().manual_seed(seed))
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)  # each class answers what stood before it in the order
    with torch.no_grad():
        classifier.weight.copy_(classifier.weight[cycle])
        if classifier.bias is not None:
            classifier.bias.copy_(classifier.bias[cycle])
    return bad
