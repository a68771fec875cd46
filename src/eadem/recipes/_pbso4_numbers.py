"""What is read off a refinement, for the page and the claim."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import eadem
from eadem.fits import Fit
from eadem.powder import Pattern, Phase
from eadem.recipes._pbso4_data import (
    WAVELENGTH,
    patterns,
)

__all__ = [
    "RIVAL",
    "correlations",
    "drawn",
    "instrument",
    "pair",
    "row",
    "serial",
    "structure",
    "summary",
]

RIVAL = "xray.instrument.zero"


def summary(model: eadem.Joint, fit: Fit) -> dict[str, Any]:
    return {
        "chi2": fit.chi2,
        "reduced_chi2": fit.reduced_chi2,
        "points": fit.size,
        "free": fit.free,
        "converged": fit.converged,
        "rwp": {k: b.rwp() for k, b in patterns(model).items()},
        "wavelength": pair(fit, WAVELENGTH, 0),
        "zero": pair(fit, RIVAL, 0),
        "cell": {
            name: [pair(fit, f"{name}.phase.cell", i) for i in range(3)]
            for name in model.blocks
        },
    }


def pair(fit: Fit, site: str, i: int) -> tuple[float, float]:
    """A value and its standard error."""
    value, error = fit.values[site].reshape(-1), fit.stderr[site].reshape(-1)
    return float(value[i]), float(error[i])


def structure(model: eadem.Joint, fit: Fit, reference: Any) -> list[dict[str, Any]]:
    """Cell lengths, coordinates and displacements beside those of GSAS-II."""
    phase = model.blocks["neutron"].phase
    assert isinstance(phase, Phase)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate("abc"):
        value, error = pair(fit, "neutron.phase.cell", i)
        theirs = reference["cell"][i]
        entry, spread = reference["params"][f"0::A{i}"]
        rows.append(row(name, "cell", value, error, theirs, theirs * spread / entry / 2))
    others = [a for _, a in sorted(reference["atoms"].items(), key=lambda at: at[0][-1])]
    for k, (label, other) in enumerate(zip(phase.labels, others, strict=True)):
        for i, axis in enumerate("xyz"):
            value, error = pair(fit, "neutron.phase.xyz", 3 * k + i)
            spread = reference["params"].get(f"0::dA{axis}:{k}", (0.0, 0.0))[1]
            rows.append(row(f"{axis} of {label}", "xyz", value, error, other["xyz"][i], spread))
        value, error = pair(fit, "neutron.phase.u_iso", k)
        spread = reference["params"][f"0::AUiso:{k}"][1]
        rows.append(row(f"U of {label}", "u_iso", value, error, other["Uiso"], spread))
    return rows


def row(name: str, kind: str, value: float, error: float, theirs: float, spread: float) -> Any:
    return {
        "name": name,
        "kind": kind,
        "value": value,
        "stderr": error,
        "reference": theirs,
        "reference_stderr": spread,
    }


def instrument(fit: Fit) -> list[dict[str, Any]]:
    """What is refined and belongs to one pattern alone."""
    rows = []
    for site, values in fit.values.items():
        if ".phase." in site:
            continue
        for i, error in enumerate(fit.stderr[site].reshape(-1).tolist()):
            if error > 0:
                place = f"[{i}]" if values.numel() > 1 else ""
                value = float(values.reshape(-1)[i])
                rows.append({"name": site + place, "value": value, "stderr": error})
    return rows


def correlations(fit: Fit) -> list[tuple[str, str, float]]:
    """The twelve strongest among free values."""
    found = fit.correlation.triu(1).nan_to_num()
    strongest = found.abs().reshape(-1).argsort(descending=True)[:12].tolist()
    n = len(found)
    return [
        (fit.names[k // n], fit.names[k % n], float(found[k // n, k % n])) for k in strongest
    ]


def serial(r: Tensor) -> float:
    """The correlation of neighbouring residuals."""
    return float(r[1:] @ r[:-1] / r.square().sum())


def drawn(block: Pattern) -> dict[str, Any]:
    """What the picture of a pattern needs."""
    with torch.no_grad():
        calculated = block.calculated()
    listed = block.reflections()["phase"]
    marks = [
        (float(at), " ".join(str(v) for v in hkl))
        for hkl, at in zip(listed.hkl.tolist(), listed.position[0].tolist(), strict=True)
        if float(block.x[0]) <= at <= float(block.x[-1])
    ]
    return {
        "x": [round(v, 4) for v in block.x.tolist()],
        "observed": [round(v, 1) for v in block.y.tolist()],
        "calculated": [round(v, 1) for v in calculated.tolist()],
        "marks": marks,
    }
