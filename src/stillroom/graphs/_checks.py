"""The checks a raw graph passes once, each a line that names the node, edge or split it is about."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.graphs._features import csr, first_not_finite, is_sparse

__all__ = ["checked_edges", "checked_features", "checked_labels", "checked_masks", "is_multilabel"]

SPLITS = ("train", "val", "test")


def is_multilabel(y: Tensor) -> bool:
    """Say whether every node has several labels, zeros and ones, rather than one class."""
    return y.dim() == 2


def checked_labels(y: object, place: str) -> Tensor:
    """Return the labels as int64 classes [N] or float32 zeros and ones [N, C].

    Raises:
        InputError: They are neither.
    """
    if not isinstance(y, Tensor):
        raise InputError(f"{place} has no labels; give it y, a class or a row of zeros and ones for every node")
    whole = not y.dtype.is_floating_point and not y.dtype.is_complex
    if y.dim() == 2 and y.shape[1] == 1 and whole and y.dtype != torch.bool:
        y = y[:, 0]
    if y.dim() not in (1, 2) or y.shape[0] == 0:
        raise InputError(f"{place}: y has shape {tuple(y.shape)}; it must be [nodes] or [nodes, classes]")
    y = y.detach().cpu()
    if y.dim() == 2:
        odd = ((y != 0) & (y != 1)).nonzero()  # NaN is odd too
        if len(odd):
            node, label = odd[0].tolist()
            raise InputError(
                f"{place}: node {node} has {y[node, label].item()} for label {label}; several labels a node are zeros "
                "and ones"
            )
        return y.float()
    if not whole or y.dtype == torch.bool:
        raise InputError(f"{place}: y is {y.dtype}; one label a node is an integer, several are rows of zeros and ones")
    y = y.long()
    if int(y.min()) < -1:
        node = int((y < -1).nonzero()[0])
        raise InputError(f"{place}: node {node} has label {int(y[node])}; classes count from 0, and -1 is unknown")
    return y


def checked_features(x: object, nodes: int, place: str) -> Tensor:
    """Return the features as float32, dense or sparse CSR.

    Raises:
        InputError: They are missing, not one row a node, damaged or not finite.
    """
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] == 0:
        given = f"x has shape {tuple(x.shape)}" if isinstance(x, Tensor) else "there is no x"
        raise InputError(f"{place} has no features: {given}; give every node a row of at least one")
    if x.shape[0] != nodes:
        raise InputError(f"{place} has {x.shape[0]} rows of features and {nodes} labels; both are one a node")
    if x.dtype.is_complex:
        raise InputError(f"{place}: the features are {x.dtype}; they must be real numbers")
    x = x.detach().cpu()
    if x.layout == torch.sparse_coo:
        x = x.coalesce().to_sparse_csr()
    if is_sparse(x):
        x = csr(x.crow_indices(), x.col_indices(), x.values().float(), (x.shape[0], x.shape[1]), check=True)
    elif x.layout == torch.strided:
        x = x.float().contiguous()
    else:
        raise InputError(f"{place}: the features are {x.layout}; make them dense or sparse CSR")
    if (at := first_not_finite(x)) is not None:
        raise InputError(f"{place}: feature {at[1]} of node {at[0]} is NaN or infinite (in float32); replace it")
    return x


def checked_edges(edge_index: object, nodes: int, place: str) -> Tensor:
    """Return the edges as int64.

    Raises:
        InputError: They are missing, no two rows of integers, or name a node that is not there.
    """
    if not isinstance(edge_index, Tensor):
        raise InputError(f"{place} has no edges; give it edge_index, sources above destinations")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise InputError(f"{place}: edge_index has shape {tuple(edge_index.shape)}; it must be [2, edges]")
    if edge_index.dtype.is_floating_point or edge_index.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise InputError(f"{place}: edge_index is {edge_index.dtype}; nodes are numbered by integers")
    edges = edge_index.detach().cpu().long()
    if edges.shape[1] and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        bad = int(((edges < 0) | (edges >= nodes)).any(0).nonzero()[0])
        source, destination = edges[:, bad].tolist()
        raise InputError(
            f"{place}: edge {bad} runs from node {source} to node {destination}, outside the {nodes} nodes "
            f"(0..{nodes - 1})"
        )
    return edges


def checked_masks(masks: Mapping[str, object], y: Tensor, place: str) -> dict[str, Tensor]:
    """Return the masks of the three splits; one that is missing marks nothing.

    Args:
        masks: By split: train, val, test.
        y: The checked labels.
        place: What the messages call the graph.

    Raises:
        InputError: A mask has another type or length, two overlap, or a marked node has no known label.
    """
    checked: dict[str, Tensor] = {}
    for split in SPLITS:
        mask = masks.get(split)
        if mask is None:
            mask = torch.zeros(len(y), dtype=torch.bool)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != y.shape[:1]:
            given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"{place}: {split}_mask is {given}; it must be torch.bool ({len(y)},)")
        mask = mask.detach().cpu()
        for other, earlier in checked.items():
            if (both := (mask & earlier).nonzero()).numel():
                raise InputError(
                    f"{place}: {len(both)} nodes are in {other} and in {split} (the first is {int(both[0])}); "
                    "a node belongs to one split at most"
                )
        if not is_multilabel(y) and (unknown := int((mask & (y < 0)).sum())):
            raise InputError(
                f"{place}: {unknown} nodes of {split}_mask have no known label (-1); take them out of the mask"
            )
        checked[split] = mask
    return checked
