"""Building maps from maps: side by side, one under the other, added, and where two agree.

A plan is put together with these: the free values of several owners stand side by side
(`Blocks`), the sites of one tie stand one under the other (`Stack`), and a site that departs
from its tie is the sum of what is shared and of what is its own (`Added`). All are maps, on
flat vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.index import Index

__all__ = [
    "Added",
    "Blocks",
    "LinearAdded",
    "LinearBlocks",
    "LinearStack",
    "Stack",
    "added",
    "blocks",
    "offsets",
    "orthonormal",
    "stack",
]


def offsets(sizes: Iterable[int]) -> list[int]:
    """Where blocks of these sizes start, one after the other."""
    total, starts = 0, []
    for size in sizes:
        starts.append(total)
        total += size
    return starts


def _cat(parts: Sequence[Tensor]) -> Tensor:
    flat = [p.reshape(-1) for p in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


@dataclass(frozen=True, eq=False)
class _Several(Map):
    """What Blocks and Stack share: `parts` are bound maps; shapes are flat."""

    parts: tuple[Map, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise ShapeError(f"{type(self).__name__} needs at least one map")
        object.__setattr__(self, "parts", tuple(self.parts))

    def infer(self, out_shape: Shape) -> Shape:
        """One flat vector for all parts."""
        rows = sum(numel(p.out_shape) for p in self.parts)
        if numel(out_shape) != rows:
            raise ShapeError(f"these maps give {rows} values, not {numel(out_shape)}")
        return (self._columns(),)

    def _columns(self) -> int:
        raise NotImplementedError

    def _inputs(self, theta: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def _outputs(self, values: Tensor) -> list[Tensor]:
        sizes = [numel(p.out_shape) for p in self.parts]
        pieces = torch.split(values.reshape(-1), sizes)
        return [v.reshape(p.out_shape) for v, p in zip(pieces, self.parts, strict=True)]

    def expand(self, theta: Tensor) -> Tensor:
        """Every part's value, one after the other, flat."""
        inputs = self._inputs(theta)
        return _cat([p.expand(t) for p, t in zip(self.parts, inputs, strict=True)])


@dataclass(frozen=True, eq=False)
class _SeveralLinear(_Several, LinearMap):
    parts: tuple[LinearMap, ...]

    def forward(self, theta: Tensor) -> Tensor:
        """Every part's linear value, one after the other, flat."""
        inputs = self._inputs(theta)
        return _cat([p.forward(t) for p, t in zip(self.parts, inputs, strict=True)])

    def expand(self, theta: Tensor) -> Tensor:
        """Every part's value, one after the other, flat."""
        return _Several.expand(self, theta)

    @property
    def offset(self) -> Tensor | None:
        """The parts' offsets, or None where all are zero."""
        found = [p.offset for p in self.parts]
        if all(b is None for b in found):
            return None
        zero = [torch.zeros(p.out_shape, dtype=torch.float64) for p in self.parts]
        return _cat([z if b is None else b for b, z in zip(found, zero, strict=True)])


@dataclass(frozen=True, eq=False)
class _Side(_Several):
    def _columns(self) -> int:
        return sum(numel(p.in_shape) for p in self.parts)

    def _inputs(self, theta: Tensor) -> list[Tensor]:
        pieces = torch.split(theta, [numel(p.in_shape) for p in self.parts])
        return [t.reshape(p.in_shape) for t, p in zip(pieces, self.parts, strict=True)]


@dataclass(frozen=True, eq=False)
class Blocks(_Side):
    """Maps side by side: θ = (θ₁, θ₂, …), W = (W₁, W₂, …)."""

    def linearize(self, theta: Tensor) -> LinearMap:
        """The parts linearized."""
        inputs = self._inputs(theta)
        parts = [p.linearize(t) for p, t in zip(self.parts, inputs, strict=True)]
        return LinearBlocks(tuple(parts)).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """Every part lifted by itself."""
        pieces = zip(self.parts, self._outputs(values), strict=True)
        return _cat([p.lift(v) for p, v in pieces])

    def general(self, theta: Tensor) -> Tensor:
        """Every part's general point."""
        pieces = zip(self.parts, self._inputs(theta), strict=True)
        return _cat([p.general(t) for p, t in pieces])


