"""Maps that give a site structure: gathers, constants, palindromes, windows, subspaces.

`Local*` and `Toeplitz*` act on the weight of an `nn.Linear` between flattened images. A layer
that is fully connected, locally connected or convolutional is then one site under three
plans:

>>> window = Toeplitz2d(in_size=5, kernel_size=3, padding=1).bind((8 * 25, 3 * 25))
>>> window.in_shape  # the weight of nn.Conv2d(3, 8, 3, padding=1)
(8, 3, 3, 3)
>>> Local2d(in_size=5, kernel_size=3).bind((8 * 9, 3 * 25)).rank
1944
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from eadem.errors import ShapeError, Unsupported
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.constant import Constant, outside
from eadem.maps.index import Index, IndexMap
from eadem.maps.view import axis

__all__ = [
    "Fixed",
    "Gather",
    "Local1d",
    "Local2d",
    "Palindrome",
    "Subspace",
    "Toeplitz1d",
    "Toeplitz2d",
]


def _own(value: object, what: str) -> Tensor:
    """A private CPU copy of `value`, usable in and out of inference mode."""
    try:
        with outside():
            found = torch.as_tensor(value)
            if found.is_floating_point() and not isinstance(value, Tensor):
                found = torch.as_tensor(value, dtype=torch.float64)  # 1/3 as it was given
            return found.detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Unsupported(
            f"{what} must be a number, a tensor or nested lists of numbers, "
            f"not {type(value).__name__}: {error}"
        ) from error


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Gather(IndexMap):
    """W = θ.reshape(-1)[index]: any place may take any free value; −1 is zero.

    `index`: integers, of the site's shape. θ has shape `in_shape`, by default that of the tie
    (when another site is its source), else one dimension, just long enough. The bias of an
    `nn.Linear` that plays a convolution, one value for each channel:

    >>> bias = Gather(torch.arange(2).repeat_interleave(3)).bind((6,))
    >>> bias.forward(torch.tensor([0.5, 2.0]))
    tensor([0.5000, 0.5000, 0.5000, 2.0000, 2.0000, 2.0000])
    """

    positions: Tensor
    theta_shape: Shape | None

    def __init__(
        self, index: Tensor | Sequence[Any], in_shape: Sequence[int] | None = None
    ) -> None:
        super().__post_init__()
        positions = _own(index, "Gather's index")
        if positions.numel() == 0:
            positions = positions.to(torch.int64)
        if positions.dtype in (torch.bool, torch.float16, torch.bfloat16) or (
            positions.is_floating_point() or positions.is_complex()
        ):
            raise Unsupported(
                f"Gather's index must hold integers, not {positions.dtype}; "
                "for a mask, use index.nonzero() positions"
            )
        shape = None if in_shape is None else tuple(int(n) for n in in_shape)
        object.__setattr__(self, "positions", positions.to(torch.int64))
        object.__setattr__(self, "theta_shape", shape)
        least, most = (-1, -1) if not positions.numel() else torch.aminmax(self.positions)
        object.__setattr__(self, "_most", int(most))
        if least < -1:
            raise ShapeError(f"Gather's index holds {int(least)}; only −1 (zero) is negative")
        if shape is not None and most >= numel(shape):
            raise ShapeError(
                f"Gather's index reaches {int(most)}, but θ of shape {shape} has "
                f"{numel(shape)} values"
            )

    def __repr__(self) -> str:
        shape = "" if self.theta_shape is None else f", in_shape={self.theta_shape}"
        return f"Gather(<index {tuple(self.positions.shape)}>{shape})"

    def arguments(self) -> dict[str, Any]:
        """`index` and `in_shape`."""
        return {"index": self.positions, "in_shape": self.theta_shape}

    def infer(self, out_shape: Shape) -> Shape:
        """`in_shape`, or one dimension that holds the largest index."""
        if tuple(self.positions.shape) != out_shape:
            raise ShapeError(
                f"{self!r} needs an index of the site's shape {out_shape}; reshape the index"
            )
        if self.bound and self.out_shape == out_shape:
            return self.in_shape
        return (self.__dict__["_most"] + 1,) if self.theta_shape is None else self.theta_shape

    def _join(self, out_shape: Shape, in_shape: Shape | None) -> Shape:
        self.infer(out_shape)
        if in_shape is None or self.theta_shape is not None:
            return super()._join(out_shape, in_shape)
        most = self.__dict__["_most"]
        if numel(in_shape) <= most:
            raise ShapeError(
                f"{self!r} reaches index {most}, but the tie's θ has shape {in_shape}: "
                f"{numel(in_shape)} values"
            )
        return in_shape

    def _index(self) -> Index:
        return Index(self.positions.reshape(-1), numel(self.in_shape))


@dataclass(frozen=True, eq=False, repr=False)
class Fixed(IndexMap):
    """W is `value` (a number, or a tensor of the site's shape); there is nothing free.

    >>> Fixed(2.0).bind((2, 2)).rank
    0
    """

    value: float | Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        value = _own(self.value, "Fixed's value")
        if value.is_complex():
            raise Unsupported("Fixed's value must be real")
        plain = value if isinstance(self.value, Tensor) or value.ndim else float(value)
        object.__setattr__(self, "value", plain)

    def __repr__(self) -> str:
        value = self.value
        shown = f"<values {tuple(value.shape)}>" if isinstance(value, Tensor) else repr(value)
        return f"Fixed({shown})"

    def infer(self, out_shape: Shape) -> Shape:
        """(0,): no free value."""
        if isinstance(self.value, Tensor) and tuple(self.value.shape) not in ((), out_shape):
            raise ShapeError(f"{self!r} cannot fill a site of shape {out_shape}")
        return (0,)

    def _index(self) -> Index:
        size = numel(self.out_shape)
        value = torch.as_tensor(self.value, dtype=torch.float64)
        shift = value.expand(self.out_shape).reshape(-1).contiguous()
        return Index(torch.full((size,), -1), 0, shift=shift)


@dataclass(frozen=True, eq=False)
class Palindrome(IndexMap):
    """W reads the same in both directions along `dim`: θ is its first half.

    With `odd`, W changes sign instead (an antisymmetric filter), and the middle of an odd
    length is zero.

    >>> Palindrome().bind((5,)).forward(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 2., 3., 2., 1.])
    >>> Palindrome(odd=True).bind((5,)).forward(torch.tensor([1.0, 2.0]))
    tensor([ 1.,  2.,  0., -2., -1.])
    """

    dim: int = -1
    odd: bool = False

    def infer(self, out_shape: Shape) -> Shape:
        """The site's shape, with half the length along `dim` (the middle counts if even)."""
        dim = axis(self.dim, len(out_shape), self)
        half = out_shape[dim] // 2 if self.odd else (out_shape[dim] + 1) // 2
        return (*out_shape[:dim], half, *out_shape[dim + 1 :])

    def _index(self) -> Index:
        out = self.out_shape
        dim = axis(self.dim, len(out), self)
        length, half = out[dim], self.in_shape[dim]
        place = torch.arange(length)
        mirrored = torch.minimum(place, length - 1 - place)
        free = torch.arange(numel(self.in_shape)).reshape(self.in_shape)
        if half == 0:
            return Index(torch.full((numel(out),), -1), free.numel())
        position = free.index_select(dim, mirrored.clamp(max=half - 1))
        along = [1] * len(out)
        along[dim] = length
        if not self.odd:
            return Index(position.reshape(-1), free.numel())
        sign = torch.sign(length - 1 - 2 * place).to(torch.float64).reshape(along)
        return Index(position.reshape(-1), free.numel(), sign.expand(out).reshape(-1))


