"""Products with a matrix that is shared but for a remainder of low rank: W is never built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from eadem.maps.base import Map, Shape, numel
from eadem.maps.constant import outside
from eadem.maps.remainder import Factors

__all__ = ["NearProduct", "Term", "near_product"]


@dataclass(frozen=True)
class Term:
    """Some values of one of several parameters: of number `of`, `size` from `start` on."""

    of: int
    start: int
    shape: Shape

    def take(self, thetas: Sequence[Tensor]) -> Tensor:
        """These values, in their shape."""
        theta = thetas[self.of]
        if tuple(theta.shape) == self.shape:
            return theta
        end = self.start + numel(self.shape)
        return theta.reshape(-1)[self.start : end].view(self.shape)


@dataclass(frozen=True)
class NearProduct:
    """(θs, x, bias) ↦ x·Wᵀ + bias for W = S + UᵀV, or W = Sᵀ + UᵀV (`flipped`).

    `shared` is S, `own` [U V] of shape (r, rows + columns) for W (rows, columns). `turned`:
    x·W + bias instead. A row of x takes size + r·(rows + columns) multiplications.
    """

    shared: Term
    own: Term
    rows: int
    flipped: bool
    turned: bool

    def __call__(self, thetas: Sequence[Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        """x (…, columns) by Wᵀ, `turned` x (…, rows) by W."""
        s, own = self.shared.take(thetas), self.own.take(thetas)
        u, v = own[:, : self.rows], own[:, self.rows :]
        if self.turned:
            u, v = v, u
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        whole = linear(flat, s.t() if self.turned is not self.flipped else s, bias)
        found = torch.addmm(whole, linear(flat, v), u)
        return found if x.dim() == 2 else found.view(*x.shape[:-1], found.shape[1])


def near_product(
    thetas: Sequence[Shape],
    shared: Term,
    own: Term,
    outer: Map,
    expand: Callable[[Sequence[Tensor]], Tensor],
    turned: bool,
) -> NearProduct | None:
    """The product with a site W = `expand`(θs), a matrix, if W is `shared` seen through `outer`
    (as it is, or transposed) and the remainder `own`, and nothing else; or None.

    That is tried on normal random values, in float32: both sides are polynomials, of first
    degree in the shared values and of second in the others, so where they agree there, they
    agree everywhere; where they do not, they are far apart.
    """
    rows, columns = outer.out_shape
    flips = [f for f in (False, True) if shared.shape == (rows, columns)[:: -1 if f else 1]]
    with outside(), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(s, generator=generator, dtype=torch.float32) for s in thetas]
        found = expand(drawn)
        s, remainder = shared.take(drawn), own.take(drawn)
        rest = Factors(own.shape[0]).bind((rows, columns)).expand(remainder)
        for flipped in flips:
            if torch.allclose(found, (s.t() if flipped else s) + rest, rtol=0, atol=1e-3):
                return NearProduct(shared, own, rows, flipped, turned)
    return None