@dataclass(frozen=True, eq=False)
class LinearBlocks(_SeveralLinear, _Side):
    """Linear maps side by side."""

    def adjoint(self, grad: Tensor) -> Tensor:
        """Every part's adjoint, one after the other."""
        pieces = zip(self.parts, self._outputs(grad), strict=True)
        return _cat([p.adjoint(v) for p, v in pieces])

    def lift(self, values: Tensor) -> Tensor:
        """Every part lifted by itself."""
        return Blocks.lift(self, values)  # type: ignore[arg-type]

    @property
    def rank(self) -> int:
        """The sum of the parts' ranks."""
        return sum(p.rank for p in self.parts)

    def index(self) -> Index | None:
        """The parts' coordinates, moved to their places."""
        found = [p.index() for p in self.parts]
        starts = offsets([numel(p.in_shape) for p in self.parts])
        return _joined(found, starts, self._columns())


@dataclass(frozen=True, eq=False)
class Added(_Side):
    """A sum of maps, each of a θ of its own: θ = (θ₁, θ₂, …), W = φ₁(θ₁) + φ₂(θ₂) + …"""

    def infer(self, out_shape: Shape) -> Shape:
        """One flat vector for all parts, which all must fill the site."""
        if any(p.out_shape != out_shape for p in self.parts):
            shapes = [p.out_shape for p in self.parts]
            raise ShapeError(f"maps to {shapes} cannot be added in a site of {out_shape}")
        return (self._columns(),)

    def expand(self, theta: Tensor) -> Tensor:
        """The sum of the parts' values."""
        first, *rest = zip(self.parts, self._inputs(theta), strict=True)
        total = first[0].expand(first[1])
        for part, piece in rest:
            total = total + part.expand(piece)
        return total

    def linearize(self, theta: Tensor) -> LinearMap:
        """The parts linearized."""
        pieces = zip(self.parts, self._inputs(theta), strict=True)
        return LinearAdded(tuple(p.linearize(t) for p, t in pieces)).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """The first part's θ nearest to the values, then each next part's, of what is left."""
        lifted, rest = [], values
        for part in self.parts:
            theta = part.lift(rest)
            lifted.append(theta)
            rest = rest - part.expand(theta)
        return _cat(lifted)


@dataclass(frozen=True, eq=False)
class LinearAdded(_SeveralLinear, Added):
    """A sum of linear maps, each of a θ of its own: A = [A₁ A₂ …]."""

    def forward(self, theta: Tensor) -> Tensor:
        """The sum of the parts' linear values."""
        first, *rest = zip(self.parts, self._inputs(theta), strict=True)
        total = first[0].forward(first[1])
        for part, piece in rest:
            total = total + part.forward(piece)
        return total

    def expand(self, theta: Tensor) -> Tensor:
        """The sum of the parts' values."""
        return Added.expand(self, theta)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The parts' adjoints, one after the other."""
        return _cat([p.adjoint(grad) for p in self.parts])

    @property
    def offset(self) -> Tensor | None:
        """The sum of the parts' offsets, or None where all are zero."""
        found = [b for p in self.parts if (b := p.offset) is not None]
        return sum(found[1:], found[0]) if found else None

    def lift(self, values: Tensor) -> Tensor:
        """The least-squares θ, of least norm."""
        return LinearMap.lift(self, values)

    def linearize(self, theta: Tensor) -> LinearMap:
        """The map itself."""
        return self


@dataclass(frozen=True, eq=False)
class _Over(_Several):
    def _columns(self) -> int:
        sizes = {numel(p.in_shape) for p in self.parts}
        if len(sizes) > 1:
            raise ShapeError(
                f"maps of one θ must agree on its size; these take {sorted(sizes)}"
            )
        return sizes.pop()

    def _inputs(self, theta: Tensor) -> list[Tensor]:
        return [theta.reshape(p.in_shape) for p in self.parts]


@dataclass(frozen=True, eq=False)
class Stack(_Over):
    """Maps of one θ, one under the other: W = (φ₁θ, φ₂θ, …)."""

    def linearize(self, theta: Tensor) -> LinearMap:
        """The parts linearized."""
        inputs = self._inputs(theta)
        parts = [p.linearize(t) for p, t in zip(self.parts, inputs, strict=True)]
        return LinearStack(tuple(parts)).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """For each free value the mean of the lifts of the parts that use it (for equal
        non-linear maps that is the natural mean).
        """
        pieces = zip(self.parts, self._outputs(values), strict=True)
        lifted = torch.stack([p.lift(v).reshape(-1) for p, v in pieces])
        used = torch.stack([_uses(p, t) for p, t in zip(self.parts, lifted, strict=True)])
        weight = used.to(lifted)
        count = weight.sum(0)
        mean = (weight * lifted).sum(0) / count.clamp(min=1)
        return torch.where(count > 0, mean, lifted.mean(0))


