"""The values of a plan's ties: bases and coefficients from weights and moments.

A group of matrices A_l (free_l, d), of mean metric P = LLᵀ and content Q = Σ A_lᵀGA_l, is
nearest to C_l·B of rank r where the rows of B·L are the r leading eigenvectors of LᵀQL; the
eigenvalues left out are twice the loss that this costs (whitened truncated singular value
decomposition: SVD-LLM, Wang et al. 2025; across layers: Basis Sharing, Wang et al. 2025).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import qr
from torch import Tensor, nn

from eadem._share.families import Matrix
from eadem._share.plans import Entry
from eadem._share.statistics import Moments, wide
from eadem.errors import Unsupported
from eadem.maps.base import Map
from eadem.maps.factored import Block, Factored
from eadem.maps.remainder import Factors, LowRank
from eadem.maps.view import Same, Transpose

__all__ = ["Made", "errors", "made", "metric_of", "spectrum", "together"]

#: Added to a metric's diagonal, as a share of its median.
DAMPING = 1e-2


def metric_of(moments: Moments, m: Matrix, metric: str) -> Tensor:
    """P of one matrix, damped."""
    if metric == "inputs" and m.narrow:
        return torch.eye(m.shape[0], dtype=torch.float64)
    found = moments.metric(m)
    diagonal = found.diagonal()
    floor = float(diagonal.median()) or float(diagonal.mean()) or 1.0
    return found + DAMPING * floor * torch.eye(len(found), dtype=torch.float64)


def _content(model: nn.Module, moments: Moments, m: Matrix, metric: str) -> Tensor:
    if metric == "inputs" and not m.narrow:
        a = wide(model, m)
        return a.T @ a
    return moments.content(m)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _whitened(
    model: nn.Module, moments: Moments, group: Sequence[Matrix], metric: str
) -> tuple[Tensor, Tensor]:
    """L and LᵀQL of a group."""
    mean = _sum(metric_of(moments, m, metric) for m in group) / len(group)
    content = _sum(_content(model, moments, m, metric) for m in group)
    root: Tensor = torch.linalg.cholesky(mean)
    weighed: Tensor = root.T @ content @ root
    return root, (weighed + weighed.T) / 2


def spectrum(
    model: nn.Module, moments: Moments, group: Sequence[Matrix], metric: str = "loss"
) -> Tensor:
    """What each rank of a group's common basis takes off the loss, (d,), greatest first."""
    _, weighed = _whitened(model, moments, group, metric)
    found: Tensor = torch.linalg.eigvalsh(weighed).flip(0) / 2
    return found.clamp(min=0)


def errors(gains: Tensor, most: int) -> Tensor:
    """The loss that ranks 0, 1, …, `most` leave, from a spectrum; none at the last."""
    tail = gains.flip(0).cumsum(0).flip(0)
    found = torch.cat([tail, tail.new_zeros(1)])[: most + 1].clone()
    found[most] = 0.0
    return found


def together(group: Sequence[Matrix]) -> None:
    """Raise Unsupported where matrices cannot share a basis."""
    sides = {(m.narrow, m.shape[0] if m.narrow else m.shape[1]) for m in group}
    if len(sides) > 1 or len({m.transposed for m in group}) > 1:
        shapes = ", ".join(f"{m.site} {m.shape}" for m in group[:4])
        raise Unsupported(
            f"these cannot share a basis: {shapes}. Matrices that read need inputs of one "
            "size, those that write (o, down) outputs of one size"
        )


@dataclass(frozen=True)
class Made:
    """An entry's maps by site, its θ for each tie, and the values that the sites get."""

    maps: dict[str, Map]
    theta: Tensor
    own: dict[str, Tensor]
    values: dict[str, Tensor]


def made(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str = "loss",
) -> Made:
    """The values of one entry for the weights that `model` has."""
    if entry.method == "tied":
        return _tied(model, moments, entry, group, metric)
    together(group)
    return _factored(model, moments, entry, group, metric)


