"""Fits of data drawn from a fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import eadem
from eadem.recipes._global_fit_data import Curve
from eadem.recipes._global_fit_joint import (
    LEVEL,
    _fitted,
    at_values_of,
    joined,
    nested,
)

__all__ = ["drawn"]


def drawn(
    joint: eadem.Joint,
    best: eadem.Fit,
    shared: Sequence[str],
    draws: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Fits of data drawn from the accepted fit: what the spread of the estimates is."""
    truth = at_values_of(joint, best)
    there = eadem.least_squares(copy.deepcopy(truth), max_iterations=0)
    generator = torch.Generator().manual_seed(0)
    sigma = math.sqrt(best.reduced_chi2)
    values: dict[str, list[list[float]]] = {n: [] for n in shared}
    rejected = lost = 0
    for _ in range(draws):
        world = copy.deepcopy(truth)
        for name, r in best.residuals.items():
            block = world[name]
            assert isinstance(block, Curve)
            noise = torch.randn(r.shape, dtype=r.dtype, generator=generator)
            block.y = block.y - r + sigma * noise
        advance(1)
        separate = _fitted(world)
        if not separate.converged or separate.notes:  # a curve without its parameters
            lost += 1
            continue
        tied = joined([world], shared)
        rejected += nested(tied, separate).pvalue < LEVEL
        for n in shared:
            each = [float(separate.values[f"{c}.{n}"]) for c in world]
            values[n].append([float(tied.values[f"{next(iter(world))}.{n}"]), *each])
    ratios, foretold = {}, {}
    for n, rows in values.items():
        spread = torch.tensor(rows).std(0).tolist()
        ratios[n] = spread[0] / min(spread[1:])
        own = [float(there.stderr[f"{c}.{n}"]) / math.sqrt(there.variance) for c in joint]
        foretold[n] = float(best.stderr[f"{next(iter(joint))}.{n}"]) / sigma / min(own)
    kept = draws - lost
    return {
        "draws": kept,
        "lost": lost,
        "rejected": rejected / kept,
        "ratios": ratios,
        "foretold": foretold,
    }
