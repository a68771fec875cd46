"""The networks of the study `bias-variance`: MNIST-1D, pixels in order and shuffled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.nn import LocallyConnected1d
from eadem.recipes import Context
from eadem.recipes._decomposition import decomposed
from eadem.recipes._digits import Digits
from eadem.recipes._training import Advance, concurrently, fit, seeded

__all__ = ["MODELS", "build", "trained_all"]

MODELS = ("shared", "local", "MLP", "logistic")
ORDERS = ("right", "shuffled")
CHANNELS, BATCH, RATE = 25, 100, 1e-2


@dataclass(frozen=True)
class Sizes:
    """Training signals, sets of them, test signals and steps."""

    signals: tuple[int, ...]
    sets: int
    test: int
    steps: int


FULL = Sizes((1000, 4000), sets=4, test=1000, steps=1200)
QUICK = Sizes((800,), sets=3, test=600, steps=80)


def build(name: str, seed: int) -> nn.Sequential:
    """A model before training; `local` starts as the function of `shared`."""
    with seeded(seed):
        if name == "logistic":
            return nn.Sequential(nn.Linear(40, 10))
        if name == "MLP":
            hidden = (nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
            return nn.Sequential(*hidden, nn.Linear(256, 10))
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
        size, inputs, sizes = 40, 1, [40]
        for kernel in (5, 3, 3):
            conv = nn.Conv1d(inputs, CHANNELS, kernel, stride=2, padding=1)
            layers += [conv, nn.ReLU()]
            size, inputs = (size + 2 - kernel) // 2 + 1, CHANNELS
            sizes.append(size)
        layers += [nn.Flatten(), nn.Linear(CHANNELS * size, 10)]
        if name == "local":
            for place, reads in zip((1, 3, 5), sizes, strict=False):
                layers[place] = LocallyConnected1d.from_conv(layers[place], reads)
        return nn.Sequential(*layers)


def _trained(
    name: str, seed: int, train: Digits, test: Digits, steps: int, advance: Advance
) -> tuple[float, Tensor]:
    """Test accuracy, and the error of the probabilities (test · 10,), by root of test."""
    model = build(name, seed)
    epochs = steps * BATCH // len(train)
    done = fit(
        model,
        train,
        test,
        epochs=epochs,
        seed=seed,
        batch=BATCH,
        lr=RATE,
        test_every=epochs,
        advance=advance,
    )
    with torch.no_grad():
        found = model(test.images).softmax(1) - nn.functional.one_hot(test.labels, 10)
    return done.accuracy, found.reshape(-1).double() / len(test) ** 0.5


def trained_all(context: Context, x: Tensor, y: Tensor, order: Tensor) -> dict[str, Any]:
    """Accuracies and bias–variance splits by order of pixels, model and size."""
    sizes = QUICK if context.quick else FULL
    largest = max(sizes.signals)
    jobs = [
        (how, name, n, s)
        for n in sizes.signals
        for how in ORDERS
        for name in (MODELS if n == largest else MODELS[:2])
        for s in range(sizes.sets)
    ]

    def work(how: str, name: str, n: int, s: int) -> Any:
        seen = Digits(x[:, order] if how == "shuffled" else x, y)
        first = sizes.test + s * largest
        train, test = seen[torch.arange(first, first + n)], seen[torch.arange(sizes.test)]
        seed = 1000 * context.seed + s
        return partial(_trained, name, seed, train, test, sizes.steps)

    with context.stage("networks", len(jobs) * sizes.steps) as advance:
        results = concurrently([work(*job) for job in jobs], advance)
    found: dict[str, Any] = {str(n): {how: {} for how in ORDERS} for n in sizes.signals}
    for job, result in zip(jobs, results, strict=True):
        how, name, n, _ = job
        found[str(n)][how].setdefault(name, []).append(result)
    shown = {n: {how: _described(at) for how, at in of.items()} for n, of in found.items()}
    return {"sizes": shown, "largest": shown[str(largest)], **asdict(sizes)}


def _described(at: Mapping[str, list[tuple[float, Tensor]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, results in at.items():
        counts = eadem.counts(build(name, 0))
        found[name] = {
            "free": counts.free,
            "accuracy": [accuracy for accuracy, _ in results],
            "split": asdict(decomposed(torch.stack([error for _, error in results]))),
        }
    return found
