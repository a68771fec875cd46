"""Equal coefficients: a tie beside least squares, ridge and lasso.

One linear problem, y = xᵀβ + noise, with 30 coefficients and correlated Gaussian inputs
(correlation 0.5 between neighbours, falling off), noise and signal of equal power. Four
estimators see the same observations:

- *tie*: `eadem.tie` on a stock `nn.Linear(30, 1)`, five groups of six equal coefficients;
- *least squares* without a constraint;
- *ridge* and *lasso*, penalty by cross-validation (scikit-learn: RidgeCV, leave one out;
  LassoCV, five folds), without intercepts.

The tie takes ℝ³⁰ to ℝ⁵ (`lift`) and back (φ); the penalties pull towards zero or towards
few coefficients and keep all thirty dimensions. Three worlds give each its due: β has equal
coefficients in the groups; β is sparse (four of 30); β is many small ones (normal). The error
is the mean squared error of the noiseless prediction, split into bias² and variance over 100
repeats (10 when quick) with jackknife standard errors. The closed forms: variance
features·σ²/(N − features − 1) (see `eadem.theory.observations_needed`), and for the
coefficients themselves `eadem.theory.variance_ratio`. The evidence is the tie's score test.

Real input beside it: scikit-learn's 1,797 digits of 8 × 8 pixels (UCI, CC BY 4.0), middle six
columns; is it an eight? The tie says that mirrored pixels weigh the same, 48 → 24. What comes
out is shown; no claim rests on it. Sizes, noise and the digit were settled at seed 77.

Claim C29. Equal for all: the data. Expected run time: 4 minutes, 20 s when quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eadem.recipes import Context
from eadem.recipes._decomposition import Split, decomposed
from eadem.recipes._subspace_claims import claims
from eadem.recipes._subspace_digits import plane, real
from eadem.recipes._subspace_estimators import (
    LEVEL,
    METHODS,
    plan_of,
    projected,
    ratio_form,
    solved,
    verdict,
)
from eadem.recipes._subspace_page import report, table
from eadem.recipes._subspace_worlds import (
    COEFFICIENTS,
    INDEX,
    REAL,
    REAL_REPEATS,
    WORLDS,
    covariance,
    penalized,
    truth,
)
from eadem.recipes._training import one_thread_count
from eadem.report.page import ready

__all__ = ["METHODS", "plan_of", "projected", "ratio_form", "report", "run", "truth", "verdict"]

SIZES, QUICK_SIZES = (45, 60, 120, 240, 480), (45, 240)


def planted(context: Context, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """The decomposition by world, method and size; how exact the projection is."""
    tied, free = plan_of(INDEX, COEFFICIENTS), plan_of(None, COEFFICIENTS)
    root = torch.linalg.cholesky(covariance())
    splits: dict[str, dict[str, dict[int, Split]]] = {}
    rejected: dict[str, dict[int, float]] = {w: {} for w in WORLDS}
    ratio, worst, zeros = {}, 0.0, 0
    for number, name in enumerate(context.progress(WORLDS, "worlds")):
        beta = truth(name, context.seed)
        splits[name] = {m: {} for m in METHODS}
        for n in context.progress(sizes, "sizes"):
            errors: dict[str, list[Tensor]] = {m: [] for m in METHODS}
            pvalues = []
            for repeat in context.progress(range(repeats), "repeats"):
                seed = ((context.seed * 10 + number) * 1000 + repeat) * 1000 + n
                generator = torch.Generator().manual_seed(seed)
                x = torch.randn(n, COEFFICIENTS, dtype=root.dtype, generator=generator) @ root.T
                y = x @ beta + torch.randn(n, dtype=root.dtype, generator=generator)
                fit, plain = solved(tied, x, y), solved(free, x, y)
                found = {"tie": fit.values, "least squares": plain.values, **penalized(x, y)}
                for method, values in found.items():
                    errors[method].append(values - beta)
                pvalues.append(verdict(tied, fit, n).pvalue)
                gap = projected(tied, x, plain.values) - fit.values
                worst = max(worst, float(gap.norm() / fit.values.norm()))
                zeros += int((found["lasso"] == 0).sum()) * (name == "equal")
            for method, each in errors.items():
                splits[name][method][n] = decomposed(torch.stack(each) @ root)
            rejected[name][n] = sum(p < LEVEL for p in pvalues) / repeats
            if name == "equal":
                both = [torch.stack(errors[m]).var(0).mean() for m in METHODS[:2]]
                ratio[n] = both[0] / both[1]
    return {
        "splits": splits,
        "rejected": rejected,
        "projection": worst,
        "zeros": zeros / (len(sizes) * repeats),
        "ratio": ratio,
    }


def run(context: Context) -> None:
    """All worlds, the digits and the picture; leaves metrics.json and report.html."""
    ready()
    sizes, repeats = (QUICK_SIZES, 10) if context.quick else (SIZES, 100)
    some, times = (REAL[::3], 3) if context.quick else (REAL, REAL_REPEATS)
    with one_thread_count():
        found = planted(context, sizes, repeats)
        seen = real(context, some, times)
    splits = found["splits"]
    tied = plan_of(INDEX, COEFFICIENTS)
    found["ratio_form"] = {n: ratio_form(n) for n in found["ratio"]}
    claims(context, splits, found)
    plain = {
        w: {m: {n: asdict(s) for n, s in at.items()} for m, at in of.items()}
        for w, of in splits.items()
    }
    phi = tied.dense()
    shown = {"phi": phi, "projector": phi @ torch.linalg.pinv(phi), "plane": plane(3)}
    context.write_metrics(found | shown | {"splits": plain, "digits": seen, "repeats": repeats})
    report(context.out)
    context.say(table(context.out))
