"""How many kinds of year does the earth have? Known maxima, and ties that a series judges.

The number of earthquakes of magnitude 7 or greater in each year from 1900 to 2006 is the series
that Zucchini & MacDonald (Hidden Markov Models for Time Series, 2009) introduce Poisson hidden
Markov models with; its counts come with this package. Quiet and busy years are states with
rates of their own, and the years follow each other as a Markov chain. The greatest
log-likelihoods with one, two and three states are known: −391.919, −341.879 and −328.527, the
last with rates 13.13, 19.71 and 29.71. `PoissonHMM` is fitted from several random starts with
each number of states.

Then two beliefs about the model of two states are declared as ties, fitted by EM, and judged
at the tied fit, before anything else is fitted: that quiet years turn busy as often as busy
years turn quiet (`transmat[0, 1]` tied to `transmat[1, 0]`), and that a busy year has three
times the rate of a quiet one (`lambdas[1]` is 3 × `lambdas[0]`). The state of the first year is
held, since one series cannot tell its probability.

Claim C21, its part on a known series. Settled before any run of it: the three log-likelihoods
are within 0.001 of the known ones and the rates of three states within 0.01; no EM step of any
fit lowers the log-likelihood beyond rounding; free values are counted with ties and row sums
taken off; and at the 1 % level the score test and the likelihood ratio come to the same verdict
on each tie, of which the second is rejected.

Expected run time: 30 s, 15 s when quick.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

import eadem
from eadem.hmm import PoissonHMM
from eadem.recipes import Context
from eadem.recipes._earthquakes_page import report, table
from eadem.recipes._restarts import best, counts, lowest_step
from eadem.report.page import ready

__all__ = ["counts", "report", "run"]

#: The greatest log-likelihood by number of states, and the rates of three.
KNOWN = {1: -391.919, 2: -341.879, 3: -328.527}
RATES = (13.13, 19.71, 29.71)
LEVEL = 0.01
#: Each belief: its name, the sites and the map of each.
BELIEFS: dict[str, dict[str, Any]] = {
    "as often busy as quiet again": dict.fromkeys(
        ("transmat[0, 1]", "transmat[1, 0]"), eadem.Same()
    ),
    "busy is three times quiet": {"lambdas[0]": eadem.Same(), "lambdas[1]": eadem.Scale(3.0)},
}


def density(hmm: PoissonHMM, series: Tensor) -> Tensor:
    """The log density of the series, (1,)."""
    return hmm.log_density(series)


def judged(free: PoissonHMM, belief: dict[str, Any]) -> tuple[PoissonHMM, dict[str, Any]]:
    """The fit under a belief, and what the data say of it."""
    hmm, series = copy.deepcopy(free), torch.from_numpy(counts())
    hmm.set_params(init_params="", params="tl", n_init=1)
    wide = copy.deepcopy(hmm)
    for model in (hmm, wide):
        model.startprob.requires_grad_(False)
    eadem.tie(hmm, belief, start="mean")
    hmm.fit(counts())
    wide.fit(counts())
    score = eadem.score_test(hmm, density, [series])
    ratio = 2 * (wide.score(counts()) - hmm.score(counts()))
    return hmm, {
        "log_likelihood": hmm.score(counts()),
        "free": eadem.counts(hmm).free,
        "score": score.statistic,
        "df": score.df,
        "score_p": score.pvalue,
        "ratio": ratio,
        "ratio_p": float(chi2.sf(ratio, score.df)),
        "rates": hmm.lambdas_[:, 0].tolist(),
        "transmat": hmm.transmat_.tolist(),
    }


def run(context: Context) -> None:
    """Fit, judge, and leave metrics.json and report.html."""
    ready()
    starts = 10 if context.quick else 30
    with context.stage("fits", len(KNOWN) + len(BELIEFS)) as advance:
        fits: dict[int, PoissonHMM] = {}
        for states in KNOWN:
            fits[states] = best(states, starts, context.seed)
            advance(1)
        verdicts, models = {}, list(fits.values())
        for name, belief in BELIEFS.items():
            hmm, verdicts[name] = judged(fits[2], belief)
            models.append(hmm)
            advance(1)
    X = counts()
    found = [
        {
            "states": k,
            "log_likelihood": hmm.score(X),
            "known": KNOWN[k],
            "free": eadem.counts(hmm).free,
            "aic": hmm.aic(X),
            "bic": hmm.bic(X),
            "rates": hmm.lambdas_[:, 0].tolist(),
            "history": list(hmm.monitor_.history),
            "decoded": hmm.lambdas_[hmm.predict(X), 0].tolist(),
        }
        for k, hmm in fits.items()
    ]
    worst = min(lowest_step(hmm) for hmm in models)
    _claim(context, found, verdicts, worst)
    context.write_metrics(
        {"counts": X[:, 0].tolist(), "fits": found, "beliefs": verdicts, "lowest_step": worst}
    )
    report(context.out)
    context.say(table(found))


def _claim(
    context: Context, found: list[dict[str, Any]], verdicts: dict[str, Any], worst: float
) -> None:
    off = max(abs(f["log_likelihood"] - f["known"]) for f in found)
    rates = max(abs(a - b) for a, b in zip(found[-1]["rates"], RATES, strict=True))
    free = [f["free"] for f in found] + [v["free"] for v in verdicts.values()]
    rejected = [(v["score_p"] < LEVEL, v["ratio_p"] < LEVEL) for v in verdicts.values()]
    alike = all(a == b for a, b in rejected)
    context.claim(
        "C21",
        "Hidden Markov models with tied parts: EM under ties never lowers the likelihood, and "
        "reaches the known maxima of a known series.",
        "log-likelihoods within 0.001 of −391.919, −341.879, −328.527, rates of three states "
        "within 0.01; no EM step falls beyond rounding; 1, 5, 11 free values, one fewer under "
        "a tie; score test and likelihood ratio agree at 1 %, and reject a threefold rate",
        {"off": "≤ 0.001", "rates": "≤ 0.01", "lowest step": "≥ −1e-12", "agree": "True"},
        {"off": off, "rates": rates, "lowest step": worst, "free": free, "agree": alike},
        off <= 1e-3
        and rates <= 1e-2
        and worst >= -1e-12
        and free == [1, 5, 11, 4, 4]
        and alike
        and rejected[1][0],
    )