def _factored(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str,
) -> Made:
    parts = [wide(model, m) for m in group]
    total, d = sum(len(a) for a in parts), parts[0].shape[1]
    rank = entry.rank
    if rank > min(total, d):
        raise Unsupported(
            f"rank {rank} of {', '.join(entry.sites[:3])}: a basis of these has at most "
            f"{min(total, d)} rows"
        )
    if moments is None:
        root = torch.eye(d, dtype=torch.float64)
        stack = torch.cat(parts)
        weighed = stack.T @ stack
    else:
        root, weighed = _whitened(model, moments, group, metric)
    vectors = torch.linalg.eigh(weighed).eigenvectors.flip(1)[:, :rank]
    basis = torch.linalg.solve_triangular(root, vectors.T, upper=False, left=False)  # V Lᵀ⁻¹
    pooled = moments is not None and len({m.source for m in group}) > 1
    coefficients = []
    for m, a in zip(group, parts, strict=True):
        if pooled and moments is not None:
            seen = metric_of(moments, m, metric) @ basis.T
            coefficients.append(torch.linalg.solve((basis @ seen).T, (a @ seen).T).T)
        else:
            coefficients.append(a @ (root @ vectors))
    left = torch.cat(coefficients)
    order: Any = qr(basis.numpy(), mode="r", pivoting=True)[1]
    pivots = torch.from_numpy(order[:rank].astype("int64"))
    narrow, turned = group[0].narrow, group[0].transposed
    whole = Factored(rank, "rows" if narrow else "columns", pivots)
    shape = (d, total) if narrow else (total, d)
    bound = whole.bind(shape)
    theta = bound.factors(basis.T, left.T) if narrow else bound.factors(left, basis)
    maps, values, at = {}, {}, 0
    for m, c in zip(group, coefficients, strict=True):
        part: Map = whole
        if len(group) > 1:
            part = Block(at, total, 1 if narrow else 0) @ whole
        w = (c @ basis).T if narrow else c @ basis
        maps[m.site] = Transpose() @ part if turned else part
        values[m.site] = w.T if turned else w
        at += len(c)
    return Made(maps, theta, {}, values)


def _tied(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str,
) -> Made:
    """One matrix for all: the mean weighed by each one's metric; and remainders of low rank,
    the best in the same weights.
    """
    if len({(m.shape, m.transposed) for m in group}) > 1:
        raise Unsupported(
            f"{', '.join(entry.sites[:3])} cannot be tied: they have the shapes "
            f"{[m.shape for m in group[:3]]}"
        )
    narrow, turned = group[0].narrow, group[0].transposed
    parts = [wide(model, m) for m in group]
    eye = torch.eye(parts[0].shape[1], dtype=torch.float64)
    weights = [eye if moments is None else metric_of(moments, m, metric) for m in group]
    total = _sum(a @ p for a, p in zip(parts, weights, strict=True))
    pooled = _sum(weights)
    shared = torch.linalg.solve(pooled, total.T).T
    if entry.rank:
        shared = parts[0]

    def out(a: Tensor) -> Tensor:
        w = a.T if narrow else a
        return w.T if turned else w

    maps: dict[str, Map] = {group[0].site: Same()}
    values, own = {group[0].site: out(shared)}, {}
    for m, a, p in zip(group[1:], parts[1:], weights[1:], strict=True):
        values[m.site] = out(shared)
        maps[m.site] = Same()
        if not entry.rank:
            continue
        root = torch.linalg.cholesky(p)
        u, s, v = torch.linalg.svd((a - shared) @ root, full_matrices=False)
        r = entry.rank
        tail = torch.linalg.solve_triangular(root, v[:r], upper=False, left=False)
        rest = out((u[:, :r] * s[:r]) @ tail)
        phi = LowRank(r)
        maps[m.site] = phi
        factors = phi.remainder(tuple(rest.shape))
        assert isinstance(factors, Factors)
        own[m.site] = factors.lift(rest)
        values[m.site] = out(shared) + rest
    return Made(maps, out(shared), own, values)
