"""The local structure of node embeddings: how similar each node is to its neighbours, and how networks differ in it.

Y. Yang, J. Qiu, M. Song, D. Tao, X. Wang, "Distilling Knowledge from Graph Convolutional Networks", CVPR 2020 (LSP), in
the form of Alignahead's released code. Everything is computed edge by edge; nothing here loops over nodes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive

__all__ = [
    "Kernel",
    "check_kernel",
    "edge_kernel",
    "in_edge_log_softmax",
    "local_structure",
    "lsp_loss",
    "structure_kl",
]

Kernel = Literal["l1_exp", "rbf", "linear", "poly"]

_EDGES_AT_ONCE = 4096  # their differences of features stay in the processor's cache


def check_kernel(kernel: str, scale: float | str) -> None:
    """Refuse options :func:`edge_kernel` does not have.

    Raises:
        InputError: The kernel is unknown, or the scale neither auto nor a finite number above 0.
    """
    if kernel not in get_args(Kernel):
        raise InputError(f"kernel must be l1_exp, rbf, linear or poly, not {kernel!r}")
    if isinstance(scale, str):
        if scale != "auto":
            raise InputError(f"scale must be auto or a number, not {scale!r}")
    else:
        positive("scale", scale)


def edge_kernel(
    features: Tensor, edge_index: Tensor, *, kernel: Kernel = "l1_exp", scale: float | Literal["auto"] = 100.0
) -> Tensor:
    """Return the similarity of the two ends of every edge.

    ``l1_exp``: ``exp(-|h_s - h_d|_1 / scale)``, Alignahead's; ``rbf``: ``exp(-|h_s - h_d|_2^2 / scale)``; ``linear``:
    ``h_s . h_d / scale``; ``poly``: ``(h_s . h_d / scale)^2``, LSP's other kernels.

    Args:
        features: Node embeddings, the heads of attention concatenated.
        edge_index: Sources and destinations.
        kernel: Which similarity.
        scale: What distances or products are divided by. 100 is Alignahead's, whatever the width: narrow or normalised
            embeddings are then all alike. ``auto`` takes the mean over the edges, without gradient.

    Shapes:
        features: [N, D]; edge_index: [2, E], int64; the result: [E].

    Raises:
        InputError: The kernel is unknown, the scale not positive, or a shape another.

    Example:
        >>> edge_kernel(torch.tensor([[0.0], [100.0]]), torch.tensor([[0, 0], [0, 1]]))
        tensor([1.0000, 0.3679])
    """
    _check(features, edge_index)
    check_kernel(kernel, scale)
    source, destination = edge_index
    features = full_precision(features)
    if kernel == "l1_exp":
        raw: Tensor = _EdgeL1.apply(features, source, destination)
    else:
        ends = features.index_select(0, source), features.index_select(0, destination)
        raw = (ends[0] - ends[1]).square().sum(1) if kernel == "rbf" else (ends[0] * ends[1]).sum(1)
    if scale == "auto":
        mean = raw.detach().abs().mean()
        # Where all distances are 0 the kernel is 1 whatever it is divided by.
        scaled = raw / torch.where(mean > 0, mean, 1)
    else:
        scaled = raw / scale
    return torch.exp(-scaled) if kernel in ("l1_exp", "rbf") else scaled if kernel == "linear" else scaled.square()


def in_edge_log_softmax(values: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Return the logarithm of a softmax over the incoming edges of every node.

    Shapes:
        values: [E]; edge_index: [2, E], int64; the result: [E]. Nodes without incoming edges have no entry.

    Example:
        >>> edges = torch.tensor([[0, 1, 2], [2, 2, 0]])
        >>> in_edge_log_softmax(torch.zeros(3), edges, 3).exp()
        tensor([0.5000, 0.5000, 1.0000])
    """
    destination = edge_index[1]
    # Any shift cancels; the largest value of each node keeps the exponentials from overflowing.
    most = (
        values.detach().new_zeros(num_nodes).scatter_reduce(0, destination, values.detach(), "amax", include_self=False)
    )
    shifted = values - most.index_select(0, destination)
    total = shifted.new_zeros(num_nodes).index_add(0, destination, shifted.exp())
    return shifted - total.index_select(0, destination).log()


def local_structure(
    features: Tensor, edge_index: Tensor, *, kernel: Kernel = "l1_exp", scale: float | Literal["auto"] = 100.0
) -> Tensor:
    """Return every edge's weight among the incoming edges of its destination, the local structure vectors.

    ``w_e = exp(k_e) / sum_{e' in In(d_e)} exp(k_e')`` with k of :func:`edge_kernel`: a softmax of the kernel's *value*.

    Shapes:
        features: [N, D]; edge_index: [2, E], int64; the result: [E].

    Example:
        >>> local_structure(torch.zeros(3, 8), torch.tensor([[0, 1], [2, 2]]))
        tensor([0.5000, 0.5000])
    """
    values = edge_kernel(features, edge_index, kernel=kernel, scale=scale)
    return in_edge_log_softmax(values, edge_index, features.shape[0]).exp()


