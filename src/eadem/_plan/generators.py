"""Where the free values are not roots themselves: bases, operators and non-linear maps.

After whole sites and coordinates are resolved, such a tie asks that some of the remaining
roots be φ(θ). Alone on its roots, it generates them. Linear ties that meet on common roots
intersect: the null space of the stacked (I − P), P the projector on each tie's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eadem._plan.site import Coordinates, Declaration
from eadem.errors import TieConflict, TooLarge
from eadem.maps.algebra import orthonormal, stack
from eadem.maps.base import DENSE_LIMIT, LinearMap, Map, numel
from eadem.maps.dense import Dense
from eadem.maps.index import Index, Indexed
from eadem.maps.structured import Subspace

__all__ = ["Generator", "Request", "generate"]

Floats = NDArray[np.float64]
#: Relative tolerance of an affine intersection: below it, two flat sets meet.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Generator:
    """`map` (bound, θ → (m,)) gives the values of `roots`, m coordinates, ascending."""

    map: Map
    roots: Coordinates


@dataclass(frozen=True)
class Request:
    """The values scale·W[at] + shift are to be the stacked values of `maps` at one θ."""

    declaration: Declaration
    maps: tuple[Map, ...]
    at: Coordinates
    scale: Floats
    shift: Floats


@dataclass(frozen=True)
class _Asked:
    """A request in terms of roots: its values are a·root + b (root −1: the constant b)."""

    request: Request
    root: Coordinates
    a: Floats
    b: Floats

    @property
    def linear(self) -> list[LinearMap] | None:
        found = [m for m in self.request.maps if isinstance(m, LinearMap)]
        return found if len(found) == len(self.request.maps) else None

    @property
    def own(self) -> Coordinates:
        """The roots it touches, each once, ascending."""
        found: Coordinates = np.unique(self.root[self.root >= 0])
        return found


def generate(
    requests: Sequence[Request],
    root: Coordinates,
    scale: Floats,
    shift: Floats,
    real: NDArray[np.bool_],
) -> list[Generator]:
    """The generators of all requests, given W[i] = scale·W[root] + shift and which roots a
    parameter holds. Raises TieConflict where they exclude each other, TooLarge.
    """
    asked = []
    for r in requests:
        roots = root[r.at]
        held = np.where(real[np.maximum(roots, 0)], roots, -2)
        kept = np.where(roots < 0, -1, held)
        asked.append(_Asked(r, kept, r.scale * scale[r.at], r.scale * shift[r.at] + r.shift))
    found = []
    for together in _overlapping(asked):
        if len(together) == 1:
            alone = _alone(together[0])
            if alone is not None:
                found.append(alone)
                continue
        found.append(_intersection(together))
    return sorted(found, key=lambda g: int(g.roots.min(initial=0)))


def _overlapping(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Requests that share no root apart, those that do together."""
    parts: list[tuple[set[int], list[_Asked]]] = []
    for a in asked:
        mine, members = set(a.own.tolist()), [a]
        rest = []
        for roots, others in parts:
            if roots & mine:
                mine |= roots
                members = others + members
            else:
                rest.append((roots, others))
        parts = [*rest, (mine, members)]
    return [members for _, members in parts]


def _alone(x: _Asked) -> Generator | None:
    """One tie on roots of its own; None where a linear one needs the intersection."""
    linear = x.linear
    own = x.own
    once = len(own) == int((x.root >= 0).sum())
    if linear is not None:
        if not once or (x.root < 0).any():
            return None
        if any(isinstance(m, Dense | Subspace) for m in linear):
            return _intersection([x])
    elif not once or (x.root == -1).any():
        return _elementwise(x)
    whole = x.request.maps[0] if len(x.request.maps) == 1 else stack(x.request.maps)
    chosen = np.flatnonzero(x.root >= 0)
    chosen = chosen[np.argsort(x.root[chosen], kind="stable")]
    return Generator(_selected(whole, chosen, x.a, x.b), own)


def _selected(phi: Map, chosen: Coordinates, a: Floats, b: Floats) -> Map:
    """Root values (φ(θ)[chosen] − b)/a."""
    size = numel(phi.out_shape)
    plain = (
        len(chosen) == size
        and np.array_equal(chosen, np.arange(size))
        and bool((a == 1).all() and (b == 0).all())
    )
    if plain and len(phi.out_shape) == 1:
        return phi
    index = Index(
        torch.from_numpy(chosen),
        size,
        torch.from_numpy(1 / a[chosen]),
        torch.from_numpy(-b[chosen] / a[chosen]),
    )
    outer = Indexed.of(index, (len(chosen),), phi.out_shape)
    return (outer @ phi).bind((len(chosen),))


