"""One row through the factors of a matrix: what a model does that writes token after token.

There the time is that of reading the factors, and what two products, a pick and a placing cost
as calls of their own is a good part of it. Compiled (`_row_kernels`, with numba), they are one
call. Where numba is missing, `compiled` gives None and torch multiplies.
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

__all__ = ["OneRow", "compiled"]

_threads = torch.get_num_threads
_modes = torch._C._len_torch_dispatch_stack
_functions = torch._C._len_torch_function_stack
_included = torch._C._dispatch_tls_is_dispatch_key_included
_BEFORE = torch._C.DispatchKey.PreDispatch


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
    """(x, bias) ↦ what `multiplied` gives of the same factors, for an x of one row; None for
    an x, or at a time, that this is not for.

    A product that picks its pivots has two steps, as `picked` and `spread`; `half` is the
    first. The addresses are those of `held`, which must stay where it is.
    """

    __slots__ = ("_half", "_inner", "_outputs", "_rest", "_run", "_shapes", "_table", "_where")

    def __init__(self, held: Sequence[Tensor], operands: Sequence[Any], kernels: Any) -> None:
        c, t = held[0], held[1]
        picks = len(held) == 4
        r, k, n = (*t.shape[::-1], c.shape[1]) if picks else (*t.shape, c.shape[0])
        inputs, outputs = (r + k, n) if picks else (n, r + k)
        places = [p.data_ptr() for p in held[2:]]
        self._table = np.array([r, k, n, *operands[0], *operands[1], *places], dtype=np.uint64)
        self._where = self._table.ctypes.data
        self._run = kernels.whole if picks else kernels.scattered
        self._half, self._rest = kernels.picked, kernels.onward
        self._inner, self._outputs = (1, r), (outputs,)
        self._shapes = {(*ones, inputs): (*ones, outputs) for ones in ((), (1,), (1, 1))}

    def __call__(
        self, x: Tensor, bias: Tensor | None, inner: Tensor | None = None
    ) -> Tensor | None:
        """x·Wᵀ + bias; with `inner`, what `half` gives for this x, only the rest of it."""
        run, given = (self._run, x) if inner is None else (self._rest, inner)
        if not _plain(given):
            return None
        shape = self._shapes.get(x.shape)
        if shape is None:
            return None
        place = 0
        if bias is not None:
            if bias.shape != self._outputs or not _plain_bias(bias):
                return None
            place = bias.data_ptr()
        y = x.new_empty(shape)
        run(given.data_ptr(), y.data_ptr(), place, self._where)
        return y

    def half(self, x: Tensor) -> Tensor | None:
        """The first half, (1, r)."""
        if not _plain(x) or x.shape not in self._shapes:
            return None
        y = x.new_empty(self._inner)
        self._half(x.data_ptr(), y.data_ptr(), 0, self._where)
        return y


def _plain(x: Tensor) -> bool:
    """Whether this is nothing but float32 in memory, and nobody watches what is called; and
    whether torch has no more threads than these loops, which have one.
    """
    return (
        type(x) is Tensor
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and x.is_contiguous()
        and not x.is_neg()
        and x.data_ptr() != 0  # of zeros that have no memory, and of what wraps another
        and _threads() == 1
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
