"""Joint refinement of two powder patterns, against rietx.

PbSO4, X-rays and neutrons, as in the recipe `pbso4`: the same 8,590 points, start, order of
stages and 43 free values for both (no axial asymmetry, no neutron displacement, the neutrons'
wavelength free). rietx has its own default tolerance; Eadem has the recipe's at the end, and
its first three stages, which only lead to the last, end at an offset of 0.2. Eadem's χ² must
not be above rietx's (checked). Both on one thread; the first fit of a process is not timed.
Then a forward model of both patterns with the recipe's 47 free values, and its Jacobian in
units of that.

rietx comes with `pip install rietx`. `python benchmarks/bench_powder.py` prints the table.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import eadem
from eadem.fits._setup import setup
from eadem.powder.instrument import free, freeze
from eadem.recipes import _pbso4_data as pbso4_data
from eadem.recipes import pbso4
from eadem.solvers.losses import Loss
from timing import Ratio, Row, row, table

NEUTRON = {"u": 0.14, "v": -0.41, "w": 0.39, "y": 0.08}
XRAY = {"u": 0.0, "v": 0.0, "w": 0.005, "x": 0.05, "y": 0.05}
STAGES = {
    "scale and background": pbso4.STAGES["scale and background"],
    "cell and zero": pbso4.STAGES["cell and zero"],
    "structure": ("*.phase.xyz", "*.phase.u_iso"),
    "everything": (*pbso4.STAGES["widths"], pbso4.WAVELENGTH),
}
#: The same for rietx, whose coordinates are degrees of freedom of the sites.
GLOBS = {
    "scale and background": ["phases.*.scale", "instrument.background.*"],
    "cell and zero": [
        "phases.*.cell.*",
        "hist.0.instrument.zero_shift",
        "hist.1.instrument.geometry.sample_displacement",
    ],
    "structure": ["phases.*.atoms.*.dof.*", "phases.*.atoms.*.biso"],
    "everything": [
        *(f"hist.0.instrument.profile.{k}" for k in "uvwy"),
        *(f"hist.1.instrument.profile.{k}" for k in "wxy"),
        "hist.0.instrument.*wavelength",
    ],
}
FREE = 43
#: The offset (see `eadem.least_squares`) at which the stages before the last end.
ROUGH = 0.2


def model() -> eadem.Joint:
    """The recipe's patterns with widths to start from that suit both programs."""
    found = pbso4.joint()
    with torch.no_grad():
        for name, values in (("neutron", NEUTRON), ("xray", XRAY)):
            for key, value in values.items():
                found[name].instrument.get_parameter(key).fill_(value)
    return found


def by_eadem() -> tuple[float, float]:
    """Seconds of the fits, and χ²."""
    joint = model()
    freeze(joint, "**")
    start = time.perf_counter()
    for name, sites in STAGES.items():
        free(joint, *sites)
        last = name == "everything"
        fit = eadem.least_squares(joint, tolerance=pbso4.FINE if last else ROUGH)
    assert fit.free == FREE, fit.free
    return time.perf_counter() - start, fit.chi2


def by_rietx(rx: Any) -> tuple[float, float]:
    """Seconds of the same fits by rietx, and χ²."""
    from rietx.schemas import instrument as schema
    from rietx.strategy.staged import RefinementPlan, Stage

    def value(v: float, **given: Any) -> Any:
        return schema.Parameter(value=v, **given)

    def background() -> Any:
        return schema.BackgroundChebyshev(
            coefficients=[value(150.0), *(value(0.0) for _ in range(5))]
        )

    def profile(values: dict[str, float]) -> Any:
        return schema.ProfileTCHZ(**{k: value(values.get(k, 0.0)) for k in "uvwxy"})

    neutrons = schema.Instrument(
        source=schema.NeutronSource(
            wavelength=value(pbso4_data.NOMINAL, vary=True, min=1.89, max=1.93)
        ),
        geometry=schema.Geometry(kind="debye_scherrer"),
        zero_shift=value(-0.1),
        profile=profile(NEUTRON),
        background=background(),
    )
    xrays = schema.Instrument(
        source=schema.Source(
            lines=[
                schema.EmissionLine(wavelength=value(1.5405)),
                schema.EmissionLine(wavelength=value(1.5443), weight=value(0.5)),
            ],
            polarization=value(1 / 1.7),
            dispersion=schema.Dispersion(overrides=pbso4_data.DISPERSION),
        ),
        geometry=schema.Geometry(kind="bragg_brentano", goniometer_radius_mm=200.0),
        profile=profile(XRAY),
        background=background(),
    )
    patterns = [
        rx.PatternData(two_theta=b.x.tolist(), intensity=b.y.tolist(), sigma=b.sigma.tolist())
        for b in model().blocks.values()
    ]
    with tempfile.TemporaryDirectory() as folder:
        cif = Path(folder) / "start.cif"
        cif.write_bytes(gzip.decompress(pbso4_data.packed("start.cif.gz").read_bytes()))
        structure = rx.Structure.from_cif(str(cif))
    plan = RefinementPlan(
        stages=[Stage(name, globs) for name, globs in GLOBS.items()],
        closing_window_tol=None,
        phase_support_sigma=None,
    )
    start = time.perf_counter()
    fit = rx.refine_multi(patterns, structure, [neutrons, xrays], plan=plan)
    seconds = time.perf_counter() - start
    assert fit.statistics.n_free_parameters == FREE, fit.statistics
    return seconds, 2 * fit.stages[-1].cost_final


def best(fn: Callable[[], object], calls: int = 15) -> float:
    """The shortest of some calls, in seconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)


def derivatives() -> list[Row]:
    """A forward model of both patterns, and the Jacobian in units of it."""
    joint = pbso4.joint()
    freeze(joint, "**")
    for sites in pbso4.STAGES.values():
        free(joint, *sites)
    problem = setup(joint, Loss("linear", 1.0)).problem
    point = problem.first
    problem.jacobians(point)
    one = best(lambda: problem.at(point.theta))
    whole = best(lambda: problem.jacobians(point), 8)
    return [
        Row("forward model of both patterns", "time", one, None, None, 0.010, "s"),
        Row("Jacobian, 47 free values", "forward model", whole / one, limit=20.0),
    ]


def rows(rounds: int = 3) -> list[Row]:
    """The benchmark's lines."""
    torch.set_num_threads(1)
    found = derivatives()
    name = f"PbSO4, both patterns, {FREE} free values: four stages"
    try:
        import rietx as rx
    except ImportError:
        return [*found, Row(name, "rietx, not installed", None, limit=1 / 8)]
    by_eadem()
    ratios = []
    for _ in range(rounds):
        mine, theirs = by_eadem(), by_rietx(rx)
        assert mine[1] <= theirs[1], f"χ² {mine[1]} against {theirs[1]}"
        ratios.append(mine[0] / theirs[0])
    ratio = Ratio(statistics.median(ratios), min(ratios), max(ratios))
    return [*found, row(name, f"rietx {rx.__version__}", ratio, 1 / 8)]


if __name__ == "__main__":
    print(table(rows()))
