"""The estimators on real digits, and two coefficients for the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from eadem.recipes import Context
from eadem.recipes._subspace_estimators import METHODS, plan_of, solved, verdict
from eadem.recipes._subspace_worlds import (
    COLUMNS,
    ROWS,
    Fits,
    digits,
    penalized,
)

__all__ = ["plane", "real"]


def real(context: Context, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Test errors on the digits that were not drawn, and the score test, by size."""
    x, y = digits()
    half = torch.arange(ROWS * COLUMNS // 2).reshape(ROWS, -1)
    index = torch.cat([half, half.flip(1)], 1).reshape(-1)
    tied, free = plan_of(index, ROWS * COLUMNS), plan_of(None, ROWS * COLUMNS)
    error: dict[str, dict[int, list[float]]] = {m: {n: [] for n in sizes} for m in METHODS}
    pvalues: dict[int, list[float]] = {n: [] for n in sizes}
    found: Fits = {}
    for repeat in context.progress(range(repeats), "digits"):
        generator = torch.Generator().manual_seed(1000 * context.seed + repeat)
        order = torch.randperm(len(x), generator=generator)
        for n in sizes:
            train, test = order[:n], order[max(sizes) :]
            fit = solved(tied, x[train], y[train])
            plain = solved(free, x[train], y[train]).values
            pvalues[n].append(verdict(tied, fit, n).pvalue)
            found = {"tie": fit.values, "least squares": plain}
            found |= penalized(x[train], y[train])
            for method, values in found.items():
                error[method][n].append(float((y[test] - x[test] @ values).square().mean()))
    shown = [values.reshape(ROWS, COLUMNS) for values in found.values()]
    return {"error": error, "pvalues": pvalues, "weights": shown, "power": y.square().mean()}


def plane(seed: int) -> dict[str, Any]:
    """The four estimators of two coefficients, for the picture."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    x = torch.randn(25, 2, dtype=torch.float64, generator=generator) @ mix.T
    beta = torch.tensor([1.0, 0.9], dtype=torch.float64)
    y = x @ beta + 2 * torch.randn(25, dtype=torch.float64, generator=generator)
    tied = plan_of(torch.tensor([0, 0]), 2)
    found = {"tie": solved(tied, x, y).values, "least squares": torch.linalg.lstsq(x, y)[0]}
    return {"truth": beta, "moment": x.T @ x, "found": found | penalized(x, y)}
