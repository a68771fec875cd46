"""Matrices of low rank by as many numbers as they have degrees of freedom, and parts of them.

`Factored(r)` is W = C·B with one of the two factors holding an identity: r of its columns (or
rows) are those of W itself, the pivots (an interpolative decomposition; Cheng, Gimbutas,
Martinsson & Rokhlin 2005). A product of two full factors stores r² numbers more, which only
choose among the factors of one matrix; without them, r·(rows + columns − r) numbers are what a
matrix of rank r has, and never more than rows·columns. `Block` takes part of a larger matrix,
so that several sites have one factor in common:

>>> import eadem
>>> from torch import nn
>>> model = nn.ModuleList([nn.Linear(6, 4, bias=False) for _ in range(3)])
>>> both = Factored(2)
>>> t = eadem.tie(model, {f"{i}.weight": Block(4 * i, 12) @ both for i in range(3)})
>>> [(name, tuple(p.shape)) for name, p in model.named_parameters()]
[('0.weight', (32,))]
>>> eadem.counts(model).free, eadem.counts(model).expanded
(32, 72)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from eadem.errors import ShapeError
from eadem.maps.base import LinearComposed, LinearMap, Map, Shape
from eadem.maps.constant import Constant, outside
from eadem.maps.index import Index
from eadem.maps.view import ViewMap

__all__ = [
    "Block",
    "Factored",
    "FactoredJacobian",
    "Product",
    "multiplied",
    "parts_of",
    "picked",
    "product",
    "spread",
]


@dataclass(frozen=True, eq=False)
class Block(LinearMap):
    """W = M[start : start + n], rows of a larger matrix M with `total` of them.

    With `dim=1` these are columns. θ is M.
    """

    start: int
    total: int
    dim: int = 0

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of M. Raises ShapeError where the part does not lie within it."""
        if len(out_shape) != 2 or self.dim not in (0, 1):
            raise ShapeError(f"{self!r} is part of a matrix; the site has shape {out_shape}")
        size = out_shape[self.dim]
        if self.start < 0 or self.start + size > self.total:
            raise ShapeError(
                f"{self!r} at a site of shape {out_shape} ends at {self.start + size}, beyond "
                f"the {self.total} of the whole"
            )
        shape = list(out_shape)
        shape[self.dim] = self.total
        return tuple(shape)

    def forward(self, theta: Tensor) -> Tensor:
        """The part of M."""
        return theta.narrow(self.dim, self.start, self.out_shape[self.dim])

    def adjoint(self, grad: Tensor) -> Tensor:
        """grad in its place, zeros elsewhere."""
        before, after = list(self.in_shape), list(self.in_shape)
        before[self.dim] = self.start
        after[self.dim] = self.total - self.start - self.out_shape[self.dim]
        parts = [grad.new_zeros(before), grad, grad.new_zeros(after)]
        return torch.cat(parts, dim=self.dim)

    def index(self) -> Index:
        """The coordinates; made anew each time, for they take more room than the values."""
        with outside():
            at = torch.arange(self.in_shape[0] * self.in_shape[1]).reshape(self.in_shape)
            return Index(self.forward(at).reshape(-1), at.numel())


