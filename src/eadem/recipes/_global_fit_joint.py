"""Joint fits of curves: ties taken in turn, and F and likelihood-ratio tests of them."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2 as chi2_law
from scipy.stats import f as f_law
from torch import nn

import eadem
from eadem.fits.fit import RankWarning
from eadem.recipes import RunError

__all__ = ["LEVEL", "Nested", "accepted", "at_values_of", "joined", "nested"]

LEVEL = 0.05


def joined(starts: Sequence[eadem.Joint], shared: Sequence[str]) -> eadem.Fit:
    """The joint fit with some parameters one for all curves, from the first start that leads
    to one.

    What the data do not determine under the ties is in the fit's notes.
    """
    for start in starts:
        joint = copy.deepcopy(start)
        for name in shared:
            eadem.tie(joint, f"*.{name}", start="mean")
        fit = _fitted(joint)
        if fit.converged:
            return fit
    raise RunError(f"no fit with {', '.join(shared)} shared converged: {fit.message}")


def _fitted(model: nn.Module) -> eadem.Fit:
    """A fit whose notes, and not a warning, say what the data do not determine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        return eadem.least_squares(model)


@dataclass(frozen=True)
class Nested:
    """A fit with shared parameters against separate ones: F(df, dof) and χ²(df)."""

    statistic: float
    df: int
    dof: int
    pvalue: float
    ratio_pvalue: float


def nested(tied: eadem.Fit, separate: eadem.Fit) -> Nested:
    """The F test and the likelihood ratio n·log(χ²_tied/χ²_separate), for one unknown σ.

    F is that of R's `anova` of two nls fits (Bates & Watts, 1988, ch. 3); degrees of freedom
    are those of the ties, whether or not the data determine every parameter under them.
    """
    free = eadem.counts(separate.model).free
    df, dof = free - eadem.counts(tied.model).free, separate.size - free
    statistic = (tied.chi2 - separate.chi2) / df / (separate.chi2 / dof)
    ratio = tied.size * math.log(tied.chi2 / separate.chi2)
    return Nested(
        statistic,
        df,
        dof,
        float(f_law.sf(statistic, df, dof)),
        float(chi2_law.sf(ratio, df)),
    )


def accepted(
    separate: eadem.Fit, pvalues: dict[str, float], starts: Sequence[eadem.Joint]
) -> tuple[list[str], eadem.Fit | None]:
    """Ties that the F test accepts alone and together, taken in the order of their own p."""
    shared: list[str] = []
    best = None
    alone = [n for n, p in pvalues.items() if p >= LEVEL]
    for name in sorted(alone, key=lambda n: -pvalues[n]):
        tried = joined(starts, [*shared, name])
        if nested(tried, separate).pvalue < LEVEL:
            break
        shared, best = [*shared, name], tried
    return shared, best


def at_values_of(joint: eadem.Joint, fit: eadem.Fit) -> eadem.Joint:
    """The same curves without ties, at the values of a fit."""
    found = copy.deepcopy(joint)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.copy_(fit.values[name])
    return found
