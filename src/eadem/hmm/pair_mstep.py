"""The pair HMM's M-step on its resolved plan.

Sites are W = φθ + b. What the data count are the sites and the moves that they leave over
(M→M is one less what else M does), and what the sites must keep is that `match`, `insert_x` and
`insert_y` each add up to one: everything is affine in θ. The problem falls apart into pieces
that share no free value and no sum. In a piece where each entry is a free value, and every
distribution that shares values shares them all (whole distributions tied, equal entries within
one), the answer is pooled counts, normalised: θ_g = C_g/(n_g·C) for a value that stands n_g
times in a distribution. Any other piece goes to `eadem.solvers.em.m_step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from eadem.bind import resolved, trainable, whole_vector
from eadem.errors import Unsupported
from eadem.maps.base import LinearMap
from eadem.maps.dense import Dense
from eadem.solvers import SolverError, m_step
from eadem.solvers._reduce import pooled
from eadem.solvers.em import COUNT_FLOOR

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["DISTRIBUTIONS", "LEFT", "MStep"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DISTRIBUTIONS = ("match", "insert_x", "insert_y")
#: What is left over, M→M, X→M and Y→M, as one less these sites.
LEFT = (
    (("gap_open", 0), ("gap_open", 1), ("end", 0)),
    (("gap_extend", 0), ("end", 0)),
    (("gap_extend", 1), ("end", 0)),
)
#: How far a distribution's sum may be from one at the start.
SUM = 1e-6
#: Singular values below this share of the largest are zero.
RTOL = 1e-10


@dataclass(frozen=True)
class _Closed:
    """Free values that are pooled counts: `site` shows value `group`, `times` in each of
    `shared` distributions that are the same.
    """

    columns: Ints
    site: Ints
    group: Ints
    times: Floats

    def step(self, counts: Floats, theta: Floats) -> None:
        """Set the values in `theta`."""
        pooled = np.bincount(self.group, counts[self.site], len(self.columns))
        if pooled.sum() > 0:
            pooled = np.maximum(pooled, COUNT_FLOOR * pooled.mean())
            theta[self.columns] = pooled / (self.times * pooled.sum())


@dataclass(frozen=True)
class _General:
    """Any other piece: p = matrix·z + shift at `site`, θ = z by `basis` from where it is."""

    columns: Ints
    site: Ints
    matrix: Floats
    basis: Floats

    def step(self, counts: Floats, theta: Floats, values: Floats) -> None:
        """Move `theta`, at which the sites have these values."""
        if not self.basis.shape[1]:
            return
        own = torch.from_numpy(counts[self.site])
        if not bool((own > 0).any()):
            return
        shift = torch.from_numpy(values[self.site])
        plan = Dense(torch.from_numpy(self.matrix), shift).bind((len(self.site),))
        found = m_step(plan, own, torch.zeros(self.basis.shape[1], dtype=torch.float64))
        theta[self.columns] += self.basis @ found.numpy()


class MStep:
    """Made ready from a model and its ties; `theta` are its free values, flat.

    Raises Unsupported for ties with non-linear maps, SolverError where a distribution does not
    add up to one.
    """

    def __init__(self, model: nn.Module) -> None:
        plan = resolved(model)
        if not isinstance(plan, LinearMap):
            raise Unsupported(
                "Baum–Welch is algebra over linear and affine ties, and this model has ties "
                "with non-linear maps; tie its probabilities by Same, Gather, Scale, Affine …"
            )
        self.plan, self.slices = plan, dict(plan.slices)
        self.theta: Floats = whole_vector(model, plan).detach().to(torch.float64).numpy().copy()
        phi = plan.dense().numpy()
        shift = plan.expand(torch.zeros(plan.in_shape, dtype=torch.float64)).numpy().reshape(-1)
        moved = self._left()
        self.phi: Floats = np.concatenate([phi, moved @ phi])
        self.shift: Floats = np.concatenate([shift, 1.0 + moved @ shift])
        sums = np.zeros((len(DISTRIBUTIONS), len(phi)))
        for row, name in enumerate(DISTRIBUTIONS):
            sums[row, self.slices[name]] = 1.0
        self._check(sums @ (phi @ self.theta + shift))
        self.pieces = self._split(sums, trainable(model).numpy())

    def together(
        self, value: float, counts: Floats, group: ProcessGroup | None
    ) -> tuple[float, Floats]:
        """The sums of a value and of counts over processes. Counts of sites that show one
        value travel as one, and come back at the first of these sites.
        """
        if group is None:
            return value, counts
        rows = np.column_stack([self.phi, self.shift])
        first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)[1:]
        sent = np.concatenate([[value], np.bincount(kind.reshape(-1), counts)])
        total = pooled(torch.from_numpy(sent), group).numpy()
        found = np.zeros(len(counts))
        found[first] = total[1:]
        return float(total[0]), found

    def _left(self) -> Floats:
        found = np.zeros((len(LEFT), int(np.prod(self.plan.out_shape))))
        for row, sites in enumerate(LEFT):
            for name, i in sites:
                found[row, self.slices[name].start + i] = -1.0
        return found

    @staticmethod
    def _check(total: Floats) -> None:
        for name, found in zip(DISTRIBUTIONS, total, strict=True):
            if abs(found - 1.0) > SUM:
                raise SolverError(
                    f"{name} adds up to {found:.6g}; it must be a distribution when a fit "
                    "starts, under the model's ties"
                )

    def values(self) -> Floats:
        """The sites, flat, and after them what they leave over."""
        found: Floats = self.phi @ self.theta + self.shift
        return found

    def _split(self, sums: Floats, free: npt.NDArray[np.bool_]) -> list[_Closed | _General]:
        sites, columns = self.phi.shape
        wide = np.concatenate([sums, np.zeros((len(sums), len(LEFT)))], axis=1)
        at, column = np.nonzero(self.phi)
        row, member = np.nonzero(wide)
        size = sites + columns + len(sums)
        i = np.concatenate([at, member])
        j = np.concatenate([sites + column, sites + columns + row])
        graph = coo_array((np.ones(len(i)), (i, j)), shape=(size, size))
        _, piece = connected_components(graph, directed=False)
        found: list[_Closed | _General] = []
        for k in np.unique(piece[sites : sites + columns]):
            own = np.flatnonzero(piece[sites : sites + columns] == k)
            rows = np.flatnonzero(piece[sites + columns :] == k)
            site = np.flatnonzero(piece[:sites] == k)
            found += self._piece(own, site, wide[rows], free)
        return found

    def _piece(
        self, own: Ints, site: Ints, sums: Floats, free: npt.NDArray[np.bool_]
    ) -> list[_Closed | _General]:
        phi = self.phi[np.ix_(site, own)]
        plain = bool(free[own].all() and ((phi == 0) | (phi == 1)).all())
        plain = plain and bool((phi.sum(1) == 1).all() and (self.shift[site] == 0).all())
        times = sums[:, site] @ phi  # how often a value stands in a distribution
        if plain and len(sums) and (times == times[0]).all() and (times[0] > 0).all():
            return [_Closed(own, site, phi.argmax(1), times[0])]
        own = own[free[own]]
        if not own.size:
            return []
        phi = self.phi[np.ix_(site, own)]
        basis = np.eye(len(own))
        if len(sums):
            _, singular, right = np.linalg.svd(sums[:, site] @ phi)
            basis = right[int((singular > RTOL * max(1.0, singular.max())).sum()) :].T
        return [_General(own, site, phi @ basis, basis)]

    def step(self, counts: Floats) -> Floats:
        """θ of greatest Σ counts·log p; `counts` of the sites and of what they leave over."""
        before, theta = self.values(), self.theta.copy()
        for piece in self.pieces:
            if isinstance(piece, _Closed):
                piece.step(counts, theta)
            else:
                piece.step(counts, theta, before)
        return theta
