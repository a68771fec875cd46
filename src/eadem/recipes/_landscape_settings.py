"""Settings of a network's sites: units exchanged, and how the outputs change with them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import resolved
from eadem.maps.base import LinearMap
from eadem.recipes._digits import Digits
from eadem.recipes._training import seeded

__all__ = [
    "ACTIVATIONS",
    "CLASSES",
    "DRAWN",
    "FILTERS",
    "PLACES",
    "SIDE",
    "STEPS",
    "TAPS",
    "UNITS",
    "Setting",
    "away",
    "build",
    "exchanged",
    "exchanges",
    "jacobian",
    "orders",
    "setting",
    "way",
]

SIDE, TAPS, FILTERS, CLASSES = 6, 3, 3, 10
PLACES = (SIDE - TAPS + 1) ** 2
UNITS = FILTERS * PLACES
DRAWN, STEPS = 200, 20
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
