"""A model's residual and Jacobian for other people's solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eadem.errors import ShapeError
from eadem.fits._setup import setup
from eadem.solvers.blocks import Point
from eadem.solvers.losses import Loss

__all__ = ["Callables", "callables"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Callables:
    """`residual(x)` (m,) and `jacobian(x)` (m, n) at trained free values `x` (n,), in numpy;
    `start`: the model's. `sparse` is the Jacobian as a scipy CSR matrix.
    """

    start: Floats
    residual: Callable[[Floats], Floats]
    jacobian: Callable[[Floats], Floats]
    sparse: Callable[[Floats], Any]


def callables(model: nn.Module) -> Callables:
    """The residual of a tied model as a function of its free values, and J_W φ.

    Frozen parameters stay where they are and are left out of `x`; an `x` of another length
    raises ShapeError. The order of the residuals
    is that of batches of blocks, not of `Joint.residual()`.

    >>> class Line(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = nn.Parameter(torch.zeros(2).double())
    ...     def residual(self):
    ...         x = torch.arange(4.0).double()
    ...         return x**2 - self.w[0] - self.w[1] * x
    >>> from scipy.optimize import least_squares
    >>> line = callables(Line())
    >>> least_squares(line.residual, line.start, jac=line.jacobian).x.round(6)
    array([-1.,  3.])
    """
    made = setup(model, Loss())
    problem, free = made.problem, ~made.frozen
    place, start = torch.cumsum(free, 0) - 1, made.theta[free]

    def at(x: Floats) -> Point:
        given = torch.as_tensor(x, dtype=torch.float64)
        if given.shape != start.shape:
            raise ShapeError(
                f"x has shape {tuple(given.shape)}; the model has {len(start)} trained free "
                "values, flat, in the order of `start`"
            )
        return problem.at(made.theta.masked_scatter(free, given))

    def residual(x: Floats) -> Floats:
        parts = [r.reshape(-1) for r in at(x).residuals]
        return torch.cat(parts).numpy()

    def sparse(x: Floats) -> Any:
        from scipy.sparse import csr_matrix

        rows, columns, values, first = [], [], [], 0
        for p, jacobian in zip(problem.pieces, problem.jacobians(at(x)), strict=True):
            n, m, t = jacobian.shape
            row = first + torch.arange(n * m).reshape(n, m, 1).expand(n, m, t)
            columns_at = place[torch.cat([p.at_own, p.at_shared], 1)]
            rows.append(row.reshape(-1))
            columns.append(columns_at.unsqueeze(1).expand(n, m, t).reshape(-1))
            values.append(jacobian.reshape(-1))
            first += n * m
        entries = torch.cat(values).numpy()
        where = (torch.cat(rows).numpy(), torch.cat(columns).numpy())
        return csr_matrix((entries, where), (first, len(start)))

    def jacobian(x: Floats) -> Floats:
        found: Floats = sparse(x).toarray()
        return found

    return Callables(start.numpy(), residual, jacobian, sparse)
