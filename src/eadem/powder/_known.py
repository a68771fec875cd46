"""Functions with compiled derivatives, for torch.

Under `torch.func.jvp` and `vmap` every torch operation costs some tens of microseconds however
small it is. A `Kernel` is one operation, and all directions go through it at once.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "Kernel", "known"]

Array = NDArray[Any]


class Kernel(Protocol):
    """A function of w (k,) and of constants, all float64 or int64 arrays.

    What is not finite, or has no value, is to be NaN.
    """

    def value(self, w: Array, *constants: Array) -> Array:
        """The value, of any shape."""

    def push(self, v: Array, w: Array, *constants: Array) -> Array:
        """The derivatives at w along v (t, k): t values."""

    def pull(self, u: Array, w: Array, *constants: Array) -> Array:
        """The transpose of `push`: u as t values, flat (t, …), gives (t, k)."""


def known(kernel: Kernel, w: Tensor, *constants: Tensor) -> Tensor:
    """The kernel's value, differentiable by w: forward, batched over directions by
    `torch.func.vmap`, and backward; once, not twice.
    """
    return _applied(_Value, kernel, w, *constants)


def _applied(function: Any, *given: Any) -> Tensor:
    found: Tensor = function.apply(*given)
    return found


def _called(function: Any, *given: Tensor) -> Tensor:
    return torch.from_numpy(function(*(v.detach().contiguous().numpy() for v in given)))


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, w: Tensor, *constants: Tensor) -> Tensor:
        return _called(kernel.value, w, *constants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, v: Tensor, *rest: Any) -> Tensor:
        return _applied(_Push, ctx.kernel, v, *ctx.saved_tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        return None, _applied(_Pull, ctx.kernel, u, *tensors), *(None for _ in tensors[1:])

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _each(_Value, info.batch_size, dims, given)


class _Along(torch.autograd.Function):
    """What is linear in its second argument, which may have dimensions of its own before."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "patterns and their peaks are differentiated once, not twice; take the second "
            "derivative of what follows from them without them, or by differences"
        )


class _Push(_Along):
    @staticmethod
    def forward(kernel: Kernel, v: Tensor, w: Tensor, *constants: Tensor) -> Tensor:
        found = _called(kernel.push, v.reshape(-1, len(w)), w, *constants)
        return found.reshape(*v.shape[:-1], *found.shape[1:])

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _together(_Push, info.batch_size, dims, given)


class _Pull(_Along):
    @staticmethod
    def forward(kernel: Kernel, u: Tensor, w: Tensor, *constants: Tensor) -> Tensor:
        one = kernel.value(*(v.detach().contiguous().numpy() for v in (w, *constants)))
        several = u.shape[: u.dim() - one.ndim]
        found = _called(kernel.pull, u.reshape(-1, one.size), w, *constants)
        return found.reshape(*several, len(w))

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _together(_Pull, info.batch_size, dims, given)


def _each(
    function: Any, size: int, dims: tuple[int | None, ...], given: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """One after another, where the functions differ."""
    found = [
        function.apply(
            *(v if d is None else v.select(d, i) for v, d in zip(given, dims, strict=True))
        )
        for i in range(size)
    ]
    return torch.stack(found), 0


def _together(
    function: Any, size: int, dims: tuple[int | None, ...], given: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """All directions at once; one after another where the functions differ."""
    if any(d is not None for d in dims[2:]):
        return _each(function, size, dims, given)
    kernel, v, *rest = given
    return function.apply(kernel, v.movedim(dims[1], 0), *rest), 0
