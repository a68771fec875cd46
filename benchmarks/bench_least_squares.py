"""Least squares of data sets that share, against lmfit and scipy.

N Gaussians of 200 points each have a height and a centre of their own and one width for all;
every fit starts from the same values and ends at the same χ² (checked). lmfit takes the
constraint as `expr`, and scipy an analytic Jacobian written by hand; both with their default
settings and dense. Eadem's time is that of `eadem.least_squares` on a model that is built and
tied; building and tying is a row of its own. The row "growth" is the exponent of its time over
N. NIST's problems: how many of 27, from each start, do not agree to six certified digits
(Lanczos1's standard deviations excepted, whose residuals are rounding noise): MINPACK in scipy
with the Jacobian by torch, lmfit with its finite differences; tolerances at their tightest.

`python benchmarks/bench_least_squares.py [nist]` prints the table, or the counts, alone.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "solvers"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import nist

import eadem
from eadem.fits import callables
from timing import Ratio, Row, row, table

POINTS, SIGMA, WIDTH = 200, 0.1, 1.3
START = {"height": 3.0, "centre": 0.1, "width": 1.0}
#: N at which peers are timed, and N over which the growth is measured.
PEERS, GROWTH = 60, (30, 100, 300, 1000, 3000)

Floats = np.ndarray[Any, Any]


class Gaussian(nn.Module):
    """One data set: a bell of its own height and centre."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y
        for name, value in START.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value).double()))

    def residual(self) -> Tensor:
        """(observed − bell)/σ."""
        at = (self.x - self.centre) / self.width
        return (self.y - self.height * torch.exp(-0.5 * at**2)) / SIGMA


def data(n: int) -> tuple[Tensor, Tensor]:
    """x (POINTS,) and y (n, POINTS)."""
    g = torch.Generator().manual_seed(n)
    x = torch.linspace(-5, 5, POINTS, dtype=torch.float64)
    heights = 3 + 4 * torch.rand(n, 1, generator=g, dtype=torch.float64)
    centres = 2 * torch.rand(n, 1, generator=g, dtype=torch.float64) - 1
    noise = SIGMA * torch.randn(n, POINTS, generator=g, dtype=torch.float64)
    return x, heights * torch.exp(-0.5 * ((x - centres) / WIDTH) ** 2) + noise


def joint(x: Tensor, y: Tensor) -> eadem.Joint:
    """The model, tied."""
    model = eadem.Joint({f"set{i}": Gaussian(x, row) for i, row in enumerate(y)})
    eadem.tie(model, "*.width")
    return model


def by_scipy(x: Floats, y: Floats) -> float:
    """χ² by scipy with its Jacobian by hand."""
    n = len(y)

    def parts(p: Floats) -> tuple[Floats, Floats, Floats]:
        height, centre, width = p[:n, None], p[n : 2 * n, None], p[-1]
        at = (x - centre) / width
        return at, np.exp(-0.5 * at**2), height

    def residual(p: Floats) -> Floats:
        _, bell, height = parts(p)
        found: Floats = ((y - height * bell) / SIGMA).ravel()
        return found

    def jacobian(p: Floats) -> Floats:
        at, bell, height = parts(p)
        found = np.zeros((n, len(x), 2 * n + 1))
        each = np.arange(n)
        found[each, :, each] = -bell / SIGMA
        found[each, :, n + each] = -height * bell * at / p[-1] / SIGMA
        found[:, :, -1] = -height * bell * at**2 / p[-1] / SIGMA
        return found.reshape(-1, 2 * n + 1)

    start = np.r_[np.full(n, START["height"]), np.full(n, START["centre"]), START["width"]]
    fit = scipy_least_squares(residual, start, jac=jacobian, method="lm")
    return float(2 * fit.cost)


def by_lmfit(lmfit: Any, x: Floats, y: Floats) -> float:
    """χ² by lmfit with every width an `expr` of the first."""
    parameters = lmfit.Parameters()
    for i in range(len(y)):
        parameters.add(f"height{i}", value=START["height"])
        parameters.add(f"centre{i}", value=START["centre"])
        if i:
            parameters.add(f"width{i}", expr="width0")
        else:
            parameters.add("width0", value=START["width"])

    def residual(p: Any) -> Floats:
        v = p.valuesdict()
        rows = [
            y[i]
            - v[f"height{i}"] * np.exp(-0.5 * ((x - v[f"centre{i}"]) / v[f"width{i}"]) ** 2)
            for i in range(len(y))
        ]
        return np.concatenate(rows) / SIGMA

    return float(lmfit.minimize(residual, parameters).chisqr)


def alternated(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[Ratio, float, float]:
    """The ratio of times, and both χ²; `ours` and `theirs` return (seconds, χ²)."""
    ratios, chi2 = [], (math.nan, math.nan)
    for _ in range(rounds):
        a, b = ours(), theirs()
        ratios.append(a[0] / b[0])
        chi2 = (a[1], b[1])
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)), *chi2


