"""A U-Net whose decoder may be the transpose of its encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

import eadem
from eadem.errors import OutOfRange, ShapeError

__all__ = ["UNet"]


class _Down(nn.Module):
    """Two 3×3 convolutions; the first changes the number of channels."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).relu()).relu()
        return found


class _Up(nn.Module):
    """A 3×3 convolution of what comes from below and of what the encoder left, as one."""

    def __init__(self, below: int, width: int) -> None:
        super().__init__()
        self.below = nn.Conv2d(below, width, 3, padding=1)
        self.skip = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        wide = interpolate(below, scale_factor=2, mode="nearest")
        found: Tensor = (self.below(wide) + self.skip(skip)).relu()
        return found


class UNet(nn.Module):
    """A U-Net (Ronneberger, Fischer & Brox, MICCAI 2015) in two dimensions.

    Level l of the encoder has two 3×3 convolutions, `down.l.first` and `down.l.second`; the
    maximum of 2×2 leads to the next. Level l of the decoder takes what comes from below,
    doubled, and what the encoder left at this level: a 3×3 convolution of the two side by side,
    written as the sum of `up.l.below` and `up.l.skip`. `head` is a 1×1 convolution.

    Tied, every filter of the decoder is the adjoint of the filter of the encoder opposite,
    channels exchanged and space turned by half a circle: `up.l.below` of `down.(l+1).first`,
    which leads between the same two levels, and `up.l.skip` of `down.l.second`. Biases stay
    apart. `eadem.twin` is the untied network with the same function.

    Args:
        in_channels: of the image.
        out_channels: of what comes out, of the image's size.
        widths: channels, level by level from the top; two levels at least.
        tied: whether the decoder's filters are the encoder's.

    Raises OutOfRange for widths that are not two or more positive numbers, ShapeError in a
    forward pass where an image cannot be halved as often as there are levels below the top.

    >>> import torch
    >>> net = UNet(1, 2, widths=(4, 8), tied=True)
    >>> net(torch.zeros(1, 1, 6, 10)).shape
    torch.Size([1, 2, 6, 10])
    >>> encoder, decoder = net.down[1].first.weight, net.up[0].below.weight
    >>> torch.equal(decoder, encoder.transpose(0, 1).flip(-2, -1))
    True
    >>> eadem.counts(net).free, eadem.counts(eadem.twin(net)).free
    (1082, 1514)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 32, 64),
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) < 2 or not all(isinstance(w, int) and w > 0 for w in widths):
            raise OutOfRange(
                f"UNet: widths={widths!r}; give the channels of two levels or more, whole "
                "numbers from 1 on"
            )
        before = (in_channels, *widths[:-1])
        self.down = nn.ModuleList(_Down(a, b) for a, b in zip(before, widths, strict=True))
        steps = zip(widths[1:], widths[:-1], strict=True)
        self.up = nn.ModuleList(_Up(below, width) for below, width in steps)
        self.head = nn.Conv2d(widths[0], out_channels, 1)
        if tied:
            self._tie()

    def _tie(self) -> None:
        adjoint = eadem.Flip(-2, -1) @ eadem.Transpose(0, 1)
        with eadem.plan(self):
            for i in range(len(self.up)):
                for site, source in (
                    (f"up.{i}.below", f"down.{i + 1}.first"),
                    (f"up.{i}.skip", f"down.{i}.second"),
                ):
                    eadem.tie(self, f"{site}.weight", to=f"{source}.weight", via=adjoint)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        least = 2 ** len(self.up)
        if x.dim() != 4 or x.shape[-2] % least or x.shape[-1] % least:
            raise ShapeError(
                f"UNet: an input of shape {tuple(x.shape)}; give (batch, channels, height, "
                f"width) with height and width multiples of {least}, or pad it"
            )
        left = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else max_pool2d(x, 2))
            left.append(x)
        for up, skip in zip(reversed(self.up), reversed(left[:-1]), strict=True):
            x = up(x, skip)
        found: Tensor = self.head(x)
        return found
