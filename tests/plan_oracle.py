"""What a plan means, by brute force: dense matrices and a singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem._plan import Declaration, Plan, Site
from eadem.maps import LinearMap

TOLERANCE = 1e-9
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AffineSet:
    """{x + N z}: `basis` N is orthonormal (n, k), `point` x is orthogonal to it."""

    point: Tensor
    basis: Tensor

    @property
    def dimension(self) -> int:
        return self.basis.shape[1]

    @property
    def projector(self) -> Tensor:
        return self.basis @ self.basis.T


def coordinates(shapes: Shapes) -> dict[str, Tensor]:
    """Where each site's values lie in the flat vector of all of them."""
    total, found = 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape)
        found[name] = torch.arange(total, total + size).reshape(shape)
        total += size
    return found


def part_of(grid: Tensor, site: Site) -> Tensor:
    """What numpy takes from `grid` for the text of a site."""
    _, bracket, index = str(site).partition("[")
    return eval(f"grid[{index}") if bracket else grid  # the tests' own constants


def dense(phi: LinearMap, out_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A and b of a map, by applying it to unit vectors."""
    bound = phi.bind(out_shape)
    rows, columns = math.prod(bound.out_shape), math.prod(bound.in_shape)
    zero = bound.expand(torch.zeros(bound.in_shape, dtype=torch.float64)).reshape(-1)
    a = torch.zeros(rows, columns, dtype=torch.float64)
    for j in range(columns):
        unit = torch.zeros(columns, dtype=torch.float64)
        unit[j] = 1.0
        a[:, j] = bound.expand(unit.reshape(bound.in_shape)).reshape(-1) - zero
    return a, zero


def brute_force(shapes: Shapes, declarations: Sequence[Declaration]) -> AffineSet | None:
    """{W : for every declaration there is a θ with W_i = A_i θ + b_i}, or None where empty.

    θ is eliminated by the projector off range(A); what is left is linear in W.
    """
    at = coordinates(shapes)
    n = sum(math.prod(s) for s in shapes.values())
    rows = [torch.zeros(1, n, dtype=torch.float64)]
    right = [torch.zeros(1, dtype=torch.float64)]
    for declaration in declarations:
        picks, matrices, offsets = [], [], []
        for entry in declaration.entries:
            where = part_of(at[entry.site.name], entry.site)
            a, b = dense(entry.map, tuple(where.shape))
            picks.append(where.reshape(-1))
            matrices.append(a)
            offsets.append(b)
        a, b = torch.cat(matrices), torch.cat(offsets)
        pick = torch.nn.functional.one_hot(torch.cat(picks), n).double()
        u, s, _ = torch.linalg.svd(a, full_matrices=False)
        u = u[:, s > TOLERANCE * max(float(s.max()), 1e-300)] if s.numel() else u[:, :0]
        off = torch.eye(len(a), dtype=torch.float64) - u @ u.T
        rows.append(off @ pick)
        right.append(off @ b)
    c, d = torch.cat(rows), torch.cat(right)
    point = torch.linalg.pinv(c, atol=TOLERANCE, rtol=0.0) @ d
    if float((c @ point - d).abs().max()) > 1e-7 * max(1.0, float(d.abs().max())):
        return None
    _, s, vt = torch.linalg.svd(c)
    rank = int((s > TOLERANCE).sum())  # absolute: projectors, some of them zero
    return AffineSet(point, vt[rank:].T)


def of_plan(plan: Plan) -> AffineSet:
    """The set that a resolved plan reaches."""
    columns = math.prod(plan.in_shape)
    zero = plan.expand(torch.zeros(columns, dtype=torch.float64)).reshape(-1)
    images = [
        plan.expand(torch.eye(columns, dtype=torch.float64)[j]).reshape(-1) - zero
        for j in range(columns)
    ]
    a = torch.stack(images, 1) if images else torch.zeros(len(zero), 0, dtype=torch.float64)
    u, s, _ = torch.linalg.svd(a, full_matrices=False)
    u = u[:, s > TOLERANCE * max(float(s.max()), 1e-300)] if s.numel() else u[:, :0]
    return AffineSet(zero - u @ (u.T @ zero), u)


def assert_same_set(found: AffineSet, want: AffineSet, atol: float = 1e-7) -> None:
    assert found.dimension == want.dimension
    torch.testing.assert_close(found.projector, want.projector, rtol=0, atol=atol)
    torch.testing.assert_close(found.point, want.point, rtol=0, atol=atol)
