"""What a module's values satisfy by their meaning, whatever is tied.

Rows of probabilities sum to one and a covariance matrix is symmetric: no declaration says so,
and no reparametrization hides the values. A module that has such sites names them in
`site_constraints`, by parameter: "rows" (each row, along the last axis, keeps its sum),
"whole" (the sum of all entries is kept) or "symmetric" (the last two axes may be exchanged).
They are equations Σ s·W = constant on the
sites, so with a plan W = φθ + b the free values may only move in the null space of Sφ, and
that many fewer are free.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eadem._plan import Plan
from eadem.errors import TooLarge
from eadem.maps.base import DENSE_LIMIT, RANK_RTOL, LinearMap, numel
from eadem.maps.dense import Dense

__all__ = ["constrained", "constraint_rank", "kept_rows", "kept_sites"]


def kept_sites(model: nn.Module) -> dict[str, str]:
    """The constrained sites of a model and its parts by name, with the kind of constraint.

    >>> model = nn.Module()
    >>> model.site_constraints = {"p": "rows"}
    >>> kept_sites(nn.ModuleDict({"hmm": model}))
    {'hmm.p': 'rows'}
    """
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        given: Any = getattr(module, "site_constraints", None) or {}
        found.update({f"{prefix}.{n}" if prefix else n: kind for n, kind in given.items()})
    return found


def kept_rows(model: nn.Module, plan: Plan) -> Tensor | None:
    """S, sparse (equations, sites), float64; None where nothing is constrained."""
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    values: list[Tensor] = []
    total = 0
    for name, kind in kept_sites(model).items():
        shape = plan.shapes.get(name)
        if shape is None:
            continue
        at = torch.arange(numel(shape)).reshape(shape) + plan.slices[name].start
        if kind in ("rows", "whole"):
            lines = at.reshape(-1, shape[-1] if kind == "rows" else numel(shape))
            each, signs = lines.shape[0], torch.ones(lines.shape[1], dtype=torch.float64)
        else:
            i, j = torch.triu_indices(shape[-1], shape[-1], 1)
            upper, lower = at[..., i, j].reshape(-1), at[..., j, i].reshape(-1)
            lines, signs = torch.stack([upper, lower], 1), torch.tensor([1.0, -1.0])
            each = len(lines)
        rows.append((torch.arange(each) + total).repeat_interleave(lines.shape[1]))
        columns.append(lines.reshape(-1))
        values.append(signs.to(torch.float64).repeat(each))
        total += each
    if not total:
        return None
    where = torch.stack([torch.cat(rows), torch.cat(columns)])
    size = (total, numel(plan.out_shape))
    return torch.sparse_coo_tensor(
        where, torch.cat(values), size, dtype=torch.float64, check_invariants=False
    ).coalesce()


def _pulled(rows: Tensor, phi: LinearMap) -> Tensor:
    """Sφ, (equations, free)."""
    if rows.shape[0] * numel(phi.in_shape) > 4 * DENSE_LIMIT**2:
        raise TooLarge(
            f"{rows.shape[0]} equations that the sites keep, on {numel(phi.in_shape)} free "
            f"values, make a matrix above the limit of {4 * DENSE_LIMIT**2} entries"
        )
    place, weight = rows.indices(), rows.values()
    found = torch.zeros(rows.shape[0], numel(phi.in_shape), dtype=torch.float64)
    ends = torch.bincount(place[0], minlength=rows.shape[0]).cumsum(0).tolist()
    start = 0
    line = torch.zeros(numel(phi.out_shape), dtype=torch.float64)
    for i, end in enumerate(ends):
        at = place[1, start:end]
        line[at] = weight[start:end]
        found[i] = phi.adjoint(line.reshape(phi.out_shape)).reshape(-1)
        line[at] = 0.0
        start = end
    return found


def constraint_rank(model: nn.Module, phi: LinearMap, plan: Plan) -> int:
    """How many free values the constraints take away."""
    rows = kept_rows(model, plan)
    if rows is None:
        return 0
    pulled = _pulled(rows, phi)
    pulled = pulled[:, (pulled != 0).any(dim=0)]
    return int(torch.linalg.matrix_rank(pulled, rtol=RANK_RTOL)) if pulled.numel() else 0


def constrained(model: nn.Module, phi: LinearMap, plan: Plan) -> LinearMap:
    """φ of the directions alone in which the sites keep their constraints; φ itself where
    there are none. Its free values are coefficients in an orthonormal basis.
    """
    rows = kept_rows(model, plan)
    if rows is None:
        return phi
    size = numel(phi.in_shape)
    if size > DENSE_LIMIT:
        raise TooLarge(
            f"the directions that keep {rows.shape[0]} constraints need a basis of {size} free "
            f"values; Eadem builds at most {DENSE_LIMIT} squared"
        )
    pulled = _pulled(rows, phi)
    _, sizes, right = torch.linalg.svd(pulled, full_matrices=True)
    rank = int((sizes > RANK_RTOL * sizes.max()).sum()) if sizes.numel() else 0
    basis = Dense(right[rank:].T.contiguous()).bind(phi.in_shape)
    found = (phi @ basis).bind(phi.out_shape)
    assert isinstance(found, LinearMap)
    return found
