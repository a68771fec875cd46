"""Rows that sum to one, as an affine map: probabilities are a plan's own constraint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap, Shape
from eadem.maps.view import axis

__all__ = ["SumToOne"]


@dataclass(frozen=True, eq=False)
class SumToOne(LinearMap):
    """W sums to one along `dim`; θ has one entry fewer there.

    Each row is the uniform distribution plus an orthonormal basis of the vectors that sum to
    zero, taken from the Householder reflection that carries the last unit vector to
    (1, …, 1)/√n. So A has orthonormal columns, A⁺ = Aᵀ, and a row costs O(n): no matrix is
    built. Positivity is not part of the map; a solver keeps it.

    >>> rows = SumToOne().bind((2, 3))
    >>> rows.in_shape, rows.rank
    ((2, 2), 4)
    >>> rows.expand(torch.zeros(2, 2, dtype=torch.float64)).sum(-1)
    tensor([1., 1.], dtype=torch.float64)
    """

    dim: int = -1

    def infer(self, out_shape: Shape) -> Shape:
        """The site's shape with one entry fewer along `dim`."""
        dim = axis(self.dim, len(out_shape), self)
        if out_shape[dim] < 1:
            raise ShapeError(f"{self!r} needs at least one entry to sum, not {out_shape}")
        return (*out_shape[:dim], out_shape[dim] - 1, *out_shape[dim + 1 :])

    def _reflect(self, rows: Tensor) -> Tensor:
        """H rows = rows − 2v(vᵀrows)/vᵀv along the last axis, v = e_n − 1/√n."""
        n = rows.shape[-1]
        if n == 1:
            return rows
        v = torch.full((n,), -(n**-0.5), dtype=rows.dtype, device=rows.device)
        v[-1] += 1.0
        return rows - (rows @ v * (2.0 / float(v.double() @ v.double()))).unsqueeze(-1) * v

    def forward(self, theta: Tensor) -> Tensor:
        """The deviations from the uniform distribution, of `out_shape`."""
        rows = theta.movedim(self.dim, -1)
        padded = torch.cat([rows, rows.new_zeros(*rows.shape[:-1], 1)], dim=-1)
        return self._reflect(padded).movedim(-1, self.dim)

    @property
    def offset(self) -> Tensor:
        """The uniform distribution, everywhere."""
        return torch.full(self.out_shape, 1.0 / self.out_shape[self.dim], dtype=torch.float64)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Aᵀ·grad, of `in_shape`."""
        return self._reflect(grad.movedim(self.dim, -1))[..., :-1].movedim(-1, self.dim)

    def gram_diagonal(self) -> Tensor:
        """Ones: the columns of A are orthonormal."""
        size = torch.Size(self.in_shape).numel()
        return torch.ones(size, dtype=torch.float64)
