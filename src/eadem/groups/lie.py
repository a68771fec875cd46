"""Lie algebras by their generators: so(n) and the Lorentz algebra, or matrices of one's own.

A representation sends each generator to a matrix that keeps the brackets. A linear map is
equivariant under the whole connected group when it commutes with the generators.

>>> so3 = so(3)
>>> so3.generators, so3.vector().size
(('L01', 'L02', 'L12'), 3)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eadem.errors import GroupError
from eadem.groups.generated import tensors_of
from eadem.groups.group import Group, Matrix, Places, Relation, whole
from eadem.groups.representation import Representation
from eadem.maps.constant import outside

__all__ = ["Lie", "lie", "lorentz", "so"]


def so(n: int) -> Lie:
    """Rotations of n dimensions: a generator Lij turns axis i towards axis j."""
    if not isinstance(n, int) or not 2 <= n <= 64:
        raise GroupError(f"so(n) is for n from 2 to 64, not {n!r}")
    names, matrices = [], []
    for i, j in itertools.combinations(range(n), 2):
        matrix = np.zeros((n, n))
        matrix[j, i], matrix[i, j] = 1.0, -1.0
        names.append(f"L{i}{j}")
        matrices.append(matrix)
    return Lie(matrices, names)


def lorentz() -> Lie:
    """so(1, 3) on (t, x, y, z): rotations J1 … J3 and boosts K1 … K3."""
    rotations, boosts = [], []
    for i in range(3):
        j, k = (i + 1) % 3 + 1, (i + 2) % 3 + 1
        turn, boost = np.zeros((4, 4)), np.zeros((4, 4))
        turn[k, j], turn[j, k] = 1.0, -1.0
        boost[0, i + 1] = boost[i + 1, 0] = 1.0
        rotations.append(turn)
        boosts.append(boost)
    return Lie([*rotations, *boosts], ["J1", "J2", "J3", "K1", "K2", "K3"])


def lie(*generators: Any) -> Lie:
    """The Lie algebra of these (n, n) matrices, which must be closed under the bracket.

    Raises GroupError where they are not, naming the bracket, or are dependent.
    """
    with outside():
        tensors = tensors_of(generators, "matrices")
        made = [t.to(torch.float64).numpy() for t in tensors]
    return Lie(made, [f"X{i + 1}" for i in range(len(made))])


class Lie(Group):
    """See `so`, `lorentz` and `lie`. It has no elements to list: `order` raises GroupError."""

    algebra = True

    def __init__(self, matrices: Sequence[Matrix], names: Sequence[str]) -> None:
        shapes = {m.shape for m in matrices}
        if len(shapes) != 1 or matrices[0].ndim != 2 or len(set(matrices[0].shape)) != 1:
            raise GroupError(f"a Lie algebra needs square matrices of one size, not {shapes}")
        if len(names) != len(matrices) or not all(np.isfinite(m).all() for m in matrices):
            raise GroupError(
                f"a Lie algebra needs finite matrices and a name for each, not {len(matrices)} "
                f"and {len(names)}"
            )
        self.generators = tuple(names)
        self.given = list(matrices)
        _ = self.constants

    @property
    def order(self) -> int:
        """Refused: the group is infinite."""
        raise GroupError(
            f"{self} generates an infinite group: it has no regular representation and no list "
            "of elements; use .vector(), .trivial(m), their sums and products"
        )

    def _rows(self) -> list[Places]:
        return [np.zeros(self.order, dtype=np.int64)]

    @property
    def relations(self) -> tuple[Relation, ...]:
        """None: what must hold are brackets, which `check` compares."""
        return ()

    @cached_property
    def constants(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[Xi, Xj] = Σ constants[i, j, k] Xk."""
        flat = np.stack([m.reshape(-1) for m in self.given], axis=1)
        if np.linalg.matrix_rank(flat) < len(self.given):
            raise GroupError("the generators of a Lie algebra must be linearly independent")
        r = len(self.given)
        found = np.zeros((r, r, r))
        for i, j in itertools.combinations(range(r), 2):
            bracket = self.given[i] @ self.given[j] - self.given[j] @ self.given[i]
            found[i, j], *_ = np.linalg.lstsq(flat, bracket.reshape(-1), rcond=None)
            away = float(np.abs(flat @ found[i, j] - bracket.reshape(-1)).max())
            if away > 1e-9 * max(1.0, float(np.abs(bracket).max())):
                raise GroupError(
                    f"the bracket [{self.generators[i]}, {self.generators[j]}] is outside the "
                    f"span of the generators, by {away:.3g}; add it to them"
                )
        return found

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Lie", torch.from_numpy(np.stack(self.given)), *self.generators)

    def __repr__(self) -> str:
        return f"Lie({', '.join(self.generators)})"

    def vector(self, m: int = 1) -> Representation:
        """m copies of the defining matrices."""
        return self._made(("vector", whole(m)))

    def _vector(self) -> list[Matrix]:
        return list(self.given)

    @staticmethod
    def of(stacked: Tensor, names: Sequence[str]) -> Lie:
        """From its `spec`."""
        return Lie([m.to(torch.float64).numpy() for m in stacked], names)
