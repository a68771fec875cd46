"""Ties under which the model forgets other values, so that no test of them has a χ² law.

A tie that merges two states of a hidden Markov model leaves nothing by which the data could
tell their transitions: these have a meaning under the alternative alone (Davies, Biometrika
74, 33, 1987). A module of which this can be true has `drawn_scores(many, step)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eadem.bind import resolved, site_values
from eadem.evidence._release import trained
from eadem.evidence.score import EvidenceError, range_basis
from eadem.maps.base import DENSE_LIMIT, LinearMap, numel

__all__ = ["refuse_merging"]

#: Directions whose share of the greatest gradient is below this are not identified at all,
#: and those above `SEEN` are.
UNSEEN, SEEN = 1e-9, 1e-7
#: A module, and its sites' places in the vector of all by their names in it.
_Part = tuple[Any, dict[str, slice]]
#: Directions above which nothing is drawn.
MOST = 1024


def refuse_merging(model: nn.Module, wide: LinearMap) -> None:
    """Raise EvidenceError if data of any size, which tell the values apart along range(`wide`)
    near the model, do not at the model itself, and the tie is why.

    range(`wide`) is what is released, with or without what the ties leave free. The
    rank of the scores of drawn observations is compared at the model's values and at others
    that the tie forbids.
    """
    parts = list(_drawing(model))
    if not parts or numel(wide.out_shape) > DENSE_LIMIT:
        return
    every = range_basis(torch.cat([trained(model).dense(), wide.dense()], 1))
    rows = torch.cat([torch.arange(s.start, s.stop) for _, own in parts for s in own.values()])
    if not 0 < every.shape[1] <= MOST or not bool(every[rows].any()):
        return
    away = _away(model, every)
    here, there = (_scores(parts, every.shape[1] + 20, s) for s in (None, away))
    unit = torch.cat([here, there]).square().mean(0).sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    basis = range_basis(unit.unsqueeze(1) * every[rows])
    found, would = (torch.linalg.svdvals(s / unit @ basis) for s in (here, there))
    if not found.numel() or not float(would[0]):
        return
    lost = int((would > SEEN * would[0]).sum() - (found > UNSEEN * found[0]).sum())
    if lost > 0:
        raise EvidenceError(
            f"the tie merges states: under it no data, however many, tell of {lost} of the "
            f"{basis.shape[1]} directions that are free under the alternative, where data do. "
            "The statistic then has no χ² law (Davies 1987) and the fitted values decide it. "
            "Fix or tie what has no meaning once the states are one (their transitions, the "
            "first state: eadem.Fixed, or requires_grad_(False)), or compare with fits to data "
            "simulated from the tied model"
        )


def _drawing(model: nn.Module) -> Iterator[_Part]:
    """Modules that draw, each with its sites' places by their names in it."""
    slices = resolved(model).slices
    for prefix, module in model.named_modules():
        if callable(getattr(module, "drawn_scores", None)):
            start = f"{prefix}." if prefix else ""
            own = {n[len(start) :]: s for n, s in slices.items() if n.startswith(start)}
            yield module, {n: s for n, s in own.items() if "." not in n}


def _away(model: nn.Module, every: Tensor) -> Tensor:
    """A direction in range(`every`) that changes all values by about as large a part."""
    units = []
    for value in site_values(model).values():
        flat = value.detach().to("cpu", torch.float64).reshape(-1)
        size = flat.square().mean().sqrt().clamp(min=1e-3).expand_as(flat)
        units.append(flat.clamp(min=1e-9) if bool((flat >= 0).all()) else size)
    unit = torch.cat(units)
    basis = range_basis(every / unit.unsqueeze(1))
    generator = torch.Generator().manual_seed(0)
    wish = torch.randn(len(unit), generator=generator, dtype=torch.float64)
    return unit * (basis @ (basis.T @ wish))


def _scores(
    parts: list[tuple[Any, dict[str, slice]]], many: int, step: Tensor | None
) -> Tensor:
    """Scores of `many` observations drawn from each module, at its own sites."""
    blocks = []
    for module, own in parts:
        along = None
        if step is not None:
            along = {
                n: step[s].reshape(getattr(module, n).shape).numpy() for n, s in own.items()
            }
        found = module.drawn_scores(many, along)
        flat = [np.reshape(found[n], (many, -1)) for n in own]
        blocks.append(torch.from_numpy(np.concatenate(flat, 1)))
    whole: Tensor = torch.block_diag(*blocks)
    return whole
