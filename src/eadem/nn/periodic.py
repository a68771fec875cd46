"""Coordinates that come back to where they were: periodic functions by construction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eadem.errors import OutOfRange, ShapeError

__all__ = ["Periodic"]


class Periodic(nn.Module):
    """Periodic columns become cosines and sines; whatever follows is periodic in them.

    x and x + period are one point to the layers after it, values and all derivatives alike, so
    a boundary condition needs no penalty (Dong & Ni, J. Comput. Phys. 435, 110242 (2021)).

    Args:
        in_features: columns of the input.
        period: in the columns' units; one for all of `dims`, or one for each.
        dims: the periodic columns; negative ones count from the end.
        harmonics: cos and sin of 2πkx/period, k = 1 … harmonics.

    Input (…, in_features), output (…, out_features): the other columns in their order, then
    for each periodic column its cosines and its sines. Raises OutOfRange for a column that is
    not there or named twice, a period or number of harmonics that is not positive; ShapeError
    for another number of columns.

    >>> layer = Periodic(2, period=3.0, harmonics=2)
    >>> tx = torch.tensor([[0.5, 0.75]], dtype=torch.float64)
    >>> torch.allclose(layer(tx), torch.tensor([[0.5, 0.0, -1.0, 1.0, 0.0]]).double())
    True
    >>> torch.allclose(layer(tx + torch.tensor([0.0, 3.0])), layer(tx))
    True
    >>> net = nn.Sequential(layer, nn.Linear(layer.out_features, 8), nn.Tanh(), nn.Linear(8, 1))
    """

    def __init__(
        self,
        in_features: int,
        period: float | Sequence[float],
        dims: Sequence[int] = (-1,),
        harmonics: int = 1,
    ) -> None:
        super().__init__()
        self.dims = tuple(d + in_features if d < 0 else d for d in dims)
        inside = all(0 <= d < in_features for d in self.dims)
        if not self.dims or not inside or len(set(self.dims)) < len(self.dims):
            raise OutOfRange(
                f"Periodic: dims={tuple(dims)} of {in_features} columns; name each periodic "
                "column once"
            )
        each = [period] * len(self.dims) if isinstance(period, int | float) else list(period)
        if len(each) != len(self.dims) or not all(0 < p < math.inf for p in each):
            raise OutOfRange(
                f"Periodic: period={period!r} for {len(self.dims)} columns; give a positive "
                "length, or one for each column"
            )
        if not isinstance(harmonics, int) or harmonics < 1:
            raise OutOfRange(
                f"Periodic: harmonics={harmonics!r}; give a whole number from 1 on"
            )
        self.in_features, self.period, self.harmonics = in_features, tuple(each), harmonics
        self.others = tuple(i for i in range(in_features) if i not in self.dims)
        self.out_features = len(self.others) + 2 * harmonics * len(self.dims)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"Periodic: it was made for {self.in_features} columns; received "
                f"{tuple(x.shape)}"
            )
        parts = [x[..., i : i + 1] for i in self.others]
        for d, period in zip(self.dims, self.period, strict=True):
            k = torch.arange(1, self.harmonics + 1, dtype=x.dtype, device=x.device)
            angle = x[..., d : d + 1] * (k * (2 * math.pi / period))
            parts += [angle.cos(), angle.sin()]
        return torch.cat(parts, -1)

    def extra_repr(self) -> str:
        """What is printed."""
        return (
            f"in_features={self.in_features}, period={self.period}, dims={self.dims}, "
            f"harmonics={self.harmonics}"
        )
