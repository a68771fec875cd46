"""Which combinations of free values the data do not determine, or hardly do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.solvers.arrow import Arrow

__all__ = ["Weak", "combination", "weak_directions"]

#: Singular values of J, its columns of unit length, below this share of the largest: unknown.
SINGULAR = 1e-11
#: Below this, the combination is named in a note.
NEAR = 1e-6
#: Free values up to which all singular values are computed; above, the least few.
DENSE = 1024
FEW = 8


@dataclass(frozen=True, eq=False)
class Weak:
    """Directions (n, k) in free values, each of length one in units of the columns of J, and
    their singular values (k,), as shares of the largest.
    """

    directions: Tensor
    strength: Tensor

    @property
    def unknown(self) -> Tensor:
        """The directions that the data do not determine."""
        return self.directions[:, self.strength <= SINGULAR]


def weak_directions(arrow: Arrow, held: Tensor) -> Weak:
    """The directions of J's smallest singular values, `held` columns left out."""
    norms = arrow.norms
    if not bool(torch.isfinite(norms).all()):  # a derivative is not; the fit says so
        return Weak(torch.zeros(arrow.n, 0).double(), torch.zeros(0).double())
    dead = (norms == 0) & ~held
    unit = torch.where(norms > 0, norms, 1.0)
    live = (~held & ~dead).nonzero().reshape(-1)
    alone = torch.zeros(arrow.n, int(dead.sum()), dtype=torch.float64)
    alone[dead.nonzero().reshape(-1), torch.arange(alone.shape[1])] = 1.0
    found, strength = _least(arrow, unit, live, held | dead)
    kept = strength < NEAR
    return Weak(
        torch.cat([alone, found[:, kept]], 1),
        torch.cat([torch.zeros(alone.shape[1], dtype=torch.float64), strength[kept]]),
    )


def _least(arrow: Arrow, unit: Tensor, live: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors of the scaled J, in free values, and relative singular values."""
    n = len(live)
    if not n:
        return torch.zeros(arrow.n, 0).double(), torch.zeros(0).double()
    if n <= DENSE:
        rows = arrow.triangular_rows()[:, live] / unit[live]
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        if len(values) < n:  # fewer residuals than free values
            _, values, vectors = torch.linalg.svd(torch.cat([rows, rows.new_zeros(n, n)]))
        spread = torch.zeros(arrow.n, n, dtype=torch.float64)
        spread[live] = vectors.mT / unit[live].unsqueeze(1)
        return spread, values / values[0]
    few = FEW
    while True:
        directions, values = _inverse_iteration(arrow, unit, out, few)
        if float(values.max()) > SINGULAR or few >= n:
            return directions, values
        few = min(8 * few, n)


def _inverse_iteration(
    arrow: Arrow, unit: Tensor, out: Tensor, few: int
) -> tuple[Tensor, Tensor]:
    """The `few` least singular values by subspace iteration with the inverse of JᵀJ."""
    factor = arrow.factor(1e-13 * unit, out)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(arrow.n, few, dtype=torch.float64, generator=generator)
    basis[out] = 0.0
    for _ in range(12):
        basis = torch.linalg.qr(unit.unsqueeze(1) * factor.solve(unit.unsqueeze(1) * basis)).Q
    spread = basis / unit.unsqueeze(1)
    images = torch.stack([arrow.image(spread[:, i]) for i in range(few)], 1)
    _, values, mixed = torch.linalg.svd(images, full_matrices=False)
    return spread @ mixed.mT, values / max(1.0, float(values[0]))


def combination(direction: Tensor, names: Sequence[str], norms: Tensor) -> str:
    """A direction in words: its largest terms, the largest with coefficient one.

    >>> combination(torch.tensor([1.0, -2.0, 0.0]), ["a", "b", "c"], torch.ones(3))
    'b − 0.5·a'
    """
    weight = direction * torch.where(norms > 0, norms, 1.0)
    order = weight.abs().argsort(descending=True)
    top = [
        int(i) for i in order if float(weight[i].abs()) > 0.05 * float(weight[order[0]].abs())
    ]
    first = float(direction[top[0]])
    text = names[top[0]]
    for i in top[1:5]:
        share = float(direction[i]) / first
        text += f" {'−' if share < 0 else '+'} {abs(share):.3g}·{names[i]}"
    return text + (f" and {len(top) - 5} more" if len(top) > 5 else "")