def _sizes(value: int | Sequence[int], axes: int, what: str) -> tuple[int, ...]:
    try:
        sizes = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    except (TypeError, ValueError) as error:
        raise Unsupported(f"{what} must be an int or {axes} of them, not {value!r}") from error
    if len(sizes) != axes:
        raise ShapeError(f"{what} must be an int or {axes} of them, not {value!r}")
    return sizes


@dataclass(frozen=True, eq=False)
class _Windows(IndexMap):
    """What Local and Toeplitz share: the geometry of a convolution on flattened images.

    The site is (out_channels·positions, in_channels·pixels), each side channel-major, as in
    `y = linear(x.flatten(1))` and `conv(x).flatten(1)`.
    """

    in_size: int | tuple[int, ...]
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0

    axes: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("in_size", 1), ("kernel_size", 1), ("stride", 1), ("padding", 0)):
            sizes = _sizes(getattr(self, name), self.axes, f"{type(self).__name__}'s {name}")
            if min(sizes) < least:
                raise ShapeError(
                    f"{type(self).__name__}'s {name} must be at least {least}, not {sizes}"
                )
            object.__setattr__(self, name, sizes)
        if min(self.out_size) < 1:
            raise ShapeError(
                f"{self!r}: the kernel is larger than the padded input; no window fits"
            )

    def _geometry(self) -> list[tuple[int, int, int, int]]:
        """(in_size, kernel_size, stride, padding) along each axis."""
        sizes: Any = (self.in_size, self.kernel_size, self.stride, self.padding)
        return list(zip(*sizes, strict=True))

    @property
    def out_size(self) -> tuple[int, ...]:
        """How many windows there are along each axis: (in + 2·padding − kernel)//stride + 1."""
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in self._geometry())

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's shape."""
        return tuple(k for _, k, _, _ in self._geometry())

    def channels(self, out_shape: Shape) -> tuple[int, int]:
        """(out_channels, in_channels) of a site. Raises ShapeError if it is no such layer."""
        positions, pixels = numel(self.out_size), math.prod(n for n, *_ in self._geometry())
        if len(out_shape) != 2:
            raise ShapeError(
                f"{self!r} is for the weight of an nn.Linear, with two axes; the site has "
                f"shape {out_shape}"
            )
        rows, columns = out_shape
        if rows % positions or columns % pixels or not rows or not columns:
            raise ShapeError(
                f"{self!r} has {positions} positions and {pixels} input pixels, so it needs a "
                f"site of shape (out_channels·{positions}, in_channels·{pixels}), not "
                f"{out_shape}; check in_size, stride and padding"
            )
        return rows // positions, columns // pixels

    @property
    def fan_in(self) -> int:
        """in_channels × taps: how many inputs a full window reads, as torch counts it."""
        return self.channels(self.out_shape)[1] * numel(self.kernel)

    def _taps(self) -> Tensor:
        """(positions, pixels): which tap of the window at a position lies on a pixel, or −1."""
        taps = torch.zeros(1, 1, dtype=torch.int64)
        for size, kernel, stride, padding in self._geometry():
            start = torch.arange((size + 2 * padding - kernel) // stride + 1) * stride - padding
            tap = torch.arange(size) - start[:, None]  # (positions, pixels) of this axis
            inside = (tap >= 0) & (tap < kernel)
            joined = taps[:, None, :, None] * kernel + tap[None, :, None, :]
            both = (taps[:, None, :, None] >= 0) & inside[None, :, None, :]
            rows, columns = taps.shape[0] * tap.shape[0], taps.shape[1] * tap.shape[1]
            taps = torch.where(both, joined, -1).reshape(rows, columns)
        return taps

    @abstractmethod
    def _index(self) -> Index:
        """The coordinates of the bound map."""


@dataclass(frozen=True, eq=False)
class _Local(_Windows):
    """One free window for each position. θ is flat, in the order of the coordinates it fills:
    (out_channels, *positions, in_channels, *kernel), without the taps that the padding hides.
    """

    def infer(self, out_shape: Shape) -> Shape:
        """(in_channels · out_channels · taps that lie on a pixel,)."""
        out_channels, in_channels = self.channels(out_shape)
        hits = 1
        for size, kernel, stride, padding in self._geometry():
            starts = range(-padding, size + padding - kernel + 1, stride)
            hits *= sum(max(0, min(a + kernel, size) - max(a, 0)) for a in starts)
        return (out_channels * in_channels * hits,)

    def _index(self) -> Index:
        out_channels, in_channels = self.channels(self.out_shape)
        hit = self._taps() >= 0
        positions, pixels = hit.shape
        spread = hit[None, :, None, :].expand(out_channels, positions, in_channels, pixels)
        flat = spread.reshape(-1)
        position = torch.where(flat, flat.cumsum(0) - 1, -1)
        return Index(position, numel(self.in_shape))


@dataclass(frozen=True, eq=False)
class _Toeplitz(_Windows):
    """One window for all positions. θ has the shape of the convolution's own weight,
    (out_channels, in_channels, *kernel).
    """

    def infer(self, out_shape: Shape) -> Shape:
        """(out_channels, in_channels, *kernel_size)."""
        return (*self.channels(out_shape), *self.kernel)

    def _index(self) -> Index:
        out_channels, in_channels = self.channels(self.out_shape)
        taps = self._taps()[None, :, None, :]  # (1, positions, 1, pixels)
        filters = torch.arange(out_channels * in_channels) * numel(self.kernel)
        start = filters.reshape(out_channels, 1, in_channels, 1)
        position = torch.where(taps >= 0, start + taps, -1)
        return Index(position.reshape(-1), numel(self.in_shape))


@dataclass(frozen=True, eq=False)
class Local1d(_Local):
    """A dense weight with one free window for each position of a signal of length `in_size`.

    The site is (out_channels·positions, in_channels·in_size). θ is flat: one value for each
    coordinate that a window covers, so a tap that only ever meets padding does not exist.
    Raises ShapeError where the site does not divide into channels.

    >>> Local1d(in_size=4, kernel_size=3).bind((2, 4)).forward(torch.arange(1.0, 7.0))
    tensor([[1., 2., 3., 0.],
            [0., 4., 5., 6.]])
    """

    axes: ClassVar[int] = 1


@dataclass(frozen=True, eq=False)
class Local2d(_Local):
    """A dense weight with one free window for each position of an image (height, width).

    The site is (out_channels·positions, in_channels·height·width). θ is flat: one value for
    each coordinate that a window covers, so a tap that only ever meets padding does not exist;
    without padding it reshapes to (out_channels, *positions, in_channels, *kernel_size).
    Raises ShapeError where the site does not divide into channels.

    >>> Local2d(in_size=3, kernel_size=2).bind((4, 9)).in_shape
    (16,)
    """

    axes: ClassVar[int] = 2


@dataclass(frozen=True, eq=False)
class Toeplitz1d(_Toeplitz):
    """A dense weight that is a convolution: θ is the weight of `nn.Conv1d`.

    The site is (out_channels·positions, in_channels·in_size). Its bias is tied by
    `Gather(torch.arange(out_channels).repeat_interleave(positions))`.

    >>> Toeplitz1d(in_size=4, kernel_size=2).bind((3, 4)).forward(torch.tensor([[[1.0, 2.0]]]))
    tensor([[1., 2., 0., 0.],
            [0., 1., 2., 0.],
            [0., 0., 1., 2.]])
    """

    axes: ClassVar[int] = 1


@dataclass(frozen=True, eq=False)
class Toeplitz2d(_Toeplitz):
    """A dense weight that is a convolution: θ is the weight of `nn.Conv2d`.

    The site is (out_channels·positions, in_channels·height·width), so that
    `linear(x.flatten(1))` is `conv(x).flatten(1)`. Its bias is tied by
    `Gather(torch.arange(out_channels).repeat_interleave(positions))`. A tap that only ever
    meets padding stays in θ, unused, and lowers `rank`.

    >>> Toeplitz2d(in_size=(4, 5), kernel_size=3, padding=1).bind((2 * 20, 20)).in_shape
    (2, 1, 3, 3)
    """

    axes: ClassVar[int] = 2


@dataclass(frozen=True, eq=False, repr=False)
class Subspace(LinearMap):
    """W is a combination of the columns of `basis`, with coefficients θ of shape (k,).

    `basis` is (numel(site), k), or the site's shape followed by k. It need not be orthonormal
    nor independent: `rank` counts what it spans (relative tolerance 1e-10).

    >>> sums = Subspace(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).bind((3,))
    >>> sums.forward(torch.tensor([1.0, 10.0]))
    tensor([ 1., 11., 10.])
    """

    basis: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        basis = _own(self.basis, "Subspace's basis")
        if basis.ndim < 1 or basis.is_complex():
            raise ShapeError("Subspace's basis must be real, of shape (numel(site), k)")
        if not bool(basis.isfinite().all()):
            raise ShapeError("Subspace's basis holds infinities or NaN")
        object.__setattr__(self, "basis", basis)

    def __repr__(self) -> str:
        return f"Subspace(<basis {tuple(self.basis.shape)}>)"

    def infer(self, out_shape: Shape) -> Shape:
        """(k,)."""
        *lead, k = self.basis.shape
        if tuple(lead) not in (out_shape, (numel(out_shape),)):
            raise ShapeError(
                f"{self!r} needs shape ({numel(out_shape)}, k) or {(*out_shape, 'k')} for a "
                f"site of shape {out_shape}"
            )
        return (k,)

    def _prepare(self) -> None:
        matrix = self.basis.to(torch.float64).reshape(numel(self.out_shape), self.in_shape[0])
        object.__setattr__(self, "_matrix", Constant(matrix))

    def _columns(self, like: Tensor) -> Tensor:
        constant: Constant = self.__dict__["_matrix"]
        return constant.on(like.device, like.dtype)

    def forward(self, theta: Tensor) -> Tensor:
        """basis·θ, of the site's shape."""
        return (self._columns(theta) @ theta).reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """basisᵀ·grad, of shape (k,)."""
        return self._columns(grad).T @ grad.reshape(-1)

    def dense(self) -> Tensor:
        """The basis, float64, as (numel(site), k)."""
        constant: Constant = self.__dict__["_matrix"]
        return constant.master.clone()
