"""Rows of features, dense or sparse CSR: the few operations torch lacks for the latter."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = [
    "csr",
    "first_not_finite",
    "is_sparse",
    "mostly_zero",
    "rows_normalised",
    "stack_rows",
    "take_rows",
    "zero_rows",
]


def is_sparse(x: Tensor) -> bool:
    """Say whether the features are sparse CSR."""
    return x.layout == torch.sparse_csr


def csr(start: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int], *, check: bool = False) -> Tensor:
    """Return a sparse CSR matrix.

    Args:
        start: Where each row's entries start, and where the last one's end.
        column: Column of each entry.
        value: Its value.
        shape: Rows and columns.
        check: Check that the parts fit each other, as must be done once for what a user brings: a column outside the
            matrix would be read from foreign memory.

    Raises:
        InputError: They do not fit.
    """
    _notice_given()
    try:
        return torch.sparse_csr_tensor(start.long(), column.long(), value, shape, check_invariants=check)
    except RuntimeError as error:
        raise InputError(f"the sparse features are damaged: {str(error).splitlines()[0]}") from error


@functools.cache
def _notice_given() -> None:
    """Let torch say once, unheard, that sparse CSR is a beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def first_not_finite(x: Tensor) -> tuple[int, int] | None:
    """Return row and column of the first value that is NaN or infinite, if there is one."""
    values = x.values() if is_sparse(x) else x
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return None
    if not is_sparse(x):
        row, column = (~finite).nonzero()[0].tolist()
        return row, column
    entry = int((~finite).nonzero()[0])
    row = int(torch.searchsorted(x.crow_indices(), entry, right=True)) - 1
    return row, int(x.col_indices()[entry])


def mostly_zero(x: Tensor) -> bool:
    """Say whether no feature is negative and more than half of them are zero, as in bags of words."""
    values = x.values() if is_sparse(x) else x
    if bool((values < 0).any()):
        return False
    return 2 * int(torch.count_nonzero(values)) < x.shape[0] * x.shape[1]


def zero_rows(x: Tensor) -> Tensor:
    """Mark the rows that are all zeros.

    Shapes:
        x: [N, F]. Returns [N], bool.
    """
    if not is_sparse(x):
        return ~x.any(1)
    zero = torch.ones(x.shape[0], dtype=torch.bool)
    zero[_row_of_entry(x)[x.values() != 0]] = False
    return zero


def rows_normalised(x: Tensor) -> Tensor:
    """Divide every row by its sum; rows of zeros stay as they are.

    Shapes:
        x: [N, F], not negative. Returns the same.

    Example:
        >>> rows_normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]])
    """
    if not is_sparse(x):
        sums = x.sum(1, keepdim=True)
        return x / torch.where(sums > 0, sums, 1.0)
    row = _row_of_entry(x)
    sums = torch.zeros(x.shape[0]).index_add_(0, row, x.values())
    value = x.values() / torch.where(sums > 0, sums, 1.0)[row]
    return csr(x.crow_indices(), x.col_indices(), value, (x.shape[0], x.shape[1]))


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows at these positions, in this order.

    Shapes:
        x: [N, F]. index: [n], int64. Returns [n, F].
    """
    if not is_sparse(x):
        return x[index]
    first = x.crow_indices()[index]
    count = x.crow_indices()[index + 1] - first
    start = torch.zeros(len(index) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(count, 0, out=start[1:])
    entry = torch.repeat_interleave(first - start[:-1], count)
    entry += torch.arange(len(entry), device=x.device)
    return csr(start, x.col_indices()[entry], x.values()[entry], (len(index), x.shape[1]))


def stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of several matrices, all dense or all sparse CSR, one below the other."""
    if not is_sparse(parts[0]):
        return torch.cat(list(parts))
    starts, before = [parts[0].crow_indices()[:1]], 0
    for part in parts:
        starts.append(part.crow_indices()[1:] + before)
        before += part.values().shape[0]
    column, value = (
        torch.cat(entries) for entries in zip(*((p.col_indices(), p.values()) for p in parts), strict=True)
    )
    return csr(torch.cat(starts), column, value, (sum(part.shape[0] for part in parts), parts[0].shape[1]))


def _row_of_entry(x: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(x.shape[0], device=x.device), x.crow_indices().diff())
