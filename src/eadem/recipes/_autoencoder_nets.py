"""Autoencoders of two depths, tied or not: how they are built, trained and judged."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.recipes._digits import Digits

__all__ = ["WIDTHS", "autoencoder", "compared", "error"]

WIDTHS = {"one layer": (784, 64), "two layers": (784, 256, 64)}
BATCH, RATE = 64, 1e-3


def autoencoder(widths: tuple[int, ...], tied: bool) -> nn.Sequential:
    """Down the widths and up again, tanh between; tied or its twin."""
    sizes = [*widths, *reversed(widths[:-1])]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    last = len(model) - 1
    for encoder in range(0, len(model) // 2, 2):
        decoder = f"{last - encoder}.weight"
        eadem.tie(model, decoder, to=f"{encoder}.weight", via=eadem.Transpose())
    return model if tied else eadem.twin(model)


def trained(model: nn.Module, images: Tensor, rows: Tensor) -> None:
    """Adam, one update for each row of `rows` (updates, BATCH)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for batch in rows:
        x = images[batch]
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def error(model: nn.Module, images: Tensor) -> float:
    """Mean squared error of a pixel."""
    return float((model(images) - images).square().mean())


def compared(train: Digits, test: Digits, updates: int, model: nn.Module) -> dict[str, Any]:
    """One model: its errors, its numbers of parameters, and, tied, its evidence."""
    rows = torch.randint(len(train), (updates, BATCH))
    trained(model, train.images, rows)
    inside, outside = error(model, train.images), error(model, test.images)
    found: dict[str, Any] = {"train": inside, "test": outside, "gap": outside - inside}
    found["free"] = eadem.counts(model).free
    biases = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    found["weights"] = found["free"] - biases
    if eadem.ties(model):
        found["evidence"] = verdict(model, train.images, inside)
    return found


def verdict(model: nn.Module, images: Tensor, variance: float) -> dict[str, Any]:
    """The mean test of the first decoder weight: pixels are Gaussian of one variance."""

    def log_density(model: nn.Module, x: Tensor) -> Tensor:
        squares: Tensor = (model(x) - x).square().sum(1)
        return -squares / (2 * variance)

    site = eadem.ties(model)[0].sites[-1]
    samples = 64 if len(images) >= 1000 else 16
    batches = list(images[: len(images) // samples * samples].chunk(samples))
    test = eadem.evidence.site_mean_test(
        model, log_density, batches, release=site, samples=samples
    )["joint"]
    return {"z": test.statistic, "pvalue": test.pvalue, "notes": list(test.notes)}
