"""How alike two weights are, and how alike they would be by chance.

Chance is stated for every measure, and keeps what each weight is by itself: its values, its
rows, its columns. What is measured is ⟨a, b⟩, with b moved as the candidate says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

__all__ = ["Chance", "Moments", "aligned", "by_draws", "by_moments", "moments", "over_orders"]

Floats = NDArray[np.float64]
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Chance:
    """The p-value of a measure: `pvalue` by a normal tail (Student's, where the moments come
    from draws), `bound` without it: Cantelli's inequality where the moments are exact, the
    rank among the draws where they are not.
    """

    pvalue: float
    bound: float


@dataclass(frozen=True)
class Moments:
    """A weight as (rows, columns, rest): what the moments of ⟨a, b⟩ over permutations need.

    `mean` (rest,); `rows`, `columns`, `left`: Σ of outer products (rest, rest) of what the
    rows' means, the columns' means and neither explain, each centred.
    """

    shape: tuple[int, int]
    mean: Tensor
    rows: Tensor
    columns: Tensor
    left: Tensor

    def transposed(self) -> Moments:
        """Those of the transpose."""
        p, q = self.shape
        return Moments((q, p), self.mean, self.columns, self.rows, self.left)


def moments(weight: Tensor) -> Moments:
    """The moments of a weight; a vector has one column."""
    x = _as_blocks(weight)
    mean = x.mean((0, 1))
    rows, columns = x.mean(1) - mean, x.mean(0) - mean
    left = x - mean - rows[:, None] - columns[None]
    flat = left.reshape(-1, left.shape[2])
    return Moments(
        (x.shape[0], x.shape[1]), mean, rows.T @ rows, columns.T @ columns, flat.T @ flat
    )


def _as_blocks(weight: Tensor) -> Tensor:
    x = weight.detach().to(torch.float64)
    return x.reshape(len(x), 1, 1) if x.ndim == 1 else x.reshape(*x.shape[:2], -1)


def over_orders(a: Moments, b: Moments) -> tuple[float, float]:
    """The mean and the variance of ⟨a, b⟩ where the rows of b, and its columns, come in any
    order.

    Both orders are independent and uniform, so both are exact: with a = mean + row + column +
    rest, the four parts of the sum are uncorrelated, and each is a sum over random
    permutations (Hoeffding, Ann. Math. Statist. 22, 1951).
    """
    p, q = a.shape
    spread = 0.0
    if p > 1:
        spread += q**2 * _pair(a.rows, b.rows) / (p - 1)
    if q > 1:
        spread += p**2 * _pair(a.columns, b.columns) / (q - 1)
    if p > 1 and q > 1:
        spread += _pair(a.left, b.left) / ((p - 1) * (q - 1))
    return p * q * float(a.mean @ b.mean), spread


def by_moments(inner: float, a: Moments, b: Moments, two_sided: bool) -> Chance:
    """The p-value of ⟨a, b⟩ where the rows of b, and its columns, come in any order."""
    mean, spread = over_orders(a, b)
    away = inner - mean
    if spread <= 1e-24 * (mean**2 + inner**2):
        return Chance(1.0, 1.0)  # every order gives the same
    p, q = a.shape
    least = math.exp(-math.lgamma(p + 1) - math.lgamma(q + 1))
    z = away / math.sqrt(spread)
    if two_sided:
        tail = min(1.0, 1 / max(z**2, 1.0))
        return Chance(max(2 * float(norm.sf(abs(z))), least), max(tail, least))
    tail = 1 / (1 + z**2) if z > 0 else 1.0
    return Chance(max(float(norm.sf(z)), least), max(tail, least))


def _pair(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def aligned(a: Tensor, b: Tensor) -> tuple[Order, float]:
    """The order of b's rows with the largest ⟨a, b[order]⟩, and that (Kuhn 1955)."""
    gain = (a @ b.T).numpy()
    _, order = linear_sum_assignment(gain, maximize=True)
    return np.asarray(order, dtype=np.int64), float(gain[np.arange(len(gain)), order].sum())


def by_draws(measure: float, null: Floats, arrangements: float) -> Chance:
    """The p-value of a measure among independent draws of it, of which there are as many
    different ones as `arrangements`.

    Beyond the draws by Student's distribution, as a further draw of a normal variable whose
    mean and variance are those of the draws.
    """
    rank = (1 + int((null >= measure).sum())) / (1 + len(null))
    spread = float(null.std(ddof=1))
    least = 1 / arrangements
    if spread <= 1e-12 * max(abs(float(null.mean())), 1e-300):
        return Chance(1.0, 1.0)
    if rank > 2 / (1 + len(null)):
        return Chance(max(rank, least), max(rank, least))
    score = (measure - float(null.mean())) / (spread * math.sqrt(1 + 1 / len(null)))
    return Chance(max(float(student.sf(score, len(null) - 1)), least), max(rank, least))
