"""Linear least squares whose matrix is an arrow: blocks with columns of their own, and columns
that several blocks share.

Every block's rows [L S r] (own columns, shared columns, residual) are first reduced to a
triangle by QR, which keeps all that least squares can know of them. With a damping for each
column, the own columns are then eliminated block by block (the Schur complement, in the form
of a QR factorisation: no normal equations, so no squared condition number), and what is left
of all blocks is one small problem in the shared columns (Golub & Van Loan, Matrix
Computations, 4th ed., 2013, §6.2; Björck, Numerical Methods for Least Squares Problems, 1996,
§6.3). Blocks of one shape are done in one batch. The cost is linear in the number of blocks.

>>> own, shared = torch.eye(2).double().reshape(2, 1, 2).mT, torch.ones(2, 2, 1).double()
>>> part = Part(torch.tensor([[0], [1]]), torch.tensor([[2], [2]]), own, shared,
...             -torch.tensor([[3.0, 1.0], [1.0, 6.0]]).double())
>>> found = Arrow([part], 3).factor(torch.zeros(3).double()).step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Arrow", "Factor", "Part", "triangle"]

#: Numbers that the shared rows of one batch may hold before they are reduced.
ROWS = 2**24


def triangle(rows: Tensor) -> Tensor:
    """The (square) triangle of QR, (…, m, n) → (…, n, n), with rows of zeros where m < n."""
    m, n = rows.shape[-2:]
    if m == 0 or n == 0 or rows.numel() == 0:
        return rows.new_zeros(*rows.shape[:-2], n, n)
    found: Tensor = torch.linalg.qr(rows, mode="r").R
    if m >= n:
        return found
    return torch.cat([found, found.new_zeros(*found.shape[:-2], n - m, n)], -2)


@dataclass(frozen=True, eq=False)
class Part:
    """The Jacobian and residual of N blocks of one shape: m residuals each.

    `at_own` (N, l) and `at_shared` (N, s): which of the n columns they are. `own` (N, m, l),
    `shared` (N, m, s), `residual` (N, m).
    """

    at_own: Tensor
    at_shared: Tensor
    own: Tensor
    shared: Tensor
    residual: Tensor

    def pulled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Jᵀ·rows for rows (N, m): what each block's own and shared columns receive."""
        wide = rows.unsqueeze(1)
        return (wide @ self.own).squeeze(1), (wide @ self.shared).squeeze(1)


@dataclass(frozen=True, eq=False)
class _Reduced:
    """A part after QR: `triangle` (N, l+s+1, l+s+1) of [own shared residual]."""

    at_own: Tensor
    at_shared: Tensor
    triangle: Tensor

    @property
    def width(self) -> int:
        """How many columns are a block's own."""
        return self.at_own.shape[1]

    @property
    def columns(self) -> Tensor:
        return torch.cat([self.at_own, self.at_shared], 1)


