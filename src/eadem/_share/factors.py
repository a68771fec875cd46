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
from eadem.maps.remainder import LowRank
from eadem.maps.view import Same, Transpose

__all__ = [
    "Made",
    "common",
    "errors",
    "factored",
    "made",
    "metric_of",
    "remainders",
    "spectrum",
    "together",
]

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
    """An entry's maps by site, the values that the sites get, and the tie's parameters."""

    maps: dict[str, Map]
    values: dict[str, Tensor]
    thetas: tuple[Tensor, ...] = ()


def made(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str = "loss",
) -> Made:
    """The values of one entry for the weights that `model` has, and its maps."""
    if entry.method == "tied":
        return _tied(model, moments, entry, group, metric)
    coefficients, basis = common(model, moments, entry, group, metric)
    values = {}
    for m, c in zip(group, coefficients, strict=True):
        w = (c @ basis).T if m.narrow else c @ basis
        values[m.site] = w.T if m.transposed else w
    return Made({}, values)


def factored(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str = "loss",
) -> Made:
    """The maps and θ of an entry with a common basis; its pivots by a QR decomposition."""
    coefficients, basis = common(model, moments, entry, group, metric)
    rank, d = basis.shape
    order: Any = qr(basis.numpy(), mode="r", pivoting=True)[1]
    pivots = torch.from_numpy(order[:rank].astype("int64"))
    # of a matrix that reads, the transpose is declared: θ then holds its factors as (in, r)
    # and (r, out), by which a single token is multiplied fastest
    whole = Factored(rank, "rows", pivots)
    left = torch.cat(coefficients)
    others = torch.ones(d, dtype=torch.bool)
    others[pivots] = False
    head = basis[:, pivots]
    c, t = left @ head, torch.linalg.solve(head, basis[:, others])
    maps, at = {}, 0
    for m, own in zip(group, coefficients, strict=True):
        part: Map = whole if len(group) == 1 else Block(at, len(left), 1) @ whole
        maps[m.site] = part if m.narrow is not m.transposed else Transpose() @ part
        at += len(own)
    return Made(maps, {}, (whole.join(c.T, t.T),))


def common(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str = "loss",
) -> tuple[list[Tensor], Tensor]:
    """Each matrix's coefficients (free, r), and the basis (r, d) that all have in common.

    Raises Unsupported where these matrices cannot share one, or not of this rank.
    """
    together(group)
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
    basis = torch.linalg.solve_triangular(root, vectors.T, upper=False, left=False)  # Vᵀ L⁻¹
    pooled = moments is not None and len({m.source for m in group}) > 1
    coefficients = []
    for m, a in zip(group, parts, strict=True):
        if pooled and moments is not None:
            seen = metric_of(moments, m, metric) @ basis.T
            coefficients.append(torch.linalg.solve((basis @ seen).T, (a @ seen).T).T)
        else:
            coefficients.append(a @ (root @ vectors))
    return coefficients, basis


def _apart(
    model: nn.Module, moments: Moments | None, group: Sequence[Matrix], metric: str
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]], list[Tensor]]:
    """The mean of matrices A_l, weighed by each one's metric P_l = LLᵀ; what each has beside
    it, as the singular value decomposition of (A_l − mean)·L; and the L's.
    """
    if len({(m.shape, m.transposed) for m in group}) > 1:
        raise Unsupported(
            f"{', '.join(m.site for m in group[:3])} cannot be tied: they have the shapes "
            f"{[m.shape for m in group[:3]]}"
        )
    parts = [wide(model, m) for m in group]
    eye = torch.eye(parts[0].shape[1], dtype=torch.float64)
    weights = [eye if moments is None else metric_of(moments, m, metric) for m in group]
    total = _sum(a @ p for a, p in zip(parts, weights, strict=True))
    mean: Tensor = torch.linalg.solve(_sum(weights), total.T).T
    roots = [torch.linalg.cholesky(p) for p in weights]
    beside = [
        torch.linalg.svd((a - mean) @ root, full_matrices=False)
        for a, root in zip(parts, roots, strict=True)
    ]
    return mean, beside, roots


def remainders(model: nn.Module, moments: Moments, group: Sequence[Matrix]) -> Tensor:
    """What each rank of the remainders of tied matrices takes off the loss, greatest first.

    To second order, with the other side's moments taken as g·1: ½·g·tr(D·P·Dᵀ) for what is
    left out, D, where g = tr(AᵀGA·P) / tr(AᵀA·P).
    """
    _, beside, roots = _apart(model, moments, group, "loss")
    gains = []
    for m, (_, s, _), root in zip(group, beside, roots, strict=True):
        a = wide(model, m)
        weighed = (moments.content(m) * (root @ root.T)).sum()
        size = float((a @ root).square().sum())
        gains.append(s.square() * weighed / (2 * size or 1.0))  # zeros weigh nothing
    return _sum(gains)


def _tied(
    model: nn.Module,
    moments: Moments | None,
    entry: Entry,
    group: Sequence[Matrix],
    metric: str,
) -> Made:
    """One matrix for all, their mean weighed by each one's metric; and remainders of low rank,
    the best in the same weights.
    """
    # the parameters of a tie come in the order in which its sites lie in the model
    order = {n: i for i, (n, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    group = sorted(group, key=lambda m: order[m.site])
    mean, beside, roots = _apart(model, moments, group, metric)
    rank, stored = entry.rank, group[0].narrow is group[0].transposed
    if rank > min(mean.shape):
        raise Unsupported(
            f"remainders of rank {rank} of {', '.join(entry.sites[:3])}: they have at most "
            f"{min(mean.shape)}"
        )
    shared = mean if stored else mean.T
    if not rank:
        same: dict[str, Map] = {m.site: Same() for m in group}
        return Made(same, {m.site: shared for m in group}, (shared,))
    values, thetas = {}, []
    for m, (u, s, v), root in zip(group, beside, roots, strict=True):
        left = (u[:, :rank] * s[:rank]).T
        right = torch.linalg.solve_triangular(root, v[:rank], upper=False, left=False)
        first, second = (left, right) if stored else (right, left)
        values[m.site] = shared + first.T @ second
        thetas.append(torch.cat([first, second], dim=1))
    # the first site's parameter holds what all share before its own remainder
    thetas[0] = torch.cat([shared.reshape(-1), thetas[0].reshape(-1)])
    return Made({m.site: LowRank(rank) for m in group}, values, tuple(thetas))