def structure_kl(
    log_target: Tensor, log_learner: Tensor, edge_index: Tensor, num_nodes: int, *, nodes: Tensor | None = None
) -> Tensor:
    """Return how far the learner's local structure is from the target's.

    ``1/N sum_v sum_{e in In(v)} p_e (log p_e - log q_e)``, p the target and q the learner. The mean is over all N
    nodes, those without incoming edges add 0. Whichever of the two must not learn is for the caller to detach.

    Args:
        log_target: log p, see :func:`in_edge_log_softmax`.
        log_learner: log q.
        edge_index: Sources and destinations.
        num_nodes: N.
        nodes: Compare these nodes only; N is then their number. A sampled graph holds all in-edges of some nodes only.

    Shapes:
        log_target, log_learner: [E]; edge_index: [2, E], int64; nodes: [N], bool.

    Returns:
        A scalar.

    Example:
        >>> edges = torch.tensor([[0, 1], [2, 2]])
        >>> p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
        >>> print(f"{structure_kl(p.log(), q.log(), edges, 3):.4f}")
        0.1227
    """
    each = log_target.exp() * (log_target - log_learner)
    if nodes is None:
        return each.sum() / num_nodes
    kept = nodes.to(each.dtype)
    return (each * kept.index_select(0, edge_index[1])).sum() / kept.sum().clamp(min=1)


def lsp_loss(
    student: Tensor,
    teacher: Tensor,
    edge_index: Tensor,
    *,
    direction: Literal["student_teacher", "teacher_student"] = "student_teacher",
    kernel: Kernel = "l1_exp",
    scale: float | Literal["auto"] = 100.0,
    nodes: Tensor | None = None,
) -> Tensor:
    """Return the LSP loss between the embeddings of two networks on one graph; the teacher's are not detached.

    Args:
        student: Embeddings of the network that learns.
        teacher: Embeddings of the one it learns from.
        edge_index: Sources and destinations.
        direction: Which distribution stands before the logarithm: the student's, as in LSP, or the teacher's, as in
            Alignahead.
        kernel: See :func:`edge_kernel`.
        scale: See :func:`edge_kernel`.
        nodes: See :func:`structure_kl`.

    Shapes:
        student: [N, D]; teacher: [N, D'], the widths may differ; edge_index: [2, E], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The two do not have as many nodes, or an option is unknown.
    """
    if student.shape[0] != teacher.shape[0]:
        raise InputError(
            f"student and teacher embed {student.shape[0]} and {teacher.shape[0]} nodes; give the same graph"
        )
    if direction not in ("student_teacher", "teacher_student"):
        raise InputError(f"direction must be student_teacher or teacher_student, not {direction!r}")
    N = student.shape[0]
    own, other = (
        in_edge_log_softmax(edge_kernel(features, edge_index, kernel=kernel, scale=scale), edge_index, N)
        for features in (student, teacher)
    )
    before, after = (own, other) if direction == "student_teacher" else (other, own)
    return structure_kl(before, after, edge_index, N, nodes=nodes)


def _check(features: Tensor, edge_index: Tensor) -> None:
    if features.ndim != 2:
        raise InputError(f"embeddings must be [N, D] with heads concatenated, not {list(features.shape)}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype is not torch.int64:
        raise InputError(f"edge_index must be [2, E] int64, not {list(edge_index.shape)} {edge_index.dtype}")


class _EdgeL1(torch.autograd.Function):
    """The L1 distance of the two ends of every edge, a few thousand edges at a time.

    Keeping [E, D] differences for the backward pass is what costs a graph's memory and most of the time; here only the
    [N, D] embeddings are kept and the differences are formed again.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, source: Tensor, destination: Tensor) -> Tensor:
        ctx.save_for_backward(features, source, destination)
        distance = features.new_empty(source.shape[0])
        for part in _parts(source, features):
            distance[part] = _difference(features, source[part], destination[part]).abs_().sum(1)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, source, destination = ctx.saved_tensors
        total = torch.zeros_like(features)
        for part in _parts(source, features):
            signs = _difference(features, source[part], destination[part]).sign_().mul_(gradient[part, None])
            total.index_add_(0, source[part], signs).index_add_(0, destination[part], signs, alpha=-1)
        return total, None, None


def _parts(source: Tensor, features: Tensor) -> list[slice]:
    # An accelerator is quickest in few large pieces, which must still fit beside the rest.
    at_once = (
        _EDGES_AT_ONCE if features.device.type == "cpu" else max(_EDGES_AT_ONCE, 2**28 // max(features.shape[1], 1))
    )
    return [slice(start, start + at_once) for start in range(0, source.shape[0], at_once)]


def _difference(features: Tensor, source: Tensor, destination: Tensor) -> Tensor:
    return features.index_select(0, source).sub_(features.index_select(0, destination))