class Arrow:
    """A residual r (all blocks) and its Jacobian J in n columns, in a form made for solving."""

    def __init__(self, parts: Sequence[Part], n: int) -> None:
        self.parts, self.n = parts, n
        self.reduced = [
            _Reduced(
                p.at_own,
                p.at_shared,
                triangle(torch.cat([p.own, p.shared, p.residual.unsqueeze(-1)], -1)),
            )
            for p in parts
        ]
        some = [p.at_shared.reshape(-1) for p in parts]
        #: The shared columns, ascending.
        self.shared = torch.unique(torch.cat(some)) if some else torch.zeros(0).long()

    @classmethod
    def of_triangle(cls, rows: Tensor) -> Arrow:
        """One block, given as the rows [J r] or a triangle of them: (m, n+1)."""
        n = rows.shape[1] - 1
        whole = torch.arange(n).unsqueeze(0)
        none = rows.new_zeros(1, rows.shape[0], 0)
        part = Part(
            whole, whole[:, :0], rows[:, :-1].unsqueeze(0), none, rows[:, -1].unsqueeze(0)
        )
        return cls([part], n)

    @property
    def norms(self) -> Tensor:
        """The length of every column of J, (n,)."""
        total = self._zeros()
        for p in self.reduced:
            squares = p.triangle[..., :-1].square().sum(-2)
            total.index_add_(0, p.columns.reshape(-1), squares.reshape(-1))
        return total.sqrt()

    @property
    def gradient(self) -> Tensor:
        """Jᵀr, (n,)."""
        total = self._zeros()
        for p in self.reduced:
            each = (p.triangle[..., -1:].mT @ p.triangle[..., :-1]).squeeze(-2)
            total.index_add_(0, p.columns.reshape(-1), each.reshape(-1))
        return total

    def along(self, step: Tensor) -> float:
        """‖J·step‖²."""
        return float(self.image(step).square().sum())

    def image(self, step: Tensor) -> Tensor:
        """QᵀJ·step: as long as J·step, with an orthogonal Q of no account."""
        each = [
            (p.triangle[..., :-1] @ step[p.columns].unsqueeze(-1)).reshape(-1)
            for p in self.reduced
        ]
        return torch.cat(each) if each else step.new_zeros(0)

    def triangular_rows(self) -> Tensor:
        """QᵀJ of all blocks, dense: (rows, n), with the same singular values as J."""
        found = []
        for p in self.reduced:
            rows = p.triangle[..., :-1]
            wide = rows.new_zeros(*rows.shape[:2], self.n)
            wide.scatter_(2, p.columns.unsqueeze(1).expand_as(rows), rows)
            found.append(wide.reshape(-1, self.n))
        return torch.cat(found) if found else torch.zeros(0, self.n, dtype=torch.float64)

    def pull(self, rows: Sequence[Tensor]) -> Tensor:
        """Jᵀ·rows, (n,), for one (N, m) tensor for each part."""
        total = self._zeros()
        for p, each in zip(self.parts, rows, strict=True):
            for at, value in zip((p.at_own, p.at_shared), p.pulled(each), strict=True):
                total.index_add_(0, at.reshape(-1), value.reshape(-1))
        return total

    def _zeros(self) -> Tensor:
        return torch.zeros(self.n, dtype=torch.float64)

    def factor(self, damping: Tensor, held: Tensor | None = None) -> Factor:
        """The factor of JᵀJ + diag(damping)²; columns in the mask `held` are left out."""
        own: list[_Own] = []
        size = len(self.shared)
        place = torch.zeros(self.n, dtype=torch.int64)
        place[self.shared] = torch.arange(size)
        damping = damping if held is None else torch.where(held, 1.0, damping)
        tail = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        tail[:-1, :-1] = torch.diag(damping[self.shared])
        for p in self.reduced:
            rows = p.triangle
            if held is not None and bool(held.any()):
                kept = (~held[p.columns]).to(rows)
                rows = rows * torch.cat([kept, kept.new_ones(len(kept), 1)], 1).unsqueeze(1)
            if p.width:
                extra = rows.new_zeros(len(rows), p.width, rows.shape[-1])
                extra[:, :, : p.width] = torch.diag_embed(damping[p.at_own])
                rows = triangle(torch.cat([rows, extra], 1))
            head, rest = rows[:, : p.width], rows[:, p.width :, p.width :]
            own.append(_Own(p.at_own, place[p.at_shared], head))
            tail = _gathered(tail, rest, place[p.at_shared])
        return Factor(self.n, self.shared, own, tail)


