"""Fits of pair HMMs, and the tests of their symmetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2

import eadem
from eadem.hmm import DNA, PairHMM
from eadem.recipes import Context
from eadem.recipes._pair_hmm_alignments import (
    Pairs,
)

__all__ = [
    "DRAWN",
    "DRAWN_QUICK",
    "DRAWS",
    "DRAWS_QUICK",
    "END",
    "Verdict",
    "fitted",
    "simulated",
    "verdicts",
]

DRAWS, DRAWS_QUICK = (60, 20), (3, 2)
DRAWN, DRAWN_QUICK, END = 120, 60, 1 / 40


def fitted(pairs: Pairs, symmetric: bool, start: PairHMM | None = None) -> PairHMM:
    """The fit of one model, from the values of another where one is given."""
    model = PairHMM(DNA, symmetric=symmetric, threads=1)
    if start is not None:
        with torch.no_grad():
            for name in ("match", "insert_x", "insert_y", "gap_open", "gap_extend", "end"):
                getattr(model, name).copy_(getattr(start, name).detach())
    return model.fit(pairs, n_iter=400, tol=1e-6)


@dataclass(frozen=True)
class Verdict:
    """One test of the symmetry."""

    statistic: float
    df: int
    pvalue: float


def verdicts(pairs: Pairs) -> dict[str, Any]:
    """The score and the likelihood-ratio test of all four ties."""
    tied = fitted(pairs, True)
    apart = fitted(pairs, False, tied)
    score = eadem.score_test(tied, PairHMM.log_density, [pairs])
    df = eadem.counts(apart).free - eadem.counts(tied).free
    ratio = 2 * (apart.score(pairs) - tied.score(pairs))
    found = {
        "score": Verdict(score.statistic, score.df, score.pvalue),
        "likelihood ratio": Verdict(ratio, df, float(chi2.sf(ratio, df))),
    }
    return {name: vars(v) for name, v in found.items()}


def simulated(context: Context, pairs: Pairs) -> dict[str, list[dict[str, Any]]]:
    """Verdicts on draws from the tied fit, and where x opens gaps three times as often as y."""
    truth = PairHMM(DNA, threads=1)
    with torch.no_grad():
        source = fitted(pairs, True)
        for name in ("match", "insert_x", "insert_y", "gap_open", "gap_extend"):
            getattr(truth, name).copy_(getattr(source, name).detach())
        truth.end.fill_(END)
    false = eadem.twin(truth)
    assert isinstance(false, PairHMM)
    with torch.no_grad():
        false.gap_open[0] = 3 * truth.gap_open[1]
    numbers = DRAWS_QUICK if context.quick else DRAWS
    drawn = DRAWN_QUICK if context.quick else DRAWN
    found: dict[str, list[dict[str, Any]]] = {"true": [], "false": []}
    with context.stage("draws", sum(numbers)) as advance:
        for k, (name, model, number) in enumerate(
            zip(found, (truth, false), numbers, strict=True)
        ):
            for draw in range(number):
                rng = np.random.default_rng([context.seed, k, draw])
                found[name].append(verdicts(model.sample(drawn, rng)[0]))
                advance(1)
    return found
