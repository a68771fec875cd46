"""The files that a fitted project leaves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eadem.fits import Fit
from eadem.project.block import Block
from eadem.project.errors import ProjectError
from eadem.project.fit import Outcome
from eadem.project.spec import DataSet

__all__ = ["correlation", "source", "structures", "summary", "write"]


def write(outcome: Outcome, folder: Path) -> None:
    """Write everything into a folder that exists."""
    from eadem.project.page import report  # needs what is below

    _write(folder / "fit.json", json.dumps(_plain(summary(outcome)), indent=2) + "\n")
    _write(folder / "values.csv", values_csv(outcome))
    for name in outcome.built.joint:
        _write(folder / f"{name}.csv", curve_csv(outcome, name))
    for name in outcome.built.powder:
        _write(folder / f"{name}.reflections.csv", reflections_csv(outcome, name))
    for file, (name, phase) in structures(outcome).items():
        found = outcome.built.powder[name].phases[phase]
        found.to_cif(folder / file, outcome.fit.stderr, prefix=f"{name}.{phase}.")
        (folder / file).chmod((folder / "fit.json").stat().st_mode)  # not the owner's alone
    _write(folder / "report.html", report(outcome))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def summary(outcome: Outcome) -> dict[str, Any]:
    """Everything that a program may want to read, for fit.json."""
    from eadem import __version__

    fit, built = outcome.fit, outcome.built
    free = outcome.free_names()
    return {
        "schema": 1,
        "eadem": __version__,
        "title": outcome.project.title,
        "converged": fit.converged,
        "message": fit.message,
        "chi2": fit.chi2,
        "dof": fit.dof,
        "reduced_chi2": fit.reduced_chi2,
        "aic": fit.aic,
        "bic": fit.bic,
        "residuals": fit.size,
        "free": fit.free,
        "options": asdict(outcome.project.options),
        "values": {
            name: {
                "value": outcome.value(name)[0],
                "stderr": outcome.value(name)[1],
                "state": state,
                "start": float(built.starts[e.site].reshape(-1)[e.place]),
                "bounds": built.bounds.get(name),
            }
            for name, state in outcome.state.items()
            for e in [built.entries[name]]
        },
        "correlation": {"names": list(free), "matrix": correlation(fit, free.values())},
        "ties": [
            asdict(v) | {"verdict": v.word(outcome.project.options.cluster is not None)}
            for v in outcome.verdicts
        ],
        "clusters": list(outcome.clusters),
        "data": {
            d.name: {
                "file": source(outcome, d)[0],
                "curve": None if d.curve is None else d.curve.text,
                "errors": source(outcome, d)[1],
                "observations": fit.residuals[d.name].numel(),
                "left_out": source(outcome, d)[2],
                "chi2": float(fit.residuals[d.name].square().sum()),
                "lag_one": outcome.serial[d.name],
            }
            | _powder(outcome, d.name)
            for d in outcome.project.data
        },
        "stages": [asdict(s) for s in outcome.stages],
        "notes": list(outcome.notes),
    }


def source(outcome: Outcome, data: DataSet) -> tuple[str, str, int]:
    """Of a data set: its file, where its σ are from, and how many points are left out."""
    if data.observed is not None:
        return data.observed.file, data.observed.errors, len(data.observed.left_out[0])
    block = outcome.built.powder[data.name]
    return block.file, "σ as in the file, or of the counts", block.left_out


def _powder(outcome: Outcome, name: str) -> dict[str, Any]:
    block = outcome.built.powder.get(name)
    return {} if block is None else {"rwp": block.rwp(), "phases": list(block.names)}


def correlation(fit: Fit, places: Iterable[int]) -> list[list[float]]:
    """The correlations of some free values; nothing where there are very many."""
    at = list(places)
    if len(at) > 512 or not at:
        return []
    found: list[list[float]] = fit.correlation[at][:, at].tolist()
    return found


def values_csv(outcome: Outcome) -> str:
    """Every number with its standard error."""
    rows = [(n, *map(repr, outcome.value(n)), state) for n, state in outcome.state.items()]
    return _csv([("parameter", "value", "stderr", "state"), *rows])


def structures(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """The CIF files of the refined phases: data set and phase by file name. A phase has one
    file, or one for each data set where these have something of their own in it.
    """
    found: dict[str, tuple[str, str]] = {}
    for phase, table in outcome.project.phases.items():
        users = [n for n, b in outcome.built.powder.items() if phase in b.phases]
        if len(users) > 1 and table.get("own"):
            found |= {f"{phase}.{user}.cif": (user, phase) for user in users}
        elif users:
            found[f"{phase}.cif"] = (users[0], phase)
    return found


def reflections_csv(outcome: Outcome, name: str) -> str:
    """The reflections of a pattern: d in Å, 2θ of the first wavelength, |F|² of the cell."""
    rows: list[tuple[str, ...]] = []
    for phase, r in outcome.built.powder[name].reflections().items():
        columns = (r.multiplicity, r.d, r.position[0], r.squared)
        each = zip(r.hkl.tolist(), *(c.tolist() for c in columns), strict=True)
        rows += [(phase, *map(repr, hkl), *map(repr, rest)) for hkl, *rest in each]
    return _csv([("phase", "h", "k", "l", "multiplicity", "d", "two_theta", "F2"), *rows])


def curve_csv(outcome: Outcome, name: str) -> str:
    """One data set: x, y, σ, the fitted curve, and (y − curve)/σ."""
    block = outcome.built.joint[name]
    if not isinstance(block, Block):
        raise ProjectError(f"the model of {name!r} has no curve")
    with torch.no_grad():
        columns = (*block.observed(), block.model(), block.residual())
    rows = zip(*(c.reshape(-1).tolist() for c in columns), strict=True)
    return _csv([("x", "y", "sigma", "curve", "residual"), *(map(repr, r) for r in rows)])


def _csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes a string."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
