"""FullProf's two models of PbSO4, as its .pcr files have them, and what it calculated."""

import gzip
import math
from pathlib import Path

import numpy as np
import torch

from eadem.powder import Atom, Data, Instrument, Pattern, Phase

HERE = Path(__file__).parent / "fullprof"
NEUTRON = {
    "Pb": (0.18754, 0.25, 0.16709, 1.38058),
    "S": (0.06532, 0.25, 0.68401, 0.36192),
    "O1": (0.90822, 0.25, 0.59542, 2.03661),
    "O2": (0.19390, 0.25, 0.54359, 1.50417),
    "O3": (0.08114, 0.02713, 0.80863, 1.34347),
}
XRAY = {
    "Pb": (0.18822, 0.25, 0.16711, 1.86290),
    "S": (0.06306, 0.25, 0.68485, 1.34971),
    "O1": (0.90281, 0.25, 0.59724, 1.19713),
    "O2": (0.18443, 0.25, 0.54586, 2.56174),
    "O3": (0.08094, 0.02239, 0.81289, 1.37463),
}
#: f′ and f″ for Cu Kα of International Tables IV (1974), table 2.3.1, which FullProf has.
DISPERSION = {"Pb": (-4.818, 8.505), "S": (0.319, 0.557), "O": (0.047, 0.032)}
BACKGROUND = np.array(
    [
        (11.0, 210.0598),
        (15.0, 196.5971),
        (20.0, 196.3124),
        (30.0, 189.6129),
        (50.0, 207.9771),
        (70.0, 202.0884),
        (120.0, 246.0258),
        (153.0, 224.7353),
    ]
)
POLYNOMIAL = (121.279, 101.781, -95.426, -113.340, 185.296, -55.129)


def columns(name):
    """2θ, observed, calculated of a .prf file: float64 tensors."""
    text = gzip.decompress((HERE / f"{name}.prf.gz").read_bytes()).decode("latin-1")
    rows = [line.split() for line in text.splitlines()]
    kept = [[float(v) for v in r[:3]] for r in rows if len(r) == 4 and r[0][0].isdigit()]
    return [c.contiguous() for c in torch.tensor(kept, dtype=torch.float64).unbind(1)]


def phase(cell, atoms):
    """Pnma, with B = 8π²U."""
    return Phase(
        [*cell, 90.0, 90.0, 90.0],
        "P n m a",
        [Atom(k, k.rstrip("123"), v[:3], v[3] / (8 * math.pi**2)) for k, v in atoms.items()],
    )


def neutron():
    """The pattern at FullProf's values, its background, and FullProf's calculated one; up to
    155.4°, for in the last point FullProf has the background alone.
    """
    x, observed, calculated = (c[:-1] for c in columns("neutron"))
    base = torch.from_numpy(np.interp(x.numpy(), *BACKGROUND.T))
    widths = {"u": 0.139488, "v": -0.414074, "w": 0.388200, "x": 0.0, "y": 0.086383}
    pattern = Pattern(
        Data(x, observed),
        Instrument.neutron(1.912, zero=-0.14357, **widths),
        phase((8.477992, 5.396482, 6.957715), NEUTRON),
        background=0,
        baseline=base,
        scale=1.4679 / 100,  # FullProf's lengths are in 10⁻¹² cm
        width=30.0,
    )
    return pattern, base, calculated


def xray(asymmetry=(-0.41356, 0.0, 1.26777, 0.0), dispersion=DISPERSION):
    """The same for X-rays, up to 154°, where FullProf's pattern ends."""
    x, observed, calculated = columns("xray")
    kept = x < 154
    x, observed, calculated = x[kept], observed[kept], calculated[kept]
    base = sum(c * (x / 50 - 1) ** k for k, c in enumerate(POLYNOMIAL))
    widths = {"u": 0.048457, "v": -0.083053, "w": 0.035188, "x": 0.0, "y": 0.058360}
    instrument = Instrument.xray(
        (1.54056, 1.5444),
        0.5,
        polarisation=0.8,
        dispersion=dispersion,
        zero=0.00363,
        asymmetry=asymmetry,
        **widths,
    )
    pattern = Pattern(
        Data(x, observed),
        instrument,
        phase((8.485899, 5.402259, 6.964586), XRAY),
        background=0,
        baseline=base,
        scale=0.4703142e-3,
        width=48.0,
    )
    return pattern, base, calculated
