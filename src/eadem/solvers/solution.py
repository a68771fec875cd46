"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eadem.errors import EademError

__all__ = ["Solution", "SolverError"]


class SolverError(EademError, ValueError):
    """A solver cannot start here, or was given functions that contradict each other."""


@dataclass(frozen=True)
class Solution:
    """Free values found by a solver, and what a test of the tie needs at them.

    `theta` are the free values and `values` the sites' values at them, both flat.
    `objective` is what the solver improved (its docstring says which way) and `history` its
    value before the first iteration and after each. `gradient` is the gradient of the
    log-likelihood at the sites, before φᵀ pools it; `information` is the sites' information
    matrix where the solver has it at no extra cost, else None.
    """

    theta: Tensor
    values: Tensor
    objective: float
    history: tuple[float, ...]
    converged: bool
    message: str
    gradient: Tensor
    information: Tensor | None = None

    @property
    def iterations(self) -> int:
        """Number of iterations done."""
        return len(self.history) - 1
