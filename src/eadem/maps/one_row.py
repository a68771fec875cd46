"""Rows through the factors of a matrix, with what numba compiles (`_row_kernels`).

One row is what a model takes that writes token after token. There the time is that of reading
the factors, and what two products, a pick and a placing cost as calls of their own is a good
part of it: they are one call here. Of many rows torch computes the products, and the pick or
the placing is compiled, for which torch has no fast way, and none that uses several threads.
Where numba is missing, `compiled` gives None and torch does it all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from eadem.maps import pool

__all__ = ["OneRow", "compiled"]

_threads = torch.get_num_threads
_modes = torch._C._len_torch_dispatch_stack
_functions = torch._C._len_torch_function_stack
_included = torch._C._dispatch_tls_is_dispatch_key_included
_BEFORE = torch._C.DispatchKey.PreDispatch
#: So many rows are many; and with so many numbers a pick is divided among threads.
_MANY, _WIDE = 8, 16384
#: What stands before the length of one row in its shape, by the number of dimensions.
_ONES: tuple[tuple[int, ...], ...] = ((), (), (1,), (1, 1))


@functools.cache
def _kernels() -> Any:
    try:
        from eadem.maps import _row_kernels
    except (ImportError, RuntimeError):  # not there; nowhere to keep what it compiles
        return None
    return None if _row_kernels.IDLE else _row_kernels


def _operand(m: Tensor) -> tuple[int, bool, int] | None:
    """Where a matrix lies, whether row after row, and the step; None for any other layout."""
    if m.stride(1) == 1:
        return m.data_ptr(), True, m.stride(0)
    if m.stride(0) == 1:
        return m.data_ptr(), False, m.stride(1)
    return None


class OneRow:
    """(x, bias) ↦ what `multiplied` gives of the same factors, for an x of one row or of many;
    None for an x, or at a time, that this is not for.

    A product that picks its pivots has two steps, as `picked` and `spread`; `half` is the
    first, for one row. The addresses are those of `held`, which must stay where it is.
    """

    __slots__ = (
        "_factors",
        "_inner",
        "_kernels",
        "_lists",
        "_order",
        "_outputs",
        "_picks",
        "_run",
        "_table",
        "_where",
        "_width",
    )

    def __init__(self, held: Sequence[Tensor], operands: Sequence[Any], kernels: Any) -> None:
        c, t = held[0], held[1]
        picks = len(held) == 4
        r, k, n = (*t.shape[::-1], c.shape[1]) if picks else (*t.shape, c.shape[0])
        inputs, outputs = (r + k, n) if picks else (n, r + k)
        places = [p.data_ptr() for p in held[2:]]
        self._table = np.array([r, k, n, *operands[0], *operands[1], *places], dtype=np.uint64)
        self._where = self._table.ctypes.data
        lists = [r, k, *places] if picks else [r + k, 0, places[0], places[0]]
        self._lists = np.array(lists, dtype=np.uint64)
        self._order = self._lists.ctypes.data
        self._factors, self._picks, self._width = (c, t), picks, inputs
        self._kernels = kernels
        self._run = kernels.whole if picks else kernels.scattered
        self._inner, self._outputs = (1, r), (outputs,)

    def __call__(
        self, x: Tensor, bias: Tensor | None, inner: Tensor | None = None
    ) -> Tensor | None:
        """x·Wᵀ + bias; with `inner`, what `half` gives for this x, only the rest of it."""
        if not _plain(x if inner is None else inner):
            return None
        place = 0
        if bias is not None:
            if bias.shape != self._outputs or not _plain_bias(bias):
                return None
            place = bias.data_ptr()
        if not self._alone(x):
            return self._many(x, bias) if inner is None else None
        threads = _threads()
        if inner is not None:
            if threads > 1:
                return None
            y = x.new_empty(_ONES[x.dim()] + self._outputs)
            self._kernels.onward(inner.data_ptr(), y.data_ptr(), place, self._where)
            return y
        where = 0 if threads == 1 else _pool(threads, self._kernels)
        if where is None:
            return None
        y = x.new_empty(_ONES[x.dim()] + self._outputs)
        self._run(x.data_ptr(), y.data_ptr(), place, self._where, where)
        return y

    def half(self, x: Tensor) -> Tensor | None:
        """The first half, (1, r)."""
        if not _plain(x) or not self._alone(x) or _threads() > 1:
            return None
        y = x.new_empty(self._inner)
        self._kernels.picked(x.data_ptr(), y.data_ptr(), 0, self._where)
        return y

    def _alone(self, x: Tensor) -> bool:
        """Whether it is one row, of one, two or three dimensions."""
        return 0 < x.dim() < 4 and x.numel() == self._width == x.size(-1)

    def _many(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Many rows: the products by torch."""
        if x.dim() < 2 or x.shape[-1] != self._width or x.numel() < _MANY * self._width:
            return None
        flat = x if x.dim() == 2 else x.view(-1, self._width)
        c, t = self._factors
        if self._picks:
            both = self._gathered(flat)
            if both is None:
                return None
            r = t.shape[1]
            inner = both[:, :r].addmm_(both[:, r:], t)
            found = inner.mm(c) if bias is None else torch.addmm(bias, inner, c)
        else:
            r = c.shape[1]
            both = x.new_empty(flat.shape[0], self._outputs[0])
            torch.mm(torch.mm(flat, c, out=both[:, :r]), t, out=both[:, r:])
            placed = self._gathered(both)
            if placed is None:
                return None
            found = placed if bias is None else placed.add_(bias)
        return found if x.dim() == 2 else found.view(*x.shape[:-1], self._outputs[0])

    def _gathered(self, rows: Tensor) -> Tensor | None:
        """The rows with their numbers in the order of the lists."""
        threads = _threads() if rows.numel() > _WIDE else 1
        where = 0 if threads == 1 else _pool(threads, self._kernels)
        if where is None:
            return None
        found = torch.empty_like(rows)
        gather = self._kernels.gathered
        gather(rows.data_ptr(), found.data_ptr(), rows.shape[0], self._order, where)
        return found


@functools.cache
def _pool(threads: int, kernels: Any) -> int | None:
    """The address of the table of so many threads; None where torch's cannot be used."""
    found = pool.table(threads, kernels.WORKERS)
    return None if found is None else int(found.ctypes.data)


def _plain(x: Tensor) -> bool:
    """Whether this is nothing but float32 in memory, and nobody watches what is called."""
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and not x.is_neg()
        and x.data_ptr() != 0  # of zeros that have no memory, and of what wraps another
        and not _modes()
        and not _functions()
        and not _included(_BEFORE)
        and forward_ad._current_level < 0
    )


def _plain_bias(bias: Tensor) -> bool:
    return (
        type(bias) in (Parameter, Tensor)
        and bias.dtype is torch.float32
        and bias.is_cpu
        and bias.is_contiguous()
        and not bias.is_neg()
    )


def compiled(held: tuple[Tensor, ...]) -> OneRow | None:
    """The product of what `Product.held` gives; None where torch is to do it: without numba,
    for other numbers than float32, and away from the CPU.
    """
    if any(type(m) is not Tensor or not m.is_cpu for m in held):
        return None
    operands = [_operand(m) for m in held[:2]]
    if held[0].dtype is not torch.float32 or None in operands:
        return None
    kernels = _kernels()
    return None if kernels is None else OneRow(held, operands, kernels)