def _elementwise(x: _Asked) -> Generator:
    """An elementwise map over values of which some are equal or constant."""
    source = x.request.maps[0]
    if len(x.request.maps) > 1 or not getattr(source, "elementwise", False):
        raise TieConflict(
            f"{x.request.declaration} maps θ through a non-linear map whose values another tie "
            "makes equal or constant; only elementwise maps (Positive, Bounded) allow that"
        )
    _, first = np.unique(x.root, return_index=True)
    chosen = first[x.root[first] >= 0]
    again = np.searchsorted(x.root[chosen], x.root[x.root >= 0])
    live = x.root >= 0
    if not (
        np.allclose(x.a[live], x.a[chosen][again])
        and np.allclose(x.b[live], x.b[chosen][again])
    ):
        raise TieConflict(
            f"{x.request.declaration} is non-linear, and another tie relates its values by a "
            "scale or shift; declare that relation on the outside, as Scale(c) @ Positive()"
        )
    bound = source.bind((len(chosen),))
    return Generator(_selected(bound, np.arange(len(chosen)), x.a[chosen], x.b[chosen]), x.own)


def _intersection(together: Sequence[_Asked]) -> Generator:
    """The affine set that all linear ties on these roots leave, as a canonical basis."""
    names = "\n".join(f"  {x.request.declaration}" for x in together)
    roots = np.unique(np.concatenate([x.own for x in together]))
    if len(roots) > DENSE_LIMIT and not (
        len(together) == 1 and len(roots) == len(together[0].root)
    ):
        raise TooLarge(
            f"these ties meet on {len(roots)} values, and their intersection needs a dense "
            f"null space; Eadem goes up to {DENSE_LIMIT}:\n{names}"
        )
    if len(together) == 1 and len(roots) == len(together[0].root):
        basis, point = _range(together[0])
    else:
        basis, point = _common(together, roots, names)
    if basis.shape[1] == 0:
        raise TieConflict(
            "together these ties leave no free value, only a constant that nobody fixed:\n"
            + names
        )
    point = point - basis @ (basis.T @ point)
    size = float(point.abs().max()) if point.numel() else 0.0
    shift = point if size > 1e-12 else None
    return Generator(Dense(basis, shift).bind((len(roots),)), roots)


def _matrix(x: _Asked) -> tuple[torch.Tensor, torch.Tensor]:
    linear = x.linear
    if linear is None:
        raise TieConflict(
            f"{x.request.declaration} is non-linear and meets another tie on the same values; "
            "declare one inside the other with @"
        )
    whole = linear[0] if len(linear) == 1 else stack(linear)
    assert isinstance(whole, LinearMap)
    offset = whole.offset
    rows = numel(whole.out_shape)
    constant = torch.zeros(rows, dtype=torch.float64)
    if offset is not None:
        constant = offset.reshape(-1).to(torch.float64)
    return whole.dense(), constant


def _range(x: _Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """One tie on distinct roots: its range, root by root."""
    matrix, constant = _matrix(x)
    by = torch.from_numpy(np.argsort(x.root, kind="stable"))
    a, b = torch.from_numpy(x.a), torch.from_numpy(x.b)
    basis = orthonormal((matrix / a[:, None])[by])
    return basis, ((constant - b) / a)[by]


def _common(
    together: Sequence[_Asked], roots: Coordinates, names: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(I − P)(L r + b − constant) = 0 for every tie: a point and a basis of directions."""
    rows, rights = [], []
    for x in together:
        matrix, constant = _matrix(x)
        spread = torch.zeros(len(x.root), len(roots), dtype=torch.float64)
        live = np.flatnonzero(x.root >= 0)
        column = np.searchsorted(roots, x.root[live])
        spread[torch.from_numpy(live), torch.from_numpy(column)] = torch.from_numpy(x.a[live])
        q = orthonormal(matrix)
        rest = constant - torch.from_numpy(x.b)
        rows.append(spread - q @ (q.T @ spread))
        rights.append(rest - q @ (q.T @ rest))
    left, right = torch.cat(rows), torch.cat(rights)
    _, s, vh = torch.linalg.svd(left)
    rank = int((s > TOLERANCE * max(float(s.max()), 1.0)).sum()) if s.numel() else 0
    point = torch.linalg.pinv(left, rtol=TOLERANCE) @ right
    gap = float((left @ point - right).abs().max()) if right.numel() else 0.0
    if gap > 1e-7 * max(1.0, float(right.abs().max())):
        raise TieConflict(
            f"no values satisfy all of these ties (they miss each other by {gap:.3g}):\n{names}"
        )
    return orthonormal(vh[rank:].T), point
