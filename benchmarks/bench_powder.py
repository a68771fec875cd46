"""Powder patterns: the forward model and its Jacobian, for lead sulphate.

Both patterns of the PbSO4 round robin (2,909 and 5,681 points, 630 reflections), one structure
tied between them, 45 free values. "Forward" is both calculated patterns at other values, as a
fit evaluates them; the Jacobian is that of all residuals by all free values, in units of
forwards in the same run. `python benchmarks/bench_powder.py` prints the table alone.
"""

from __future__ import annotations

import statistics
import sys
from importlib import resources
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import eadem
from eadem.fits._setup import setup
from eadem.powder import Instrument, Pattern, Phase, free, read_counters, read_steps
from eadem.solvers.losses import Loss
from timing import Row, paired, row, seconds, table


def joint() -> eadem.Joint:
    """The two patterns with one structure, near the best values."""
    where = resources.files("eadem.data") / "pbso4"
    with resources.as_file(where) as folder:
        data = {
            "neutron": read_counters(folder / "neutron.dat.gz"),
            "xray": read_steps(folder / "xray.dat.gz"),
        }
        phases = {name: Phase.from_cif(folder / "start.cif.gz") for name in data}
    widths = {"u": 0.14, "v": -0.41, "w": 0.39, "y": 0.09}
    neutron = Instrument.neutron(1.912, zero=-0.14, **widths)
    widths = {"u": 0.05, "v": -0.08, "w": 0.035, "x": 0.0, "y": 0.06}
    xray = Instrument.xray(
        (1.54056, 1.5444), polarisation=0.8, displacement=0.0, asymmetry=(0.01,) * 4, **widths
    )
    outside = {"neutron": [(155.4, 180)], "xray": [(0, 16), (158, 180)]}
    model = eadem.Joint(
        {
            name: Pattern(data[name], instrument, phases[name], excluded=outside[name])
            for name, instrument in (("neutron", neutron), ("xray", xray))
        }
    )
    for name in ("cell", "xyz", "u_iso"):
        eadem.tie(model, f"*.phase.{name}", start="mean")
    free(model, "neutron.instrument.wavelength")
    return model


def rows(rounds: int = 15) -> list[Row]:
    """The benchmark's lines."""
    made = setup(joint(), Loss("linear", 1.0))
    problem, start = made.problem, made.problem.first

    def forward() -> object:
        return problem.at(made.theta)

    def jacobian() -> object:
        return problem.jacobians(start)

    jacobian()
    times = [seconds(forward) for _ in range(5 * rounds)]
    what = f"forward of both patterns, {problem.size:,} points"
    middle = statistics.median(times)
    units = paired(jacobian, forward, rounds, pairs=2, calls=1)
    free_values = int((~made.frozen).sum())
    return [
        Row(what, "time", middle, min(times), max(times), 0.010, "s"),
        row(f"Jacobian by all {free_values} free values", "one forward", units, 20.0),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(rows()))
