"""Profile-likelihood intervals: how far a value can go before the fit is significantly worse.

Where the model is curved, an interval of ±2 standard errors is not one of 95 %. The profile
refits everything else at each value (Bates & Watts, Nonlinear Regression Analysis, 1988, §6.1):
with known errors the interval is where χ² − χ²_min is below the quantile of χ²(1), otherwise
where (χ² − χ²_min)/s² is below that of F(1, dof).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.stats import chi2 as chi2_law
from scipy.stats import f as f_law
from torch import Tensor

from eadem.bind import site_coordinates
from eadem.errors import Unsupported
from eadem.fits._setup import Setup
from eadem.solvers.blocks import Point, Problem
from eadem.solvers.levenberg import Found, Settings, minimise
from eadem.solvers.solution import SolverError

__all__ = ["Interval", "profile"]


@dataclass(frozen=True)
class Interval:
    """low ≤ value ≤ high at `level`; an end that the data do not set is infinite."""

    site: str
    level: float
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.site} = {self.value:.6g} in [{self.low:.6g}, {self.high:.6g}]"


def profile(
    made: Setup,
    found: Found,
    settings: Settings,
    site: str,
    level: float,
    levels: tuple[float, float, int | None],
) -> Interval:
    """The interval of one value at a site, which must be one free value, scaled and shifted or
    through an elementwise map. `levels`: the cost at the fit, the variance, and dof or None.

    Raises Unsupported for another kind of site, SolverError for a level that is no probability
    and where the profile finds a better fit than the one given.
    """
    if not 0 < level < 1:
        raise SolverError(f"level={level!r}; it is a probability between 0 and 1, as 0.95")
    where = site_coordinates(made.model, site)
    if where.numel() != 1:
        raise Unsupported(
            f"{site!r} holds {where.numel()} values; profile one at a time: '{site}[0]'"
        )
    place = int(where)
    rows, columns, slopes = made.arrays.entries(found.point.theta)
    mine = (rows == place).nonzero().reshape(-1)
    if mine.numel() != 1 or bool(made.frozen[columns[mine]].any()):
        raise Unsupported(
            f"{site!r} depends on {mine.numel()} free values, or on one that is frozen; a "
            "profile moves a site that is one trained free value, scaled or through a map"
        )
    walk = _Walk(made, found, settings, int(columns[mine]), levels, level)
    ends = []
    for sign in (-1.0, 1.0):
        theta = walk.end(sign)
        if math.isinf(theta):
            up = theta * float(slopes[mine]) > 0
            ends.append(math.inf if up else -math.inf)
            continue
        moved = found.point.theta.clone()
        moved[walk.k] = theta
        ends.append(float(made.arrays.expand(moved)[place]))
    low, high = sorted(ends)
    return Interval(site, level, float(found.point.values[place]), low, high)


class _Walk:
    """The profile of free value k: τ(θ_k) = ±√((χ²(θ_k) − χ²_min)/s²), nearly a line."""

    def __init__(
        self,
        made: Setup,
        found: Found,
        settings: Settings,
        k: int,
        levels: tuple[float, float, int | None],
        level: float,
    ) -> None:
        self.made, self.found, self.k = made, found, k
        self.cost, self.variance, dof = levels
        law = chi2_law.ppf(level, 1) if dof is None else f_law.ppf(level, 1, dof)
        self.target = math.sqrt(float(law))
        held = made.frozen.clone()
        held[k] = True
        problem = made.problem
        batches = list({id(p.batch): p.batch for p in problem.pieces}.values())
        self.problem = Problem(
            made.arrays,
            batches,
            found.point.theta,
            loss=problem.loss,
            held=held,
            group=problem.group,
        )
        self.settings = replace(settings, progress=None)
        arrow = found.arrow
        unit = torch.zeros(arrow.n, dtype=torch.float64)
        unit[k] = 1.0
        norms = torch.where(arrow.norms > 0, arrow.norms, 1.0)
        spread = arrow.factor(1e-10 * norms, made.frozen).solve(unit)
        #: how the others move with θ_k, to first order
        self.along = spread / spread[k]
        self.error = math.sqrt(max(float(spread[k]), 1e-300) * self.variance)

    def end(self, sign: float) -> float:
        """θ_k where |τ| is the target, by the rule of false position (Illinois)."""
        start = float(self.found.point.theta[self.k])
        limit = self.settings.lower if sign < 0 else self.settings.upper
        bound = sign * math.inf if limit is None else float(limit[self.k])
        inner, low = start, -self.target
        warm: Tensor = self.found.point.theta
        step = sign * self.target * self.error
        outer, high = start, math.nan
        for _ in range(12):
            outer = inner + step
            if abs(outer - start) >= abs(bound - start):
                outer = bound
            point, height = self._height(outer, warm)
            high = height - self.target
            if high >= 0 or not math.isfinite(high):
                break
            if outer == bound:
                return bound
            inner, low, warm = outer, high, point.theta
            step *= 2.0
        else:
            return sign * math.inf
        for _ in range(40):
            if not math.isfinite(high):
                middle = (inner + outer) / 2
            else:
                middle = inner - low * (outer - inner) / (high - low)
            point, height = self._height(middle, warm)
            value = height - self.target
            if abs(value) < 1e-6 * self.target or abs(outer - inner) < 1e-9 * self.error:
                return middle
            if value < 0:
                inner, low, warm = middle, value, point.theta
                high = high / 2 if math.isfinite(high) else high
            else:
                outer, high = middle, value
                low = low / 2
        return (inner + outer) / 2

    def _height(self, value: float, warm: Tensor) -> tuple[Point, float]:
        """The best point at θ_k = value, and |τ| there."""
        theta = warm + (value - float(warm[self.k])) * self.along
        theta = torch.where(self.made.frozen, warm, theta)
        theta[self.k] = value
        if self.settings.lower is not None:
            theta = torch.maximum(theta, self.settings.lower)
        if self.settings.upper is not None:
            theta = torch.minimum(theta, self.settings.upper)
        first = self.problem.at(theta)
        if first.bad is not None:
            plain = warm.clone()
            plain[self.k] = value
            first = self.problem.at(plain)
            if first.bad is not None:
                return first, math.inf
        self.problem.first = first
        found = minimise(self.problem, self.settings).point
        excess = (found.cost - self.cost) / self.variance
        if excess < -1e-4:
            raise SolverError(
                f"with free value {self.k} at {value:.6g} the fit is better than the one to be "
                f"profiled (χ² {found.cost:.9g} against {self.cost:.9g}): fit again from there"
            )
        return found, math.sqrt(max(excess, 0.0))
