"""Certificates: a symmetry of a function, checked on every element of a group.

A tie by a group claims that f(g·x) = g·f(x), or f(g·x) = f(x). A certificate states how far
that is from true at an input, and what was tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from eadem.evidence._symmetry import GroupAction, buffers_kept, loss_finder
from eadem.evidence.score import EvidenceError
from eadem.groups import Group, Representation

__all__ = ["Action", "Certificate", "Shifts", "certify"]


#: The largest relative error of a certificate that holds, by the dtype of the input.
TOLERANCES = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 5e-2,
}


class Action(Protocol):
    """A group as it acts on inputs and outputs: what `certify` needs of it."""

    def elements(self, x: Tensor) -> Iterable[Any]:
        """The group's elements, for inputs like `x`."""

    def on_input(self, element: Any, x: Tensor) -> Tensor:
        """g·x."""

    def on_output(self, element: Any, y: Tensor) -> Tensor:
        """g·y, of y's shape."""

    def compared(self, element: Any, y: Tensor) -> Tensor | None:
        """Where g·y and f(g·x) must agree: a mask that broadcasts to y; None is everywhere."""


@dataclass(frozen=True)
class Shifts:
    """Cyclic shifts along `dims` of the input and of the output.

    Every combination of shifts is an element: along each axis 0, stride, 2·stride, … below
    the input's extent, or the first `size` of them. A shift of the input by s moves the output
    by s/`stride`, for a function that strides. Circular padding makes a convolution exactly
    equivariant under all of them. Zero padding does so in the interior only: `margin` is how
    many outputs at each border see the padding, and positions that lie, before or after the
    shift, within it are not compared. `size`, `margin` and `stride` are one number, or one
    for each of `dims`.

    >>> len(list(Shifts((-2, -1)).elements(torch.zeros(1, 4, 6))))
    24
    """

    dims: tuple[int, ...]
    size: int | tuple[int, ...] | None = None
    margin: int | tuple[int, ...] = 0
    stride: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        dims = (self.dims,) if isinstance(self.dims, int) else tuple(self.dims)
        object.__setattr__(self, "dims", dims)
        if not dims:
            raise EvidenceError("`dims` names no axis to shift; give one or several")
        for name in ("size", "margin", "stride"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int) and len(value) != len(dims):
                raise EvidenceError(
                    f"`{name}` is {value!r}; give one number, or one for each of the "
                    f"{len(dims)} axes in `dims`"
                )
            least = 1 if name == "stride" else 0
            if value is not None and min(self._each(value)) < least:
                raise EvidenceError(f"`{name}` is {value!r}; it is {least} or more")

    def _each(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(self.dims) if isinstance(value, int) else tuple(value)

    def elements(self, x: Tensor) -> Iterable[tuple[int, ...]]:
        """Shifts of the input, one number for each axis; the first is no shift."""
        ranges = []
        for i, (dim, stride) in enumerate(zip(self.dims, self._each(self.stride), strict=True)):
            _has_axis(dim, x, "input")
            if x.shape[dim] % stride:
                raise EvidenceError(
                    f"the input's axis {dim} has {x.shape[dim]} positions, which a stride of "
                    f"{stride} does not divide: cyclic shifts do not carry over to the output"
                )
            every = range(0, x.shape[dim], stride)
            ranges.append(every if self.size is None else every[: self._each(self.size)[i]])
        return itertools.product(*ranges)

    def on_input(self, element: Sequence[int], x: Tensor) -> Tensor:
        """x shifted."""
        return x.roll(tuple(element), self.dims)

    def on_output(self, element: Sequence[int], y: Tensor) -> Tensor:
        """y shifted by as many of its own positions."""
        for dim in self.dims:
            _has_axis(dim, y, "output")
        steps = [s // k for s, k in zip(element, self._each(self.stride), strict=True)]
        return y.roll(steps, self.dims)

    def compared(self, element: Sequence[int], y: Tensor) -> Tensor | None:
        """The outputs that see no padding, before the shift and after."""
        if not any(self._each(self.margin)):
            return None
        mask = torch.ones((1,) * y.ndim, dtype=torch.bool, device=y.device)
        each = zip(
            element, self.dims, self._each(self.stride), self._each(self.margin), strict=True
        )
        for shift, dim, stride, margin in each:
            n = y.shape[dim]
            inside = torch.zeros(n, dtype=torch.bool, device=y.device)
            inside[margin : n - margin] = True
            shape = [1] * y.ndim
            shape[dim] = n
            mask = mask & (inside & inside.roll(shift // stride)).reshape(shape)
        return mask.expand_as(y)


def _has_axis(dim: int, value: Tensor, what: str) -> None:
    if not -value.ndim <= dim < value.ndim:
        raise EvidenceError(
            f"the {what} has shape {tuple(value.shape)} and no axis {dim} to shift; for a "
            "function that leaves no such axis ask for kind='invariance'"
        )


@dataclass(frozen=True)
class Certificate:
    """How far a function is from equivariant (or invariant), over all elements tried.

    `absolute` is the largest |f(g·x) − g·f(x)|, `relative` the same over the largest |f(x)|,
    `worst` the element where it was seen. `tried` counts elements, the identity among them;
    `compared` is the share of outputs that were compared, all elements together. `errors` are
    the relative errors of the elements, in the order tried, in the dtype of the input; those at
    which nothing can be compared are left out.
    `tolerance` is what they may come to, and `lost_at` names the first layer whose output
    does not follow the group, where the function is a module and the certificate fails.
    """

    kind: Literal["equivariance", "invariance"]
    group: str
    tried: int
    compared: float
    absolute: float
    relative: float
    worst: Any
    errors: tuple[tuple[Any, float], ...] = ()
    tolerance: float = 0.0
    lost_at: str | None = None

    def holds(self, tolerance: float | None = None) -> bool:
        """Whether the relative error is at most `tolerance` (by default its own)."""
        return self.relative <= (self.tolerance if tolerance is None else tolerance)

    @property
    def verdict(self) -> str:
        """Whether it holds; where it is broken, with the first layer at which it is lost."""
        if self.holds():
            return "holds"
        return "broken" if self.lost_at is None else f"broken, first at {self.lost_at}"

    def __str__(self) -> str:
        where = "" if self.compared == 1.0 else f", {self.compared:.0%} of the outputs"
        lost = "" if self.lost_at is None else f"; lost at {self.lost_at}"
        return (
            f"{self.kind} under {self.group}: error {self.relative:.2e} relative, "
            f"{self.absolute:.2e} absolute, over {self.tried} elements{where}; "
            f"worst at {self.worst}{lost}"
        )


def certify(
    fn: Callable[[Tensor], Tensor],
    group: Action | Group,
    x: Tensor,
    *,
    kind: Literal["equivariance", "invariance"] = "equivariance",
    in_rep: Representation | None = None,
    out_rep: Representation | None = None,
    space: Representation | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Compare f(g·x) with g·f(x), or with f(x), for every g of `group`.

    `group` is an action such as `Shifts`, or a group of `eadem.groups` on images (batch,
    channels, *axes): their channels move as `in_rep` and `out_rep` say (None: they stay),
    their axes as `space` does, by default as the group does. A group of more than 1,000
    elements is tried on 200 random words. `tolerance` is the largest relative error of a
    certificate that holds: by default 1e-11 for float64, 1e-5 for float32, 5e-3 for float16
    and 5e-2 for bfloat16.

    `fn` takes a tensor like `x` to a tensor, and must be deterministic (a model in eval
    mode): it is evaluated once for each element, without gradients; buffers of a module that
    it writes in train mode are set back. Raises EvidenceError
    where no output can be compared, where an output is not finite or where the group does not
    act on shapes like these.

    >>> x = torch.arange(5.0)
    >>> print(certify(lambda x: x + x.roll(1), Shifts(0), x))
    equivariance under Shifts(dims=(0,), size=None, margin=0, stride=1): \
error 0.00e+00 relative, 0.00e+00 absolute, over 5 elements; worst at (0,)
    >>> certify(torch.max, Shifts(0), x, kind="invariance").holds(0.0)
    True
    >>> from eadem.groups import Cyclic
    >>> certify(torch.nn.ReLU(), Cyclic(4), torch.randn(1, 2, 5, 5)).verdict
    'holds'
    """
    if isinstance(group, Group):
        group = GroupAction(group, in_rep, out_rep, space)
    elif (in_rep, out_rep, space) != (None, None, None):
        raise EvidenceError("in_rep, out_rep and space go with a group of eadem.groups")
    if kind not in ("equivariance", "invariance"):
        raise EvidenceError(f"kind={kind!r}; ask for 'equivariance' or 'invariance'")
    if not hasattr(group, "elements"):
        raise EvidenceError(
            f"group={group!r:.80}; give a group of eadem.groups, or an action such as Shifts"
        )
    allowed = TOLERANCES.get(x.dtype, 1e-5) if tolerance is None else tolerance
    if not allowed >= 0:
        raise EvidenceError(
            f"tolerance={allowed!r}; it is the largest relative error, 0 or more"
        )
    with torch.no_grad(), buffers_kept(fn):
        plain = fn(x)
        _refuse_other(plain)
        tried = [_Tried.of(fn, group, element, x, plain, kind) for element in group.elements(x)]
    seen = [t for t in tried if t.compared]
    if not seen:
        raise EvidenceError(
            f"{group} leaves nothing to compare on outputs of shape {tuple(plain.shape)}; "
            "use a smaller margin or a larger input"
        )
    scale = float(plain.abs().max()) or 1.0
    worst = max(seen, key=lambda t: t.error)
    relative = worst.error / scale
    with buffers_kept(fn):
        lost = (
            None if relative <= allowed else loss_finder(fn, group, x)(worst.element, allowed)
        )
    return Certificate(
        kind=kind,
        group=str(group),
        tried=len(tried),
        compared=sum(t.compared for t in tried) / (len(tried) * plain.numel()),
        absolute=worst.error,
        relative=relative,
        worst=_named(group, worst.element),
        errors=tuple((_named(group, t.element), t.error / scale) for t in seen),
        tolerance=allowed,
        lost_at=lost,
    )


@dataclass(frozen=True)
class _Tried:
    """One element: the largest error, and how many outputs were compared."""

    element: Any
    error: float
    compared: int

    @classmethod
    def of(
        cls,
        fn: Callable[[Tensor], Tensor],
        group: Action,
        element: Any,
        x: Tensor,
        plain: Tensor,
        kind: str,
    ) -> _Tried:
        """f(g·x) against g·f(x) or, of an invariance, f(x): `plain` is f(x)."""
        moved = fn(group.on_input(element, x))
        expected = plain if kind == "invariance" else group.on_output(element, plain)
        if moved.shape != expected.shape:
            raise EvidenceError(
                f"at {_named(group, element)} the function gives shape {tuple(moved.shape)}, "
                f"but {tuple(expected.shape)} at the identity"
            )
        error = (moved - expected).abs()
        mask = group.compared(element, plain) if kind == "equivariance" else None
        if mask is not None:
            error = error[mask]
        largest = float(error.max()) if error.numel() else 0.0
        if not math.isfinite(largest):
            raise EvidenceError(
                f"the function's value at {_named(group, element)} is not finite"
            )
        return cls(element, largest, error.numel())


def _named(group: Action, element: Any) -> Any:
    return group.name(element) if isinstance(group, GroupAction) else element


def _refuse_other(value: object) -> None:
    if not isinstance(value, Tensor):
        raise EvidenceError(
            f"the function gives a {type(value).__name__}, and a certificate compares tensors; "
            "wrap it in one that returns the tensor meant: lambda x: fn(x)[0]"
        )
    if value.is_meta or value.dtype == torch.bool:
        kind = "values on the meta device" if value.is_meta else "truth values"
        raise EvidenceError(f"the function gives {kind}, and a certificate compares numbers")
