"""What is asked of the two patterns of lead sulphate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eadem.recipes import Context
from eadem.recipes._pbso4_data import (
    NOMINAL,
    WAVELENGTH,
)
from eadem.recipes._pbso4_numbers import (
    RIVAL,
)

__all__ = ["COORDINATES", "PREDICTED", "REJECTED", "RWP", "SHARE", "claim"]

RWP = {"neutron": 0.0475, "xray": 0.092}
COORDINATES, REJECTED, PREDICTED, SHARE = 0.002, 0.01, 0.0002, 0.9


def claim(
    context: Context,
    fits: dict[str, Any],
    tests: Sequence[dict[str, Any]],
    structure: Sequence[dict[str, Any]],
) -> None:
    """Claim C23."""
    rwp = fits["wavelength"]["rwp"]
    off = max(abs(r["value"] - r["reference"]) for r in structure if r["kind"] == "xyz")
    tests = [t for t in tests if t["site"] != RIVAL]
    blamed = min(tests, key=lambda t: float(t["robust"]["pvalue"]))
    predicted = float(tests[0]["expected_change"][0])
    moved = fits["wavelength"]["wavelength"][0] - NOMINAL
    gain = {k: fits["tied"]["chi2"] - fits[k]["chi2"] for k in ("wavelength", "cells")}
    share = gain["wavelength"] / gain["cells"]
    holds = (
        all(rwp[k] <= most for k, most in RWP.items())
        and off <= COORDINATES
        and blamed["site"] == WAVELENGTH
        and blamed["robust"]["pvalue"] < REJECTED
        and abs(predicted - moved) <= PREDICTED
        and share >= SHARE
    )
    context.claim(
        "C23",
        "One crystal, two instruments: structure tied, instruments free; the data say that one "
        "instrument's wavelength is not what it was taken for, and by how much.",
        "λ free: Rwp ≤ 4.75 % (neutrons) and ≤ 9.2 % (X-rays), coordinates within 0.002 of "
        "GSAS-II's; cell tied at 1.909 Å rejected at 1 % by blocks of 40 points, the "
        "wavelength having the smallest such p-value of all suspects; predicted Δλ within "
        "0.0002 Å of the refitted; λ takes off ≥ 90 % of the χ² that own cells take off",
        {
            "rwp neutron": f"≤ {RWP['neutron']}",
            "rwp xray": f"≤ {RWP['xray']}",
            "coordinates off by": f"≤ {COORDINATES}",
            "blamed": WAVELENGTH,
            "p by blocks": f"< {REJECTED}",
            "predicted less refitted": f"within {PREDICTED}",
            "share of the gain": f"≥ {SHARE}",
        },
        {
            "rwp neutron": rwp["neutron"],
            "rwp xray": rwp["xray"],
            "coordinates off by": off,
            "blamed": blamed["site"],
            "p by blocks": blamed["robust"]["pvalue"],
            "predicted": predicted,
            "refitted": moved,
            "share of the gain": share,
        },
        holds,
    )
