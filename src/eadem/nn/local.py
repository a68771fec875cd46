"""Locally connected layers: a convolution in which every position has a kernel of its own.

Between a fully connected layer and a convolution: the sites are those of the convolution,
without its tie. `convolution_index` is that tie.

>>> layer = LocallyConnected2d(3, 8, in_size=6, kernel_size=3)
>>> layer(torch.zeros(2, 3, 6, 6)).shape
torch.Size([2, 8, 4, 4])
>>> tuple(layer.weight.shape)  # rows, columns of the output, then kernel, channels in and out
(4, 4, 3, 3, 3, 8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from eadem.errors import ShapeError, Unsupported
from eadem.nn._contract import Geometry, gather, product, single, windows_of_one

__all__ = ["LocallyConnected1d", "LocallyConnected2d"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _LocallyConnected(nn.Module):
    """What both layers share; `_ndim` axes of positions."""

    _ndim: ClassVar[int]
    _conv: ClassVar[type[nn.Module]]

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_size: int | Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _positive("in_channels", in_channels)
        self.out_channels = _positive("out_channels", out_channels)
        self.groups = _positive("groups", groups)
        self.in_size = self._sizes("in_size", in_size)
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        self.stride = self._sizes("stride", stride)
        self.dilation = self._sizes("dilation", dilation)
        self.padding = padding if isinstance(padding, str) else self._padding(padding)
        self.padding_mode = padding_mode
        self._check_groups()
        pads = self._pads()
        self._check_mode(pads)
        self.out_size = self._positions(pads)
        self._mode_pads = () if padding_mode == "zeros" else _torch_order(pads)
        self._in_shape = (self.in_channels, *self.in_size)
        self._geometry = self._geometry_of(pads)
        self._single = windows_of_one(self._geometry, in_channels)
        self._single_shape = (1, *self.out_size, out_channels)
        self._single_axes = (0, self._ndim + 1, *range(1, self._ndim + 1))
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        kernel = (*self.kernel_size, in_channels // groups, out_channels)
        self.weight = nn.Parameter(torch.empty((*self.out_size, *kernel), **made))
        if bias:
            self.bias = nn.Parameter(torch.empty((*self.out_size, out_channels), **made))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√fan_in, the fan-in of one kernel: what `nn.Conv2d` draws from."""
        bound = 1 / math.sqrt(self.fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_conv(cls, conv: nn.Module, in_size: int | Sequence[int]) -> Self:
        """The same function as `conv` on inputs of `in_size`, untied: a kernel per position.

        Raises Unsupported for anything but the convolution of as many axes, and ShapeError
        where `in_size` is too small for it.
        """
        if not isinstance(conv, cls._conv) or isinstance(
            conv.weight, nn.UninitializedParameter
        ):
            raise Unsupported(
                f"{cls.__name__}.from_conv takes an initialized {cls._conv.__name__}, not "
                f"{type(conv).__name__}"
            )
        c: Any = conv
        layer = cls(
            c.in_channels,
            c.out_channels,
            in_size,
            c.kernel_size,
            c.stride,
            c.padding,
            c.dilation,
            c.groups,
            c.bias is not None,
            c.padding_mode,
            c.weight.device,
            c.weight.dtype,
        )
        with torch.no_grad():
            layer.kernels.copy_(c.weight)
            if layer.bias is not None:
                layer.bias.copy_(c.bias)
        return layer.train(conv.training)

    @property
    def fan_in(self) -> int:
        """The number of values that an output reads: what its weights' spread follows."""
        return math.prod(self.kernel_size) * (self.in_channels // self.groups)

    @property
    def kernels(self) -> Tensor:
        """`weight` as (*out_size, out_channels, in_channels / groups, *kernel_size).

        A view, so that `layer.kernels[i, j]` is the kernel of one position in the order of
        axes of `nn.Conv2d`. `weight` itself keeps the order in which it is multiplied.
        """
        n = self._ndim
        kernel = range(n, 2 * n)
        return self.weight.permute(*range(n), 2 * n + 1, 2 * n, *kernel)

    def convolution_index(self, name: str = "weight") -> Tensor:
        """The tie that makes this layer a convolution, as an index into free values.

        An int64 tensor of the shape of `name` ("weight" or "bias"): entry i is the place of
        that number in the flattened weight or bias of the convolution. Raises ShapeError for
        another name or an absent bias.

        >>> layer = LocallyConnected1d(1, 2, in_size=4, kernel_size=3)
        >>> theta = torch.arange(6.0)  # a Conv1d weight of shape (2, 1, 3), flat
        >>> theta[layer.convolution_index()][0].reshape(3, 2).T
        tensor([[0., 1., 2.],
                [3., 4., 5.]])
        """
        if name == "weight":
            kernel = self.kernels.shape[self._ndim :]
            index = torch.arange(math.prod(kernel)).reshape(kernel)
            last = (*range(2, 2 + self._ndim), 1, 0)
            return index.permute(last).expand(self.weight.shape).contiguous()
        if name == "bias" and self.bias is not None:
            return torch.arange(self.out_channels).expand(self.bias.shape).contiguous()
        has = '"weight"' if self.bias is None else '"weight" and "bias"'
        raise ShapeError(f"convolution_index({name!r}): this layer has {has}")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as nn.Conv2d names it)
        """(batch, channels, *in_size) or unbatched → (batch, out_channels, *out_size).

        The output's memory is in the order positions, channels, batch (or positions, batch,
        channels), as it is computed; the next locally connected layer reads it as it is.
        Raises ShapeError where channels or size are not those of the layer.
        """
        shape = input.shape
        if shape[1:] == self._in_shape:
            return self._batched(input)
        if shape == self._in_shape:
            return self._batched(input.unsqueeze(0)).squeeze(0)
        raise self._wrong_input(input)

    def _batched(self, x: Tensor) -> Tensor:
        if self._mode_pads:
            x = pad(x, self._mode_pads, mode=self.padding_mode)
        if self._ndim == 1:
            x = x.unsqueeze(2)
        g = self._geometry
        weight, bias = self.weight, self.bias
        whole = weight.is_contiguous() and (bias is None or bias.is_contiguous())
        if whole and x.shape[0] == 1 and g.groups == 1 and not torch.is_grad_enabled():
            alone = single(x, weight, bias, g, self._single)
            return alone.view(self._single_shape).permute(self._single_axes)
        patches = gather(x, g)
        places, inside, batch = patches.shape
        each = self.out_channels // g.groups
        if g.groups == 1:
            kernels = weight.reshape(places, inside, each)
        else:
            grouped = weight.reshape(*g.out_size, -1, g.groups, each).transpose(2, 3)
            kernels = grouped.reshape(places, inside, each)
        shifts = None if bias is None else bias.reshape(places, each, 1)
        out = product(patches, kernels, shifts)  # (positions·groups, out / groups, batch)
        if self._ndim == 1:
            return out.reshape(*self.out_size, self.out_channels, batch).permute(2, 1, 0)
        return out.reshape(*g.out_size, self.out_channels, batch).permute(3, 2, 0, 1)

    def extra_repr(self) -> str:
        """The arguments, as `nn.Conv2d` shows its own."""
        text = (
            f"{self.in_channels}, {self.out_channels}, in_size={self.in_size}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0,) * self._ndim:
            text += f", padding={self.padding!r}"
        if self.dilation != (1,) * self._ndim:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode!r}"
        return text

    def _sizes(self, what: str, value: int | Sequence[int], least: int = 1) -> tuple[int, ...]:
        values: tuple[Any, ...] = (value,) * self._ndim
        if isinstance(value, Sequence) and not isinstance(value, str):
            values = tuple(value)
        whole = all(isinstance(v, int) and v >= least for v in values)
        if len(values) != self._ndim or not whole:
            kind = "positive" if least else "non-negative"
            raise ShapeError(
                f"{type(self).__name__}: {what} must be one {kind} int or {self._ndim} of "
                f"them, not {value!r}"
            )
        return values

    def _padding(self, padding: int | Sequence[int]) -> tuple[int, ...]:
        return self._sizes("padding", padding, least=0)

    def _check_groups(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ShapeError(
                    f"{type(self).__name__}: groups={self.groups} must divide "
                    f"{name}={getattr(self, name)}"
                )

    def _pads(self) -> list[tuple[int, int]]:
        """(before, after) along each axis."""
        if not isinstance(self.padding, str):
            return [(p, p) for p in self.padding]
        if self.padding == "valid":
            return [(0, 0)] * self._ndim
        if self.padding != "same":
            raise ShapeError(
                f'{type(self).__name__}: padding must be "valid", "same" or ints, not '
                f"{self.padding!r}"
            )
        if any(s != 1 for s in self.stride):
            raise ShapeError(
                f'{type(self).__name__}: padding="same" needs stride 1, not {self.stride}'
            )
        totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]

    def _check_mode(self, pads: list[tuple[int, int]]) -> None:
        if self.padding_mode not in PADDING_MODES:
            raise ShapeError(
                f"{type(self).__name__}: padding_mode must be one of {PADDING_MODES}, not "
                f"{self.padding_mode!r}"
            )
        room = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        for size, both in zip(self.in_size, pads, strict=True):
            if room is not None and max(both) > size + room:
                raise ShapeError(
                    f"{type(self).__name__}: padding_mode={self.padding_mode!r} can add at "
                    f"most {size + room} to an axis of {size}, not {max(both)}"
                )

    def _positions(self, pads: list[tuple[int, int]]) -> tuple[int, ...]:
        sizes = []
        for i, (before, after) in enumerate(pads):
            span = self.dilation[i] * (self.kernel_size[i] - 1) + 1
            room = self.in_size[i] + before + after - span
            if room < 0:
                raise ShapeError(
                    f"{type(self).__name__}: a kernel that spans {span} does not fit into an "
                    f"input of {self.in_size[i]} padded to {room + span} (axis {i}); use a "
                    "larger in_size or padding"
                )
            sizes.append(room // self.stride[i] + 1)
        return tuple(sizes)

    def _geometry_of(self, pads: list[tuple[int, int]]) -> Geometry:
        in_size = self.in_size
        if self.padding_mode != "zeros":  # then forward pads, and the gather does not
            in_size = tuple(s + a + b for s, (a, b) in zip(in_size, pads, strict=True))
            pads = [(0, 0)] * self._ndim

        def plane(values: Sequence[int], fill: int) -> tuple[int, int]:
            return (fill, values[0]) if len(values) == 1 else (values[0], values[1])

        left, right, top, bottom = (*_torch_order(pads), 0, 0)[:4]
        return Geometry(
            plane(in_size, 1),
            plane(self.out_size, 1),
            plane(self.kernel_size, 1),
            plane(self.stride, 1),
            plane(self.dilation, 1),
            (left, right, top, bottom),
            self.groups,
        )

    def _wrong_input(self, x: Tensor) -> ShapeError:
        sizes = ", ".join(map(str, (self.in_channels, *self.in_size)))
        return ShapeError(
            f"{type(self).__name__} expected an input of shape (batch, {sizes}) or ({sizes}), "
            f"received {tuple(x.shape)}; a locally connected layer has one kernel per "
            "position, so its input size is fixed (in_size)"
        )


def _positive(what: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ShapeError(f"{what} must be a positive int, not {value!r}")
    return value


def _torch_order(pads: list[tuple[int, int]]) -> tuple[int, ...]:
    """Last axis first, as F.pad takes them."""
    return tuple(p for pair in reversed(pads) for p in pair)


class LocallyConnected1d(_LocallyConnected):
    """`nn.Conv1d` with a kernel (and a bias) of its own at every position.

    Arguments are those of `nn.Conv1d`, with the size of the input before the kernel's.
    Input (batch, in_channels, in_size) or unbatched, output (batch, out_channels, out_size);
    weight (out_size, kernel_size, in_channels / groups, out_channels), bias
    (out_size, out_channels). Impossible sizes raise ShapeError.

    >>> conv = nn.Conv1d(2, 3, 5, stride=2, padding=1)
    >>> x = torch.randn(4, 2, 16)
    >>> layer = LocallyConnected1d.from_conv(conv, in_size=16)
    >>> torch.allclose(layer(x), conv(x), atol=1e-6)
    True
    """

    _ndim = 1
    _conv = nn.Conv1d


class LocallyConnected2d(_LocallyConnected):
    """`nn.Conv2d` with a kernel (and a bias) of its own at every position.

    Arguments are those of `nn.Conv2d`, with the size of the input before the kernel's.
    Input (batch, in_channels, *in_size) or unbatched, output (batch, out_channels, *out_size);
    weight (*out_size, *kernel_size, in_channels / groups, out_channels), bias
    (*out_size, out_channels). Impossible sizes raise ShapeError.

    >>> conv = nn.Conv2d(2, 3, 3, padding="same", groups=1)
    >>> x = torch.randn(4, 2, 8, 8)
    >>> layer = LocallyConnected2d.from_conv(conv, in_size=8)
    >>> torch.allclose(layer(x), conv(x), atol=1e-6)
    True
    >>> layer
    LocallyConnected2d(2, 3, in_size=(8, 8), kernel_size=(3, 3), stride=(1, 1), padding='same')
    """

    _ndim = 2
    _conv = nn.Conv2d
