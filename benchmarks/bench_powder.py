"""Refinement of powder patterns, against rietx and easydiffraction.

PbSO4, X-rays and neutrons, as in the recipe `pbso4`: the same 8,590 points, start, order of
stages and 43 free values for both (no axial asymmetry, no neutron displacement, the neutrons'
wavelength free). rietx has its own default tolerance; Eadem has the recipe's at the end, and
its first three stages, which only lead to the last, end at an offset of 0.2. Eadem's χ² must
not be above rietx's (checked). Both on one thread; the first fit of a process is not timed.
Then a forward model of both patterns with the recipe's 47 free values, and its Jacobian in
units of that.

easydiffraction knows one wavelength a pattern, so no Kα doublet: it has the neutron pattern
alone, with the wavelength fixed and 31 free values for both, and its own default tolerance.
Its engine takes the widths and the Lorentz factor at each point of a peak, Eadem at the
reflection, as FullProf does: χ² is compared as it comes. It is run once.

rietx comes with `pip install rietx`, easydiffraction with `pip install easydiffraction` (which
wants an older SciPy). `python benchmarks/bench_powder.py` prints the table.
"""

from __future__ import annotations

import gzip
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
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
#: Of the neutron pattern alone, with its wavelength fixed.
ALONE = {
    "scale and background": ("neutron.scale", "neutron.background"),
    "cell and zero": ("neutron.phase.cell", "neutron.instrument.zero"),
    "structure": ("neutron.phase.xyz", "neutron.phase.u_iso"),
    "widths": tuple(f"neutron.instrument.{k}" for k in "uvwy"),
}
FREE_ALONE = 31
#: The start, of the recipe's CIF, as easydiffraction wants it.
ATOMS = {
    "Pb": ("Pb", (0.1882, 0.25, 0.167), "c"),
    "S": ("S", (0.063, 0.25, 0.686), "c"),
    "O1": ("O", (-0.095, 0.25, 0.6), "c"),
    "O2": ("O", (0.181, 0.25, 0.543), "c"),
    "O3": ("O", (0.085, 0.026, 0.806), "d"),
}
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


def neutrons_by_eadem() -> tuple[float, float]:
    """Seconds and χ² of the neutron pattern alone."""
    alone = eadem.Joint({"neutron": pbso4.joint(shared=())["neutron"]})
    with torch.no_grad():
        for key, value in NEUTRON.items():
            alone["neutron"].instrument.get_parameter(key).fill_(value)
    freeze(alone, "**")
    start = time.perf_counter()
    for name, sites in ALONE.items():
        free(alone, *sites)
        last = name == "widths"
        fit = eadem.least_squares(alone, tolerance=pbso4.FINE if last else ROUGH)
    assert fit.free == FREE_ALONE, fit.free
    return time.perf_counter() - start, fit.chi2


def by_easydiffraction(ed: Any) -> tuple[float, float]:
    """Seconds and χ² of the same by easydiffraction."""
    data = model()["neutron"]
    structure = ed.StructureFactory.from_scratch(name="pbso4")
    structure.space_group.name_h_m = "P n m a"
    cell = structure.cell
    cell.length_a, cell.length_b, cell.length_c = 8.48, 5.398, 6.958
    for name, (element, at, letter) in ATOMS.items():
        structure.atom_sites.create(
            label=name,
            type_symbol=element,
            **{f"fract_{k}": v for k, v in zip("xyz", at, strict=True)},
            wyckoff_letter=letter,
            b_iso=8 * math.pi**2 * 0.01,
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "neutron.xye"
        lines = zip(data.x.tolist(), data.y.tolist(), data.sigma.tolist(), strict=True)
        path.write_text("\n".join(" ".join(map(str, line)) for line in lines))
        pattern = ed.ExperimentFactory.from_data_path(
            name="neutron", data_path=str(path), radiation_probe="neutron"
        )
    instrument, peak = pattern.instrument, pattern.peak
    instrument.setup_wavelength, instrument.calib_twotheta_offset = pbso4.NOMINAL, -0.1
    for key, value in NEUTRON.items():
        setattr(peak, f"broad_{'lorentz' if key == 'y' else 'gauss'}_{key}", value)
    pattern.background_type = "chebyshev"
    for i in range(6):
        pattern.background.create(id=str(i + 1), order=i, coef=0.0 if i else 150.0)
    pattern.linked_phases.create(id="pbso4", scale=1.5)
    project = ed.Project()
    project.structures.add(structure)
    project.experiments.add(pattern)
    project.analysis.current_minimizer = "lmfit"
    stages = [
        [pattern.linked_phases["pbso4"].scale, *(t.coef for t in pattern.background)],
        [cell.length_a, cell.length_b, cell.length_c, instrument.calib_twotheta_offset],
        [
            value
            for a in structure.atom_sites
            for value in (
                *(() if a.label.value != "O3" else (a.fract_y,)),
                *(a.fract_x, a.fract_z, a.b_iso),
            )
        ],
        [peak.broad_gauss_u, peak.broad_gauss_v, peak.broad_gauss_w, peak.broad_lorentz_y],
    ]
    assert sum(map(len, stages)) == FREE_ALONE
    start = time.perf_counter()
    for stage in stages:
        for value in stage:
            value.free = True
        project.analysis.fit()
    seconds = time.perf_counter() - start
    found = pattern.data
    off = np.subtract(found.intensity_meas, found.intensity_calc) / found.intensity_meas_su
    return seconds, float((off**2).sum())


def easydiffraction_rows() -> list[Row]:
    """One fit of the neutron pattern by each."""
    name = f"PbSO4, neutrons alone, {FREE_ALONE} free values: four stages"
    try:
        import easydiffraction as ed
    except ImportError:
        return [Row(name, "easydiffraction, not installed", None, limit=1 / 8)]
    neutrons_by_eadem()
    theirs, mine = by_easydiffraction(ed), neutrons_by_eadem()
    against = f"easydiffraction {metadata.version('easydiffraction')}"
    return [
        Row(f"{name}: time", against, mine[0] / theirs[0], limit=1 / 8),
        Row(f"{name}: χ²", against, mine[1] / theirs[1], limit=1.0),
    ]


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
    found = [*derivatives(), *easydiffraction_rows()]
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
