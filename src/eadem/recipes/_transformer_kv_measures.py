"""What is measured of a trained encoder-decoder."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import eadem
from eadem.evidence.score import holm
from eadem.recipes._sequences import (
    LETTERS,
    LONGEST,
    TASKS,
    Batch,
    Transformer,
    attended,
    batch,
    scores,
)
from eadem.recipes._training import Advance, descending

__all__ = [
    "BATCH",
    "FULL",
    "QUICK",
    "RANK",
    "RATE",
    "RELAXED",
    "WARMUP",
    "Sizes",
    "aligned",
    "measured",
    "nats",
    "relaxed",
    "speeds",
    "trained",
    "verdict",
]

RATE, BATCH, WARMUP = 3e-3, 64, 50
RELAXED, RANK = 4, 4


@dataclass(frozen=True)
class Sizes:
    """Width, steps, repeats, steps after relaxing; sequences to test on; rounds of timing;
    micro-batches of the evidence.
    """

    width: int
    steps: int
    repeats: int
    more: int
    tested: int
    rounds: int
    fresh: int


FULL, QUICK = Sizes(32, 600, 3, 150, 600, 9, 32), Sizes(16, 5, 2, 3, 60, 2, 6)


def nats(model: nn.Module, seen: Batch) -> Tensor:
    """Cross-entropy of every letter (n, length)."""
    return cross_entropy(scores(model, seen).transpose(1, 2), seen.wanted, reduction="none")


@torch.no_grad()
def measured(model: Transformer, other: Batch, test: Batch) -> dict[str, Any]:
    """Loss, accuracy and alignment on the longest sequences."""
    found = scores(model, test)
    right = found.argmax(2) == test.wanted
    task = test.source[:, 0] - LETTERS
    at, chosen = aligned(model, test), int(aligned(model, other).argmax())
    return {
        "loss": float(cross_entropy(found.transpose(1, 2), test.wanted)),
        "accuracy": float(right.double().mean()),
        "whole": float(right.all(1).double().mean()),
        "by_task": [float(right[task == i].double().mean()) for i in range(len(TASKS))],
        "alignment": float(at[chosen]),
    }


def aligned(model: Transformer, seen: Batch) -> Tensor:
    """How often the maximum of cross-attention is at the known place, by layer and head."""
    most = attended(model, seen).argmax(4)  # (depth, n, heads, length)
    return (most == seen.place.unsqueeze(1)).double().mean((1, 3)).flatten()


def verdict(model: nn.Module, generator: torch.Generator, samples: int) -> dict[str, Any]:
    """The mean test of every tied site, on fresh sequences, after Holm's correction."""
    fresh = [batch(16, generator) for _ in range(samples)]

    def density(m: nn.Module, seen: tuple[Tensor, ...]) -> Tensor:
        return -nats(m, Batch(*seen)).sum(1)

    data = [(one.source, one.wanted, one.place) for one in fresh]
    found = eadem.evidence.site_mean_test(model, density, data, samples=samples)
    joint = found.pop("joint")
    corrected = holm([one.pvalue for one in found.values()])
    return {
        "joint": {"statistic": joint.statistic, "pvalue": joint.pvalue},
        "sites": {
            site: {"statistic": one.statistic, "holm": p}
            for (site, one), p in zip(found.items(), corrected, strict=True)
        },
    }


@torch.no_grad()
def speeds(models: Mapping[str, nn.Module], rounds: int) -> dict[str, float]:
    """Letters per second of CPU time, forward; medians of rounds in which all take turns."""
    seen = batch(BATCH, torch.Generator().manual_seed(0), LONGEST)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.thread_time()
            scores(model, seen)
            taken[name].append(time.thread_time() - start)
    return {n: seen.wanted.numel() / statistics.median(each[1:]) for n, each in taken.items()}


def trained(
    model: Transformer, generator: torch.Generator, steps: int, advance: Advance
) -> Transformer:
    """Steps of Adam on fresh sequences, at a rate that rises over the first WARMUP of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    losses = (nats(model, batch(BATCH, generator)).mean() for _ in range(steps))
    for _ in descending(optimizer, losses, rate):
        advance(1)
    return model


def relaxed(
    model: Transformer,
    blamed: Mapping[str, Mapping[str, float]],
    generator: torch.Generator,
    steps: int,
    held: tuple[Batch, Batch],
    advance: Advance,
) -> dict[str, Any]:
    """What more steps give back to a tied network, to one whose RELAXED most blamed sites are
    shared + low-rank, and to one in which the least blamed are.
    """
    order = sorted(blamed, key=lambda site: -blamed[site]["statistic"])
    sites: dict[str, list[str]] = {"tied": []}
    sites |= {"most": order[:RELAXED], "least": order[-RELAXED:]}
    found: dict[str, Any] = {"relaxed": sites}
    state, seed = generator.get_state(), generator.initial_seed()
    for which, loose in sites.items():
        one = copy.deepcopy(model)
        for site in loose:
            eadem.relax(one, site, RANK, seed=seed)
        generator.set_state(state)
        trained(one, generator, steps, advance)
        found[f"after_{which}"] = measured(one, *held)
    return found
