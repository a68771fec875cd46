"""What is asked of the linear part and of the networks of `eadem run bias-variance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eadem.recipes import Context
from eadem.recipes._bias_variance_nets import MODELS
from eadem.recipes._bias_variance_worlds import (
    FEATURES,
    WORLDS,
    closed_form,
)

__all__ = ["CLOSE", "ERRORS", "HELP", "HURT", "LITTLE", "linear_claims", "network_claim"]

#: Predicates: standard errors; relative error of the closed form; what "a little" is.
ERRORS, CLOSE, LITTLE, HELP, HURT = 4.0, 0.1, 0.05, 2.0, 5.0


def linear_claims(context: Context, splits: Mapping[str, Any], found: Any) -> None:
    """Claim C09, the linear part."""
    right, near, wrong = (splits[name] for name in WORLDS)
    least, *_, most = sizes = list(right["shared"])
    worst = max(abs(s.bias) / s.bias_error for s in right["shared"].values())
    cut = max(right["shared"][n].variance / right["local"][n].variance for n in sizes)
    forms = [(s, closed_form(plan, n)) for plan in FEATURES for n, s in right[plan].items()]
    off = max(
        abs(s.variance - form) / (CLOSE * form + ERRORS * s.variance_error) for s, form in forms
    )
    context.claim(
        "C09",
        "A right tie cuts variance at no bias.",
        f"bias² of the shared filter within {ERRORS:g} standard errors of zero at every size; "
        f"its variance ≤ 0.1 of the local layer's; every plan's no further from the closed "
        f"form features·σ²/(N − features − 1), N = n·uses, than {CLOSE:.0%} of it and "
        f"{ERRORS:g} standard errors (the largest share of that allowance is given)",
        {"standard errors": f"≤ {ERRORS:g}", "variance": "≤ 0.1", "closed form": "≤ 1"},
        {"standard errors": worst, "variance": cut, "closed form": off},
        worst <= ERRORS and cut <= 0.1 and off <= 1,
    )
    bias = near["shared"][most]
    gain = near["local"][least].total - near["shared"][least].total
    context.claim(
        "C09",
        "An approximate tie costs a little bias, and less than it saves where data are few.",
        f"approximate world: bias² of the shared filter above {ERRORS:g} standard errors and "
        f"≤ {LITTLE:g} of the signal's power, at {most} signals; its error below the "
        f"local layer's at {least}",
        {"bias²": f"≤ {LITTLE:g}", "gain": "> 0"},
        {"bias²": bias.bias, "standard error": bias.bias_error, "gain": gain},
        ERRORS * bias.bias_error < bias.bias <= LITTLE and gain > 0,
    )
    costs = {n: wrong["shared"][n].bias for n in sizes}
    saves = {n: wrong["connected"][n].variance - wrong["shared"][n].variance for n in sizes}
    context.claim(
        "C09",
        "A wrong tie costs more than it saves.",
        "shuffled pixels: bias² of the shared filter above the variance that it saves over the "
        "connected layer, which has no bias, at every size",
        "cost > saving",
        {"cost": costs, "saving": saves},
        all(costs[n] > saves[n] for n in sizes),
    )
    mean = found["filters"].mean(0)
    spread = (found["filters"] - mean).square().sum(1).mean().sqrt()
    apart = float((found["shared"]["approximate"] - mean).norm())
    context.claim(
        "C09",
        "A shared filter under an approximate tie is close to the average of the places' own "
        "optima.",
        f"distance of its mean (at {most} signals) from their average ≤ 1/4 of their root "
        "mean square distance from it",
        "≤ 0.25",
        apart / float(spread),
        apart <= float(spread) / 4,
    )


def network_claim(context: Context, networks: Mapping[str, Any]) -> None:
    """Claim C09, the networks."""
    mean = {
        w: {m: 100 * sum(at[m]["accuracy"]) / len(at[m]["accuracy"]) for m in MODELS}
        for w, at in networks["largest"].items()
    }
    gain = mean["right"]["shared"] - mean["right"]["local"]
    loss = mean["shuffled"]["local"] - mean["shuffled"]["shared"]
    right, wrong = (networks["largest"][how] for how in ("right", "shuffled"))
    spread = {m: right[m]["split"]["variance"] for m in ("shared", "local")}
    bias = {m: wrong[m]["split"]["bias"] for m in ("shared", "local")}
    context.claim(
        "C09",
        "Networks: sharing over places helps on signals in order, and hurts on shuffled ones.",
        "from the largest training sets: in order, mean test accuracy of the CNN ≥ its untied "
        f"twin's + {HELP:g} points, and its variance below; shuffled, accuracy ≤ the twin's "
        f"− {HURT:g} points, and bias² above",
        {"in order": f"≥ {HELP:g}", "shuffled": f"≥ {HURT:g}"},
        {"in order": gain, "variance": spread, "shuffled": loss, "bias²": bias},
        gain >= HELP
        and loss >= HURT
        and spread["shared"] < spread["local"]
        and bias["shared"] > bias["local"],
    )
