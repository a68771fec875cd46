"""What is asked of the four estimators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from eadem.recipes import Context
from eadem.recipes._subspace_estimators import METHODS, plan_of
from eadem.recipes._subspace_worlds import (
    COEFFICIENTS,
    GROUPS,
    INDEX,
    WORLDS,
)

__all__ = ["CLOSE", "ERRORS", "EXACT", "claims"]

ERRORS, CLOSE, EXACT = 4.0, 0.1, 1e-8


def claims(context: Context, splits: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Claim C29, in three parts."""
    tied = plan_of(INDEX, COEFFICIENTS)
    every = torch.eye(COEFFICIENTS, dtype=torch.float64).reshape(-1, *tied.out_shape)
    onto = torch.stack([tied.expand(tied.lift(e)).reshape(-1) for e in every])
    exact = max(found["projection"], float((onto @ onto - onto).abs().max()))
    rank = int(torch.linalg.matrix_rank(onto))
    context.claim(
        "C29",
        "Sharing maps many parameters onto a low-dimensional subspace: the tied fit is the "
        "unconstrained one, projected.",
        f"φφ⁺ is a projector of rank {GROUPS}, and in all repeats the tied fit is the "
        f"projection of least squares on range(φ) in the metric XᵀX, to {EXACT:g} relative",
        {"rank": GROUPS, "error": f"≤ {EXACT:g}"},
        {"rank": rank, "error": exact},
        rank == GROUPS and exact <= EXACT,
    )
    equal = splits["equal"]
    sizes = list(equal["tie"])
    bias = {m: [abs(s.bias) / s.bias_error for s in equal[m].values()] for m in METHODS}
    next_best = {
        n: min(equal[m][n].total for m in METHODS[1:]) / equal["tie"][n].total for n in sizes
    }
    off = max(
        abs(s.variance - form) / (CLOSE * form + ERRORS * s.variance_error)
        for method, k in zip(METHODS[:2], (GROUPS, COEFFICIENTS), strict=True)
        for n, s in equal[method].items()
        for form in (k / (n - k - 1),)
    )
    penalties = min(*bias["ridge"], *bias["lasso"])
    context.claim(
        "C29",
        "Under equal coefficients it differs from least squares without constraint, from a "
        "penalty and from selecting features.",
        f"at every size: bias² of the tie and of least squares within {ERRORS:g} standard "
        f"errors of zero, of ridge and lasso beyond; the tie's error the least of all; "
        f"variances of the first two off the closed form by at most {CLOSE:.0%} and "
        f"{ERRORS:g} standard errors (the largest share of that allowance is given)",
        {"unbiased": f"≤ {ERRORS:g}", "penalties": f"> {ERRORS:g}", "gain": "> 1"},
        {
            "unbiased": max(*bias["tie"], *bias["least squares"]),
            "penalties": penalties,
            "closed form": off,
            "gain": next_best,
        },
        max(*bias["tie"], *bias["least squares"]) <= ERRORS < penalties
        and off <= 1
        and min(next_best.values()) > 1,
    )
    most = sizes[-1]
    lost = {
        world: min(splits[world]["tie"][n].total / splits[world][m][n].total for n in sizes)
        for world, m in (("sparse", "lasso"), ("small", "ridge"))
    }
    rejected = {w: found["rejected"][w][most] for w in WORLDS}
    context.claim(
        "C29",
        "Each belief is worth what it is true: where it is wrong, the penalties do better, "
        "and the tie's score test says so.",
        "at every size, error of the tie over lasso's where β is sparse, and over ridge's "
        "where it is many small ones, > 1 (the least is given); the test rejects at 5 % in "
        f"≥ 95 % of repeats there and in ≤ 15 % where the tie is right, at {most} observations",
        {"error": "> 1", "rejected": "≤ 0.15, ≥ 0.95"},
        {"error": lost, "rejected": rejected},
        min(lost.values()) > 1
        and rejected["equal"] <= 0.15
        and min(rejected[w] for w in WORLDS[1:]) >= 0.95,
    )
