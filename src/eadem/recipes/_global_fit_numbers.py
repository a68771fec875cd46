"""What is read off the fits of a study: numbers for the page and for the claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import eadem
from eadem.recipes._global_fit_data import Curve, Study
from eadem.recipes._global_fit_joint import (
    nested,
)

__all__ = [
    "LINE",
    "lines",
    "precision",
    "precisions",
    "published",
    "serial",
    "tie",
    "unit",
    "values",
]

LINE = 80


def tie(separate: eadem.Fit, tied: eadem.Fit) -> dict[str, Any]:
    """What four tests say of one tie."""
    wide, score = nested(tied, separate), tied.score_test()
    return {
        "f": wide.statistic,
        "df": wide.df,
        "dof": wide.dof,
        "f_pvalue": wide.pvalue,
        "ratio_pvalue": wide.ratio_pvalue,
        "score": score.statistic,
        "score_pvalue": score.pvalue,
        "robust_pvalue": None if score.robust is None else score.robust.pvalue,
        "notes": [*tied.notes, *score.notes],
    }


def values(fit: eadem.Fit, blocks: dict[str, Curve], study: Study) -> dict[str, Any]:
    """[estimate, standard error] of every parameter of every curve, σ pooled."""
    return {
        name: {
            p: [float(fit.values[f"{name}.{p}"]), float(fit.stderr[f"{name}.{p}"])]
            for p in study.start
        }
        for name in blocks
    }


def lines(fit: eadem.Fit, blocks: dict[str, Curve], study: Study) -> dict[str, Any]:
    """The fitted curves on a grid, for the pictures."""
    found = {}
    assert isinstance(fit.model, eadem.Joint)
    for name, block in blocks.items():
        low, high = float(block.x.min()), float(block.x.max())
        if study.log_x:
            positive = block.x[block.x > 0]
            grid = torch.linspace(
                math.log(float(positive.min()) / 3), math.log(high), LINE
            ).exp()
        else:
            grid = low + (high - low) * torch.linspace(0, 1, LINE) ** 2
        curve = fit.model[name]
        assert isinstance(curve, Curve)
        with torch.no_grad():
            found[name] = {"x": grid, "y": curve.model(grid.double())}
    return found


def serial(fit: eadem.Fit) -> float:
    """The lag-one autocorrelation of the residuals within curves."""
    top = sum(float(r[1:] @ r[:-1]) for r in fit.residuals.values())
    return top / fit.chi2


def precision(
    name: str, best: eadem.Fit, separate: eadem.Fit, alone: dict[str, eadem.Fit]
) -> dict[str, float]:
    """The standard error of a shared parameter, and what it is against those of the curves."""
    sites = [f"{curve}.{name}" for curve in alone]
    pooled = [float(separate.stderr[s]) for s in sites]
    own = [float(fit.stderr[name]) for fit in alone.values()]
    error = float(best.stderr[sites[0]])
    return {
        "value": float(best.values[sites[0]]),
        "error": error,
        "ratio": error / min(pooled),
        "ratio_median": error / statistics.median(pooled),
        "ratio_own": error / min(own),
    }


def published(study: Study, alone: dict[str, eadem.Fit]) -> list[list[Any]]:
    """[curve, parameter, what, printed, found] of the numbers that R's documentation prints."""
    found = []
    for curve, parameters in study.published.items():
        for name, (value, error) in parameters.items():
            fit = alone[curve]
            found.append([curve, name, "estimate", value, float(fit.values[name])])
            found.append([curve, name, "standard error", error, float(fit.stderr[name])])
    return found


def unit(printed: str) -> float:
    """One unit of the last digit.

    >>> unit("6.947")
    0.001
    """
    return 10.0 ** -len(printed.partition(".")[2])


def precisions(study: dict[str, Any]) -> Sequence[tuple[str, dict[str, float]]]:
    return list(study.get("precision", {}).items())