def _gathered(tail: Tensor, rest: Tensor, place: Tensor) -> Tensor:
    """The triangle of `tail` (S+1, S+1) and the rows `rest` (N, s+1, s+1), which belong in the
    columns `place` (N, s) and the last.
    """
    if not rest.shape[-1] or not len(rest):
        return tail
    if bool((place == place[:1]).all()):
        rest = triangle(rest.reshape(-1, rest.shape[-1])).unsqueeze(0)
        place = place[:1]
    wide = tail.shape[0]
    step = max(1, ROWS // (rest.shape[1] * wide))
    for rows, at in zip(rest.split(step), place.split(step), strict=True):
        columns = torch.cat([at, at.new_full((len(at), 1), wide - 1)], 1)
        spread = rows.new_zeros(*rows.shape[:2], wide)
        spread.scatter_(2, columns.unsqueeze(1).expand_as(rows), rows)
        tail = triangle(torch.cat([tail, spread.reshape(-1, wide)]))
    return tail


@dataclass(frozen=True, eq=False)
class _Own:
    """The rows of own columns: `head` (N, l, l+s+1); `place` (N, s) among the shared."""

    at: Tensor
    place: Tensor
    head: Tensor

    @property
    def upper(self) -> Tensor:
        return self.head[:, :, : self.at.shape[1]]

    @property
    def across(self) -> Tensor:
        return self.head[:, :, self.at.shape[1] : -1]

    @property
    def right(self) -> Tensor:
        return self.head[:, :, -1]


class Factor:
    """R with RᵀR = JᵀJ + D², and Qᵀr, in the arrow's own shape."""

    def __init__(self, n: int, shared: Tensor, own: list[_Own], tail: Tensor) -> None:
        self.n, self.shared, self.own, self.tail = n, shared, own, tail

    @property
    def diagonal(self) -> Tensor:
        """The absolute diagonal of R, (n,); columns of no block count as zero."""
        found = torch.zeros(self.n, dtype=torch.float64)
        for p in self.own:
            found[p.at] = p.upper.diagonal(dim1=-2, dim2=-1).abs()
        found[self.shared] = self.tail.diagonal()[:-1].abs()
        return found

    @property
    def decrease(self) -> float:
        """‖Qᵀr‖²: what the step takes off ‖r‖² by the linear model, its penalty included."""
        return sum(float(p.right.square().sum()) for p in self.own) + float(
            self.tail[:-1, -1].square().sum()
        )

    @property
    def step(self) -> Tensor:
        """The δ (n,) of least ‖r + Jδ‖² + ‖Dδ‖²."""
        found = torch.zeros(self.n, 1, dtype=torch.float64)
        upper = self.tail[:-1, :-1]
        shared = _back(upper, -self.tail[:-1, -1:])
        found[self.shared] = shared
        for p in self.own:
            right = -p.right.unsqueeze(-1) - p.across @ shared[p.place]
            found[p.at] = _back(p.upper, right)
        return found.squeeze(1)

    def solve(self, right: Tensor) -> Tensor:
        """(JᵀJ + D²)⁻¹·right, for right (n,) or (n, k)."""
        b = right.reshape(self.n, -1)
        found = torch.zeros_like(b)
        rest = b[self.shared]
        half = []
        for p in self.own:
            y = torch.linalg.solve_triangular(p.upper.mT, b[p.at], upper=False)
            half.append(y)
            taken = p.across.mT @ y  # (N, s, k)
            rest = rest.index_add(0, p.place.reshape(-1), -taken.reshape(-1, b.shape[1]))
        upper = self.tail[:-1, :-1]
        shared = _back(upper, torch.linalg.solve_triangular(upper.T, rest, upper=False))
        found[self.shared] = shared
        for p, y in zip(self.own, half, strict=True):
            found[p.at] = _back(p.upper, y - p.across @ shared[p.place])
        return found.reshape(right.shape)

    def block_covariances(self, part: int) -> Tensor:
        """(JᵀJ + D²)⁻¹ among the own and shared columns of each block of a part,
        (N, l+s, l+s).
        """
        p = self.own[part]
        upper = self.tail[:-1, :-1]
        root = _back(upper, torch.eye(len(upper), dtype=torch.float64))  # R⁻¹: Σ = R⁻¹R⁻ᵀ
        shared = root[p.place] @ root[p.place].mT  # (N, s, s)
        eye = torch.eye(p.at.shape[1], dtype=torch.float64).expand_as(p.upper)
        inverse = _back(p.upper, eye)
        moved = -inverse @ p.across  # what the own columns do when the shared ones move
        cross = moved @ shared
        own = inverse @ inverse.mT + cross @ moved.mT
        top, bottom = torch.cat([own, cross], -1), torch.cat([cross.mT, shared], -1)
        return torch.cat([top, bottom], -2)


def _back(upper: Tensor, right: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(upper, right, upper=True)
    return found
