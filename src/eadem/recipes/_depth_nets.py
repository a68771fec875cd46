"""Classifiers whose hidden layers are tied over depth, or not, and how they are judged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.nn import Repeat
from eadem.recipes._digits import CLASSES, Digits, shrunk, split, stratified
from eadem.recipes._training import Advance, fit, seeded

__all__ = [
    "MODELS",
    "RATE",
    "WIDTH",
    "classifier",
    "digits",
    "equal_to_stock",
    "trained",
    "wide",
]

SIDE, WIDTH, DEPTH = 10, 24, 8
RATE = 2e-3
MODELS = ("deep, untied", "wide, tied", "narrow, tied")


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
