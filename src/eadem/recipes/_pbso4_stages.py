"""A refinement in stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import eadem
from eadem.fits import Fit
from eadem.powder.instrument import free, freeze
from eadem.recipes._pbso4_data import (
    STAGES,
    patterns,
)

__all__ = ["FINE", "ROUGH", "Stage", "refined"]

#: Offsets (see `eadem.least_squares`) at which the stages and the last one end.
ROUGH, FINE = 5e-2, 3e-4


@dataclass(frozen=True)
class Stage:
    """One stage of a refinement, as it ended."""

    name: str
    free: int
    chi2: float
    rwp: dict[str, float]
    iterations: int
    seconds: float


def refined(model: eadem.Joint, advance: Callable[[int], None]) -> tuple[Fit, list[Stage]]:
    """The stated sequence; the fit of the last stage."""
    freeze(model, "**")
    stages = []
    for name, sites in STAGES.items():
        free(model, *sites)
        tolerance = FINE if name == "everything" else ROUGH
        began = time.perf_counter()
        fit = eadem.least_squares(model, tolerance=tolerance)
        stages.append(_stage(name, model, fit, time.perf_counter() - began))
        advance(1)
    return fit, stages


def _stage(name: str, model: eadem.Joint, fit: Fit, seconds: float) -> Stage:
    rwp = {k: b.rwp() for k, b in patterns(model).items()}
    return Stage(name, fit.free, fit.chi2, rwp, len(fit.history) - 1, seconds)
