"""Bias and variance of a tie that is right, nearly right, and wrong.

Signals are those of MNIST-1D (package mnist1d, Apache-2.0; Greydanus and Kobak, ICML 2024):
synthetic, 40 samples, drawn by its `make_dataset` at the published settings.

*Linear part.* A stock `nn.Linear(40, 36)` is to learn y = W x + noise (standard deviation
0.5; the power of W x is 1) by least squares from n signals, under three plans: *connected*,
1,440 free values; *local*, a window of 5 at each of 36 places, 180; *shared*, one window, 5.
The world decides whether the last tie is right: W is one filter at all places (*right*); a
filter that drifts along the signal (*approximate*: a sine of 0.25 of its size); or the right
world with the pixels of x shuffled (*wrong*). Training sets and noise are drawn anew in each
of 200 repeats (20 when quick); the error W̃ − W, in mean squared output over all signals, is
split into bias² and variance without bias of its own (U-statistics), with jackknife standard
errors. The closed form is that of `eadem.theory.observations_needed`. The evidence is the score
test of the shared filter, given the windows, in every world.

*Networks.* The three convolutions of the MNIST-1D benchmark, shared (stock `nn.Conv1d`), and
untied from the same start (`eadem.nn.LocallyConnected1d.from_conv`); an MLP and a logistic
regression stand beside them. Each is trained on 4 disjoint training sets of 4,000 signals,
pixels in order and shuffled, and the two on 1,000 of each too; equal data and steps for all.
Their probabilities' squared error (Brier) is split in the same way; its bias² holds what no
model can know. Published test accuracies in %: logistic 32, MLP 68, CNN 94; shuffled MLP 68,
CNN 56.

Claim C09, in five parts. Steps and rate of the networks, noise and drift were settled at seed
77. Expected run time: 5 minutes on two cores, 20 s when quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import free_vector, resolved
from eadem.evidence import ScoreResult, score_statistic
from eadem.recipes import Context
from eadem.recipes._bias_variance_claims import (
    linear_claims,
    network_claim,
)
from eadem.recipes._bias_variance_nets import trained_all
from eadem.recipes._bias_variance_page import report, table
from eadem.recipes._bias_variance_worlds import (
    FEATURES,
    PLACES,
    TAPS,
    WIDTH,
    WORLDS,
    World,
    closed_form,
    drawn,
    fitted,
    signals,
    world,
)
from eadem.recipes._data import Package
from eadem.recipes._decomposition import Split, decomposed
from eadem.recipes._training import one_thread_count
from eadem.report.page import ready

__all__ = ["World", "fitted", "plans", "report", "run", "signals", "verdict", "world"]

SIZES, QUICK_SIZES = (60, 120, 240, 480, 960), (60, 240, 960)
EVIDENCE, LEVEL = 240, 0.05
PACKAGE = Package("mnist1d", "≥0.0.2", "mnist1d", "Apache-2.0", 'install "eadem[recipes]"')


def plans() -> dict[str, Tensor | None]:
    """φ of every plan of `nn.Linear(40, 36)`, (36, 40, free); None where all is free."""
    found: dict[str, Tensor | None] = {"connected": None}
    for name, map_ in (("local", eadem.Local1d), ("shared", eadem.Toeplitz1d)):
        model = nn.Sequential(nn.Linear(WIDTH, PLACES, bias=False, dtype=torch.float64))
        eadem.tie(model, "0.weight", via=map_(WIDTH, TAPS))
        dense = resolved(model).linearize(free_vector(model)).dense()
        found[name] = dense.reshape(PLACES, WIDTH, -1)
    return found


def verdict(x: Tensor, y: Tensor, shared: Tensor) -> ScoreResult:
    """The score test of one window for all places, given that each reads a window."""
    windows = x.unfold(1, TAPS, 1)  # (n, places, taps)
    residual = y - x @ shared.T
    variance = residual.square().mean()
    gradient = torch.einsum("np,npk->pk", residual, windows) / variance
    blocks = torch.einsum("npj,npk->pjk", windows, windows) / variance
    tie = eadem.Gather(torch.arange(TAPS).repeat(PLACES)).bind((PLACES * TAPS,))
    return score_statistic(tie, gradient.reshape(-1), torch.block_diag(*blocks))


def linear(context: Context, x: Tensor, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """The decomposition by world, plan and size, and what the score test says."""
    splits: dict[str, dict[str, dict[int, Split]]] = {}
    tests, optima, truths = {}, {}, {}
    phis = plans()
    for number, name in enumerate(context.progress(WORLDS, "worlds")):
        at = world(name, x, context.seed)
        root, truths[name] = at.root / math.sqrt(PLACES), at.truth
        splits[name] = {p: {} for p in phis}
        for n in context.progress(sizes, "sizes"):
            errors: dict[str, list[Tensor]] = {p: [] for p in phis}
            rejected, shared = 0, []
            for repeat in context.progress(range(repeats), "training sets"):
                seed = ((context.seed * 10 + number) * 1000 + repeat) * 1000 + n
                data = drawn(at, n, torch.Generator().manual_seed(seed))
                for plan, phi in phis.items():
                    found = fitted(phi, *data)
                    errors[plan].append(((found - at.truth) @ root).reshape(-1))
                shared.append(found[0, :TAPS])
                if n == EVIDENCE:
                    rejected += verdict(*data, found).pvalue < LEVEL
            for plan, each in errors.items():
                splits[name][plan][n] = decomposed(torch.stack(each))
            if n == EVIDENCE:
                tests[name] = rejected / repeats
        optima[name] = torch.stack(shared).mean(0)
    rows = torch.arange(PLACES)
    every = truths["approximate"].unfold(1, TAPS, 1)[rows, rows]
    said = {"splits": splits, "rejected": tests, "truths": list(truths.values())}
    return said | {"filters": every, "shared": optima}


def run(context: Context) -> None:
    """Both parts; leaves metrics.json and report.html."""
    ready()
    with one_thread_count():
        x, labels = signals(3000 if context.quick else 17_000, context.seed + 42)
        sizes, repeats = (QUICK_SIZES, 20) if context.quick else (SIZES, 200)
        found = linear(context, x, sizes, repeats)
        order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(context.seed))
        networks = trained_all(context, x.float(), labels, order)
    splits: Mapping[str, Any] = found["splits"]
    linear_claims(context, splits, found)
    network_claim(context, networks)
    plain = {
        w: {p: {n: asdict(s) for n, s in at.items()} for p, at in of.items()}
        for w, of in splits.items()
    }
    forms = {plan: {n: closed_form(plan, n) for n in sizes} for plan in FEATURES}
    own = {"repeats": repeats, "evidence": EVIDENCE, "closed_form": forms}
    shown = {"signals": x[:3], "labels": labels[:3], "order": order}
    context.write_metrics(found | own | {"splits": plain, "networks": networks, "data": shown})
    report(context.out)
    context.say(table(context.out))
