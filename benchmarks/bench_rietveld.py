"""Joint Rietveld refinement of lead sulphate against rietx, on one set of parameters.

Both programs are given the same 8,590 points of both patterns, the same rough start, and the
same 47 values in the same five stages: scales and backgrounds; cell, zeros and displacement;
widths; coordinates and displacement parameters, shared by both patterns; the neutrons'
wavelength. Peaks reach as far as each program's own default has them. Time is that of the
whole refinement, from the start to standard errors; χ² is each program's own at its end, from
its own calculated patterns and the same weights. rietx runs on its compiled kernels and
without its closing stage, which is faster.

`python benchmarks/bench_rietveld.py` prints the table alone.
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import eadem
from eadem.powder import Pattern
from eadem.powder.instrument import free, freeze
from eadem.recipes import pbso4
from timing import Row, table

#: What each stage lets go: in Eadem's names, and in rietx's.
STAGES = (
    (("*.scale", "*.background"), ("phases.*.scale", "instrument.background.*")),
    (
        ("*.phase.cell", "*.instrument.zero", "xray.instrument.displacement"),
        (
            "phases.*.cell.*",
            "instrument.zero_shift",
            "hist.1.instrument.geometry.sample_displacement",
        ),
    ),
    (
        tuple(f"*.instrument.{w}" for w in "uvwxy"),
        tuple(f"instrument.profile.{w}" for w in "uvwxy"),
    ),
    (
        ("*.phase.xyz", "*.phase.u_iso"),
        ("phases.*.atoms.*.dof.*", "phases.*.atoms.*.biso"),
    ),
    (("neutron.instrument.wavelength",), ("hist.0.instrument.source.lines.0.wavelength",)),
)
ATOMS = (
    ("Pb", "Pb", 0.1882, 0.25, 0.167),
    ("S", "S", 0.063, 0.25, 0.686),
    ("O1", "O", -0.095, 0.25, 0.6),
    ("O2", "O", 0.181, 0.25, 0.543),
    ("O3", "O", 0.085, 0.026, 0.806),
)
WIDTHS = {
    "neutron": {"u": 0.14, "v": -0.41, "w": 0.39, "x": 0.01, "y": 0.01},
    "xray": {"u": 0.01, "v": -0.01, "w": 0.01, "x": 0.02, "y": 0.02},
}


def ours() -> tuple[float, float, int]:
    """Seconds, χ² and the number of free values."""
    model = pbso4.joint()
    with torch.no_grad():
        for name, widths in WIDTHS.items():
            for w, value in widths.items():
                model[name].get_parameter(f"instrument.{w}").fill_(value)
    freeze(model, "**")
    began = time.perf_counter()
    for i, (sites, _) in enumerate(STAGES, 1):
        free(model, *sites)
        tolerance = pbso4.FINE if i == len(STAGES) else pbso4.ROUGH
        fit = eadem.least_squares(model, tolerance=tolerance)
    assert bool(fit.correlation.isfinite().any())  # the standard errors are part of it
    return time.perf_counter() - began, fit.chi2, fit.free


def theirs() -> tuple[float, float, int]:
    """The same of rietx."""
    import rietx
    from rietx.schemas import Atom, Cell, Parameter, PatternData, Phase, Structure
    from rietx.schemas import instrument as schema
    from rietx.strategy.staged import RefinementPlan, Stage

    def value(v: float) -> Any:
        return Parameter(value=v)

    atoms = [
        Atom(label=n, species=e, x=value(x), y=value(y), z=value(z), biso=value(0.79))
        for n, e, x, y, z in ATOMS
    ]
    sides = dict(zip(("a", "b", "c"), map(value, (8.48, 5.398, 6.958)), strict=True))
    angles = {n: value(90.0) for n in ("alpha", "beta", "gamma")}
    cell = Cell(**sides, **angles)
    phase = Phase(name="PbSO4", space_group="P n m a", cell=cell, atoms=atoms)

    def background(first: float) -> Any:
        coefficients = [value(first), *(value(0.0) for _ in range(5))]
        return schema.BackgroundChebyshev(coefficients=coefficients)

    profiles = {
        name: schema.ProfileTCHZ(**{w: value(v) for w, v in widths.items()})
        for name, widths in WIDTHS.items()
    }
    neutrons = schema.Instrument(
        source=schema.NeutronSource(wavelength=1.909),
        geometry=schema.Geometry(kind="debye_scherrer"),
        zero_shift=value(-0.1),
        profile=profiles["neutron"],
        background=background(200.0),
    )
    lines = [
        schema.EmissionLine(wavelength=1.5405),
        schema.EmissionLine(wavelength=1.5443, weight=value(0.5)),
    ]
    xrays = schema.Instrument(
        # K + (1 − K)cos² 2θ there is 1 + 0.7 cos² 2θ here
        source=schema.Source(lines=lines, polarization=value(1 / 1.7)),
        geometry=schema.Geometry(kind="bragg_brentano", goniometer_radius_mm=200.0),
        profile=profiles["xray"],
        background=background(120.0),
    )
    data = []
    for block in pbso4.joint().blocks.values():
        assert isinstance(block, Pattern)
        x, y, sigma = (v.tolist() for v in (block.x, block.y, block.sigma))
        data.append(PatternData(two_theta=x, intensity=y, sigma=sigma))
    stages = [Stage(str(i), list(names)) for i, (_, names) in enumerate(STAGES)]
    options = {"closing_window_tol": None}
    known = {k: v for k, v in options.items() if k in RefinementPlan.__dataclass_fields__}
    began = time.perf_counter()
    refinement = rietx.MultiHistogramRefinement(Structure(phases=[phase]), [neutrons, xrays])
    found = refinement.fit(data, plan=RefinementPlan(stages=stages, **known))
    passed = time.perf_counter() - began
    each = [h.statistics for h in found.histograms]
    chi2 = sum(s.chi2 * (s.n_points - s.n_free_parameters) for s in each)
    return passed, chi2, sum(p.stderr is not None for p in found.parameters)


def rows(rounds: int = 3) -> list[Row]:
    """The benchmark's lines."""
    what = "joint refinement of PbSO4"
    if find_spec("rietx") is None:
        return [Row(what, "rietx, not installed", None)]
    ours()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    times = sorted(a[0] / b[0] for a, b in pairs)
    (_, mine, free_values), (_, other, their_values) = pairs[-1]
    matched = f"{what}, {free_values} free values"
    seconds = sorted(a[0] for a, _ in pairs)
    return [
        Row(matched, "rietx", times[len(times) // 2], times[0], times[-1], 1 / 8),
        Row(f"χ² at the end, {mine:,.0f}", f"rietx, {their_values} values, {other:,.0f}",
            mine / other, mine / other, mine / other, 1.0),
        Row(f"{what}, whole", "time", seconds[len(seconds) // 2], seconds[0], seconds[-1],
            None, "s"),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(rows()))