@dataclass(frozen=True, eq=False)
class LinearStack(_SeveralLinear, _Over):
    """Linear maps of one θ: the whole tie as one map."""

    def adjoint(self, grad: Tensor) -> Tensor:
        """The sum of the parts' adjoints."""
        pulled = [
            p.adjoint(v).reshape(-1)
            for p, v in zip(self.parts, self._outputs(grad), strict=True)
        ]
        total = pulled[0]
        for more in pulled[1:]:
            total = total + more
        return total

    def lift(self, values: Tensor) -> Tensor:
        """The least-squares θ over all parts together."""
        views = [v for p in self.parts if (v := p.view()) is not None]
        if len(views) < len(self.parts):
            return LinearMap.lift(self, values)
        # whole sites: what the first says, corrected by the least squares of what is left
        wide = values.to(torch.promote_types(values.dtype, torch.float64))
        first = self.parts[0]
        theta = first.lift(self._outputs(wide)[0]).reshape(self.in_shape)
        rest = wide.reshape(self.out_shape) - self.expand(theta)
        weight = sum(v.scale**2 for v in views)
        return (theta + self.adjoint(rest) / weight).to(values.dtype)

    def gram_diagonal(self) -> Tensor | None:
        """The sum of the parts' diagonals, where all have one."""
        found = [p.gram_diagonal() for p in self.parts]
        total = torch.zeros(self._columns(), dtype=torch.float64)
        for diagonal in found:
            if diagonal is None:
                return None
            total += diagonal
        return total

    def index(self) -> Index | None:
        """The parts' coordinates, one after the other."""
        return _joined([p.index() for p in self.parts], None, self._columns())


def _uses(part: Map, theta: Tensor) -> Tensor:
    """Which free values the value of `part` depends on at flat θ, as far as that is known."""
    index = part.linearize(theta.reshape(part.in_shape)).index()
    return torch.ones(theta.numel(), dtype=torch.bool) if index is None else index.used()


def _joined(found: list[Index | None], starts: list[int] | None, size: int) -> Index | None:
    present = [i for i in found if i is not None]
    if len(present) < len(found):
        return None
    moved = starts or [0] * len(present)
    position = torch.cat(
        [
            torch.where(i.position >= 0, i.position + s, -1)
            for i, s in zip(present, moved, strict=True)
        ]
    )
    scale = shift = None
    if any(i.scale is not None for i in present):
        scale = torch.cat([i.scales() for i in present])
    if any(i.shift is not None for i in present):
        shift = torch.cat([i.shifts() for i in present])
    return Index(position, size, scale, shift)


def _flat(parts: Sequence[Map]) -> Shape:
    return (sum(numel(p.out_shape) for p in parts),)


def blocks(parts: Sequence[Map]) -> Map:
    """Bound maps side by side, as one bound map on flat vectors."""
    linear = [p for p in parts if isinstance(p, LinearMap)]
    if len(linear) == len(parts):
        return LinearBlocks(tuple(linear)).bind(_flat(parts))
    return Blocks(tuple(parts)).bind(_flat(parts))


def added(parts: Sequence[Map]) -> Map:
    """The sum of bound maps to one shape, each of a θ of its own, as one bound map."""
    linear = [p for p in parts if isinstance(p, LinearMap)]
    if len(linear) == len(parts):
        return LinearAdded(tuple(linear)).bind(parts[0].out_shape)
    return Added(tuple(parts)).bind(parts[0].out_shape)


def stack(parts: Sequence[Map]) -> Map:
    """Bound maps of one θ, one under the other, as one bound map on flat vectors."""
    linear = [p for p in parts if isinstance(p, LinearMap)]
    if len(linear) == len(parts):
        return LinearStack(tuple(linear)).bind(_flat(parts))
    return Stack(tuple(parts)).bind(_flat(parts))


def orthonormal(matrix: Tensor, rtol: float = 1e-10) -> Tensor:
    """The canonical orthonormal basis of range(matrix): (n, k) → (n, rank), float64.

    It depends on the subspace alone, not on the columns that span it: Gram–Schmidt on the
    columns of the orthogonal projector, in coordinate order, dependent ones left out.
    """
    u, s, _ = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    rank = int((s > rtol * s.max()).sum()) if s.numel() and s.max() > 0 else 0
    q = u[:, :rank]
    basis = torch.zeros(rank, rank, dtype=torch.float64)  # coefficients in q of what was kept
    kept = 0
    for row in q:  # the i-th column of the projector q qᵀ has coefficients q[i]
        if kept == rank:
            break
        rest = row - basis[:, :kept] @ (basis[:, :kept].T @ row)
        if float(rest.norm()) > 1e-7:
            rest = rest - basis[:, :kept] @ (basis[:, :kept].T @ rest)
            basis[:, kept] = rest / rest.norm()
            kept += 1
    canonical: Tensor = q @ basis[:, :kept]
    return canonical
