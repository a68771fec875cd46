"""Observations that are not independent: sandwich variances by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.evidence.score import ChiSquare, EvidenceError, Projection, sandwich

__all__ = ["Cluster", "ClusterRow", "cluster_ids", "robust_test", "sensitivity", "summed"]

#: The length of consecutive blocks, or an id for each observation; None: all independent.
Cluster = int | Sequence[int] | Tensor | None

#: Clusters for each degree of freedom below which the robust test is noted as coarse.
FEW = 10


@dataclass(frozen=True)
class ClusterRow:
    """The robust test with clusters of mean size `size`."""

    size: float
    clusters: int
    statistic: float
    df: int
    pvalue: float


def cluster_ids(cluster: Cluster, n: int) -> Tensor:
    """0 … G−1 for each of n observations. Raises EvidenceError.

    >>> cluster_ids(2, 5)
    tensor([0, 0, 1, 1, 2])
    >>> cluster_ids([7, 3, 7], 3)
    tensor([1, 0, 1])
    """
    if cluster is None:
        return torch.arange(n)
    if isinstance(cluster, int):
        if cluster < 1:
            raise EvidenceError(f"cluster={cluster}; blocks need at least one observation")
        return torch.arange(n) // cluster
    try:
        ids = torch.as_tensor(cluster).reshape(-1).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise EvidenceError(
            f"cluster={cluster!r:.80}; give the length of consecutive blocks, or for each "
            "observation the number of its cluster"
        ) from None
    if len(ids) != n:
        raise EvidenceError(
            f"`cluster` gives {len(ids)} ids for {n} observations; give one for each, or the "
            "length of consecutive blocks"
        )
    inverse: Tensor = torch.unique(ids, return_inverse=True)[1]
    return inverse


def summed(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows (n, q) summed within clusters: (G, q)."""
    total = rows.new_zeros(int(ids.max()) + 1, rows.shape[1])
    return total.index_add_(0, ids, rows)


def robust_test(
    found: Projection, along: Tensor | None, ids: Tensor, notes: list[str]
) -> ChiSquare | None:
    """zᵀB⁻¹z with B = Σ over clusters of their scores' outer products."""
    if along is None:
        return None
    clusters = int(ids.max()) + 1
    if found.z.numel() < clusters < FEW * found.z.numel():
        notes.append(
            f"{clusters} clusters for {found.z.numel()} degrees of freedom: the robust test is "
            "coarse, and rejects too seldom"
        )
    each = summed(along, ids)
    return sandwich(each.T @ each, found.z, notes)


def sensitivity(along: Tensor | None, ids: Tensor, given: int | None) -> tuple[ClusterRow, ...]:
    """The robust test for single observations, the given clusters, and those merged.

    Consecutive clusters are merged by twos, fours, … while there are more than twice as many
    as degrees of freedom. A verdict that changes from row to row says that the clusters are
    too small, or that too few are left.
    """
    if along is None or not along.shape[1]:
        return ()
    n, df = along.shape
    z, rows = along.sum(0), []
    groupings = [torch.arange(n)] if given is not None else []
    merged = ids
    while int(merged.max()) + 1 > max(2 * df, 7):
        groupings.append(merged)
        merged = merged // 2
    for each in groupings:
        blocks = summed(along, each)
        found = sandwich(blocks.T @ blocks, z, [])
        if found is not None:
            size, count = n / len(blocks), len(blocks)
            rows.append(ClusterRow(size, count, found.statistic, found.df, found.pvalue))
    return tuple(rows)