@dataclass(frozen=True, eq=False, repr=False)
class Factored(Map):
    """A matrix of rank r: W = C·B with B the identity at the pivots.

    With `side="columns"` W[:, pivots] = C (rows, r) and the other columns are C·T, T of shape
    (r, columns − r); with `side="rows"` the same of the rows: W[pivots] = C (r, columns), the
    others T·C, T of shape (rows − r, r). θ is C and T, flat. `pivots` are r places, the first
    by default; chosen by a QR decomposition with pivots, T has small entries. `lift` gives the
    nearest matrix of this rank (Eckart & Young 1936).
    """

    rank: int
    side: str = "columns"
    pivots: Tensor | Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ShapeError(f"Factored needs a rank of 1 or more, not {self.rank!r}")
        if self.side not in ("columns", "rows"):
            raise ShapeError(f"side={self.side!r}; the pivots are 'columns' or 'rows'")
        if self.pivots is None:
            return
        at = torch.as_tensor(self.pivots).detach().cpu().to(torch.int64).reshape(-1)
        if len(at) != self.rank or len(at.unique()) != self.rank or int(at.min()) < 0:
            raise ShapeError(
                f"Factored({self.rank}) needs {self.rank} different pivots of 0 or more, not "
                f"{at.tolist()[:8]!r} ({len(at)})"
            )
        object.__setattr__(self, "pivots", at)

    def __repr__(self) -> str:
        side = "" if self.side == "columns" else f", side={self.side!r}"
        pivots = "" if self.pivots is None else f", pivots=<{self.rank} {self.side}>"
        return f"Factored({self.rank}{side}{pivots})"

    @property
    def _dim(self) -> int:
        return 1 if self.side == "columns" else 0

    def infer(self, out_shape: Shape) -> Shape:
        """(r·(rows + columns − r),). Raises ShapeError for r above what W can have."""
        if len(out_shape) != 2:
            raise ShapeError(f"{self!r} is a matrix; the site has shape {out_shape}")
        rows, columns = out_shape
        if self.rank > min(rows, columns):
            raise ShapeError(
                f"rank {self.rank} is more than a site of shape {out_shape} can have "
                f"({min(rows, columns)}); leave the site as it is"
            )
        last = -1 if self.pivots is None else int(torch.as_tensor(self.pivots).max())
        if last >= out_shape[self._dim]:
            raise ShapeError(f"{self!r} has pivot {last}; the site has shape {out_shape}")
        return (self.rank * (rows + columns - self.rank),)

    def _prepare(self) -> None:
        size = self.out_shape[self._dim]
        given = torch.arange(self.rank) if self.pivots is None else torch.as_tensor(self.pivots)
        others = torch.ones(size, dtype=torch.bool)
        others[given] = False
        rest = others.nonzero().reshape(-1)
        object.__setattr__(self, "_at", Constant(given))
        object.__setattr__(self, "_rest", Constant(rest))
        object.__setattr__(self, "_back", Constant(torch.cat([given, rest]).argsort()))

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """C and T, in their shapes."""
        rows, columns = self.out_shape
        r = self.rank
        if self.side == "columns":
            c, t = theta.split([rows * r, r * (columns - r)])
            return c.view(rows, r), t.view(r, columns - r)
        c, t = theta.split([r * columns, (rows - r) * r])
        return c.view(r, columns), t.view(rows - r, r)

    def join(self, c: Tensor, t: Tensor) -> Tensor:
        """θ from C and T."""
        return torch.cat([c.reshape(-1), t.reshape(-1)])

    def _place(self, name: str, like: Tensor) -> Tensor:
        constant: Constant = self.__dict__[name]
        return constant.on(like.device)

    def _assembled(self, pivots: Tensor, rest: Tensor) -> Tensor:
        whole = torch.cat([pivots, rest], dim=self._dim)
        return whole.index_select(self._dim, self._place("_back", whole))

    def expand(self, theta: Tensor) -> Tensor:
        """C at the pivots, C·T (or T·C) elsewhere."""
        c, t = self.split(theta)
        return self._assembled(c, c @ t if self.side == "columns" else t @ c)

    def linearize(self, theta: Tensor) -> LinearMap:
        """dC at the pivots, dC·T + C·dT elsewhere."""
        with torch.inference_mode(False):
            at = theta.detach().clone()
        return FactoredJacobian(at, self).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """The nearest matrix of this rank, by its singular value decomposition."""
        wide = values.detach()
        wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
        r = self.rank
        left, right = u[:, :r] * s[:r], v[:r]
        if self.side == "columns":
            return self.factors(left, right).to(values.dtype)
        return self.factors(u[:, :r], s[:r, None] * right).to(values.dtype)

    def factors(self, left: Tensor, right: Tensor) -> Tensor:
        """θ of the matrix left·right, (rows, r) by (r, columns)."""
        at, rest = self._place("_at", left), self._place("_rest", left)
        if self.side == "columns":
            head = right[:, at]
            return self.join(left @ head, torch.linalg.lstsq(head, right[:, rest]).solution)
        head = left[at]
        t = torch.linalg.lstsq(head.mT, left[rest].mT).solution.mT
        return self.join(head @ right, t)

    def general(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Factors of full rank."""
        return torch.randn(self.in_shape, generator=generator, dtype=torch.float64).to(theta)

    def operands(
        self, theta: Tensor, block: Block | None = None, turned: bool = False
    ) -> tuple[Tensor, Tensor]:
        """C and T as a product multiplies by them from the right: x·Wᵀ, `turned`: x·W."""
        c, t = self.split(theta)
        if block is not None:
            c = block.forward(c)
        return (c, t) if turned else (c.t(), t.t())

    def gathers(self, turned: bool) -> bool:
        """Whether a product picks the pivots from its input; or else puts them into its
        output.
        """
        return (self.side == "rows") is turned

    def product(
        self,
        theta: Tensor,
        x: Tensor,
        block: Block | None = None,
        bias: Tensor | None = None,
        turned: bool = False,
    ) -> Tensor:
        """x·Wᵀ + bias without W, x (…, columns): never more operations than with W.

        `turned`: x·W + bias, x (…, rows). `block`: of a part of W, along the side that has no
        pivots.
        """
        c, t = self.operands(theta, block, turned)
        if self.gathers(turned):
            inner = x.index_select(-1, self._place("_at", x))
            rest = x.index_select(-1, self._place("_rest", x))
            return linear(inner + linear(rest, t.t()), c.t(), bias)
        inner = linear(x, c.t())
        both = torch.cat([inner, linear(inner, t.t())], dim=-1)
        found = both.index_select(-1, self._place("_back", x))
        return found if bias is None else found + bias


@dataclass(frozen=True, eq=False, repr=False)
class FactoredJacobian(LinearMap):
    """The derivative of a `Factored` map at a point."""

    at: Tensor
    phi: Factored

    def __repr__(self) -> str:
        return f"FactoredJacobian({self.phi!r})"

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of the point."""
        return tuple(self.at.shape)

    def _prepare(self) -> None:
        object.__setattr__(self, "_bound_phi", self.phi.bind(self.out_shape))

    @property
    def _phi(self) -> Factored:
        found: Factored = self.__dict__["_bound_phi"]
        return found

    def forward(self, theta: Tensor) -> Tensor:
        """dC at the pivots, dC·T + C·dT elsewhere."""
        c, t = self._phi.split(self.at.to(theta))
        dc, dt = self._phi.split(theta)
        rest = dc @ t + c @ dt if self._phi.side == "columns" else dt @ c + t @ dc
        return self._phi._assembled(dc, rest)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The gradients of C and of T."""
        phi = self._phi
        c, t = phi.split(self.at.to(grad))
        pivots = grad.index_select(phi._dim, phi._place("_at", grad))
        rest = grad.index_select(phi._dim, phi._place("_rest", grad))
        if phi.side == "columns":
            return phi.join(pivots + rest @ t.mT, c.mT @ rest)
        return phi.join(pivots + t.mT @ rest, rest @ c.mT)

    @property
    def rank(self) -> int:
        """Every value of C, and the rank of C for each column (or row) that is not a pivot."""
        phi = self._phi
        c, t = phi.split(self.at.to(torch.float64))
        own = int(torch.linalg.matrix_rank(c, rtol=1e-10))
        return c.numel() + own * (t.numel() // phi.rank)


def _peeled(outer: Map) -> tuple[Block | None, bool] | None:
    """The part of a matrix that a bound map takes, and whether it is then transposed; None
    for a map that does anything else.
    """
    if isinstance(outer, Block):
        return outer, False
    if isinstance(outer, LinearComposed):
        inner, head = _peeled(outer.inner), _peeled(outer.outer)
        if inner is None or head is None:
            return None
        if head[0] is not None and inner != (None, False):
            return None
        return head[0] or inner[0], inner[1] ^ head[1]
    if isinstance(outer, ViewMap):
        view = outer.view()
        plain = view.scale == 1.0 and view.shift == 0.0 and not any(view.flips)
        if plain and (view.is_identity or view.perm == (1, 0)):
            return None, not view.is_identity
    return None


def parts_of(source: Map, outers: Sequence[Map]) -> bool:
    """Whether bound maps take a factored matrix apart, each value to one place."""
    if not isinstance(source, Factored):
        return False
    found = [_peeled(o) for o in outers]
    blocks = [f[0] for f in found if f is not None]
    if len(blocks) < len(outers):
        return False
    if len(blocks) == 1 and blocks[0] is None:
        return True
    cut = sorted(
        ((b.start, b.out_shape[b.dim], b.dim) for b in blocks if b is not None),
    )
    if len(cut) < len(blocks) or len({dim for _, _, dim in cut}) > 1:
        return False
    end = 0
    for start, size, _ in cut:
        if start != end:
            return False
        end += size
    return end == source.out_shape[cut[0][2]]


@dataclass(frozen=True)
class Product:
    """(θ, x, bias) ↦ the product of a layer whose weight is made of a factored matrix.

    `phi` is that matrix's map, `block` the part of it that is this layer's; `turned` as in
    `Factored.product`.
    """

    phi: Factored
    block: Block | None
    turned: bool

    def __call__(self, theta: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `Factored.product`."""
        return self.phi.product(theta, x, self.block, bias, self.turned)

    @property
    def common(self) -> bool:
        """Whether layers that have other parts of the matrix share the first half."""
        return self.block is not None and self.phi.gathers(self.turned)

    def held(self, theta: Tensor) -> tuple[Tensor, ...]:
        """The factors as views of θ and the places of the pivots on its device: what
        `multiplied` takes, good for as long as θ lies where it is.
        """
        found = self.phi.operands(theta.detach(), self.block, self.turned)
        names = ("_at", "_rest") if self.phi.gathers(self.turned) else ("_back",)
        return (*found, *(self.phi._place(n, theta) for n in names))


def multiplied(held: tuple[Tensor, ...], x: Tensor, bias: Tensor | None) -> Tensor:
    """`Factored.product` of what `held` gives, without gradients and without autocast."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if len(held) == 4:  # `spread` of `picked`, without the calls
        c, t, at, rest = held
        inner = flat.index_select(1, at).addmm_(flat.index_select(1, rest), t)
        found = inner.mm(c) if bias is None else torch.addmm(bias, inner, c)
    else:
        c, t, back = held
        inner = flat.mm(c)
        found = torch.cat((inner, inner.mm(t)), 1).index_select(1, back)
        if bias is not None:
            found += bias
    return found if x.dim() == 2 else found.view(*x.shape[:-1], found.shape[1])


def picked(held: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """Of a product that picks the pivots from its input: the first half, (rows of x, r)."""
    _, t, at, rest = held
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return flat.index_select(1, at).addmm_(flat.index_select(1, rest), t)


def spread(held: tuple[Tensor, ...], inner: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """The other half, from what `picked` gives for this x."""
    c = held[0]
    found = inner.mm(c) if bias is None else torch.addmm(bias, inner, c)
    return found if x.dim() == 2 else found.view(*x.shape[:-1], found.shape[1])


def product(source: Map | None, outer: Map, transposed: bool) -> Product | None:
    """(θ, x, bias) ↦ x·Wᵀ + bias for the site W = outer(source(θ)), without W; None where the
    maps do not allow that. `transposed`: x·W + bias.
    """
    if not isinstance(source, Factored):
        return None
    found = _peeled(outer)
    if found is None:
        return None
    block, turned = found
    if block is not None and block.dim == source._dim:
        return None  # it cuts through the factor that holds the identity
    return Product(source, block, turned is not transposed)
