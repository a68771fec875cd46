"""The estimators of linear coefficients, and the score test of a tie of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import resolved
from eadem.evidence import ScoreResult, score_statistic
from eadem.maps import LinearMap
from eadem.recipes._subspace_worlds import (
    COEFFICIENTS,
    GROUPS,
    INDEX,
    covariance,
)
from eadem.solvers import Solution, least_squares
from eadem.theory import variance_ratio

__all__ = ["LEVEL", "METHODS", "plan_of", "projected", "ratio_form", "solved", "verdict"]

METHODS = ("tie", "least squares", "ridge", "lasso")
LEVEL = 0.05


def plan_of(index: Tensor | None, coefficients: int) -> Any:
    """The plan of `nn.Linear(coefficients, 1)` with equal coefficients where index says so."""
    model = nn.Sequential(nn.Linear(coefficients, 1, bias=False, dtype=torch.float64))
    if index is not None:
        eadem.tie(model, "0.weight", via=eadem.Gather(index.unsqueeze(0)))
    return resolved(model)


def solved(plan: LinearMap, x: Tensor, y: Tensor) -> Solution:
    """Least squares under a plan."""
    start = torch.zeros(plan.in_shape, dtype=torch.float64)
    return least_squares(plan, lambda w: y - x @ w.reshape(-1), start)


def verdict(plan: LinearMap, found: Solution, observations: int) -> ScoreResult:
    """The score test of the tie at its fit; the errors' variance is estimated there."""
    assert found.information is not None
    variance = found.objective / observations
    return score_statistic(plan, found.gradient / variance, found.information / variance)


def projected(plan: LinearMap, x: Tensor, beta: Tensor) -> Tensor:
    """β on range(φ), along what is orthogonal to it in the metric xᵀx."""
    phi, metric = plan.dense(), x.T @ x
    return torch.mv(phi, torch.linalg.solve(phi.T @ metric @ phi, phi.T @ (metric @ beta)))


def ratio_form(n: int) -> float:
    """The mean variance of a coefficient under the tie over that without, from n observations.

    Both covariances are those of known inputs over degrees of freedom that the inverse Wishart
    law gives.
    """
    free = torch.linalg.inv(covariance()).diagonal()
    ratio = variance_ratio(plan_of(INDEX, COEFFICIENTS), covariance()).reshape(-1)
    form = float((ratio * free).sum() / free.sum())
    return form * (n - COEFFICIENTS - 1) / (n - GROUPS - 1)