def timed(fn: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what the function gave."""
    start = time.perf_counter()
    found = fn()
    return time.perf_counter() - start, found


def fitted(n: int) -> tuple[float, float, float]:
    """Seconds to build, seconds to fit, and χ²."""
    x, y = data(n)
    start = time.perf_counter()
    model = joint(x, y)
    built = time.perf_counter() - start
    seconds, fit = timed(lambda: eadem.least_squares(model))
    assert fit.converged
    return built, seconds, fit.chi2


def peer(name: str) -> Any:
    """A package, or None where it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        return None


def rows(rounds: int = 5) -> list[Row]:
    """The benchmark's lines."""
    fitted(8)
    x, y = data(PEERS)
    xs, ys = x.numpy(), y.numpy()
    found = []

    def ours() -> tuple[float, float]:
        return fitted(PEERS)[1:]

    lmfit = peer("lmfit")
    what = f"{PEERS} Gaussians, shared width"
    cases: list[tuple[str, Any, float]] = [
        ("scipy, analytic Jacobian", lambda: timed(lambda: by_scipy(xs, ys)), 1 / 5)
    ]
    if lmfit is None:
        found.append(Row(what, "lmfit, not installed", None, limit=1 / 30))
    else:
        cases.append(("lmfit", lambda: timed(lambda: by_lmfit(lmfit, xs, ys)), 1 / 30))
    for name, theirs, limit in cases:
        ratio, mine, other = alternated(ours, theirs, rounds)
        assert abs(mine / other - 1) < 1e-6, f"{name} ends at χ² {other}, Eadem at {mine}"
        found.append(row(what, name, ratio, limit))
    times = {n: [fitted(n)[:2] for _ in range(3 if n < 1000 else 2)] for n in GROWTH}
    best = {n: min(fit for _, fit in each) for n, each in times.items()}
    slope = np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)[0]
    span = f"N = {GROWTH[0]} … {GROWTH[-1]:,}"
    found.append(
        Row(f"growth of the time, {span}", "N to this power", float(slope), limit=1.15)
    )
    for n in (1000, 3000):
        fits = [fit for _, fit in times[n]]
        limit = 3.0 if n == 1000 else None
        found.append(
            Row(
                f"{n:,} Gaussians: the fit", "time", min(fits), min(fits), max(fits), limit, "s"
            )
        )
        builds = [b for b, _ in times[n]]
        name = f"{n:,} Gaussians: building and tying the model"
        found.append(Row(name, "time", min(builds), min(builds), max(builds), None, "s"))
    return found + counts()


class Curve(nn.Module):
    """A NIST problem."""

    def __init__(self, problem: nist.Dataset, start: int) -> None:
        super().__init__()
        self.x, self.y = torch.tensor(problem.x), torch.tensor(problem.y)
        self.curve = nist.MODELS[problem.name]
        self.b = nn.Parameter(torch.tensor(problem.starts[start], dtype=torch.float64))

    def residual(self) -> Tensor:
        """observed − model."""
        found: Tensor = self.y - self.curve(torch, self.x, self.b)
        return found


def nist_eadem(problem: nist.Dataset, start: int) -> tuple[Floats, Floats]:
    """Values and standard deviations."""
    fit = eadem.least_squares(Curve(problem, start))
    return fit.values["b"].numpy(), fit.stderr["b"].numpy()


def nist_scipy(problem: nist.Dataset, start: int) -> tuple[Floats, Floats]:
    """By MINPACK in scipy, with the Jacobian by torch."""
    given = callables(Curve(problem, start))
    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 20_000}
    fit = scipy_least_squares(
        given.residual, given.start, jac=given.jacobian, method="lm", x_scale="jac", **tight
    )
    j = fit.jac
    variance = 2 * fit.cost / (j.shape[0] - j.shape[1])
    scale = np.linalg.norm(j, axis=0)
    inverse = np.linalg.pinv(j / scale)
    return fit.x, np.sqrt(variance * (inverse**2).sum(1)) / scale


def nist_lmfit(problem: nist.Dataset, start: int) -> tuple[Floats, Floats]:
    """By lmfit's leastsq with finite differences, as its own NIST test has it."""
    lmfit = peer("lmfit")
    parameters = lmfit.Parameters()
    for i, value in enumerate(problem.starts[start]):
        parameters.add(f"b{i}", value=value)
    model = nist.MODELS[problem.name]

    def residual(p: Any) -> Floats:
        found: Floats = problem.y - model(
            np, problem.x, [p[f"b{i}"].value for i in range(len(p))]
        )
        return found

    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 20_000}
    fit = lmfit.minimize(residual, parameters, method="leastsq", nan_policy="omit", **tight)
    names = list(parameters)
    errors = [fit.params[k].stderr or math.nan for k in names]
    return np.array([fit.params[k].value for k in names]), np.array(errors)


def missed(
    by: Callable[[nist.Dataset, int], tuple[Floats, Floats]], start: int
) -> tuple[int, int]:
    """The problems whose values do not all agree to six certified digits; and those whose
    values or standard deviations do not.
    """
    values_missed = both_missed = 0
    for name in nist.MODELS:
        problem = nist.read(name)
        values = deviations = np.full(len(problem.values), np.nan)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError, FloatingPointError, np.linalg.LinAlgError):
                values, deviations = by(problem, start)
        good = nist.digits(values, problem.values) >= 6
        values_missed += not good
        if name != "Lanczos1":
            good = good and nist.digits(deviations, problem.deviations) >= 6
        both_missed += not good
    return values_missed, both_missed


def counts() -> list[Row]:
    """How many of NIST's problems each misses from each start."""
    found = []
    methods = {"Eadem": nist_eadem, "scipy": nist_scipy}
    if peer("lmfit") is not None:
        methods["lmfit, finite differences"] = nist_lmfit
    for name, by in methods.items():
        for start in (0, 1):
            values, both = missed(by, start)
            limit = (2.0, 0.0)[start] if name == "Eadem" else None
            what = f"NIST, start {start + 1}: of 27, without 6 digits in every"
            found.append(Row(f"{what} value", name, float(values), limit=limit))
            what += " value and standard deviation"
            found.append(Row(what, name, float(both), limit=limit))
    return found


if __name__ == "__main__":
    print(table(counts() if sys.argv[1:] == ["nist"] else rows()))
