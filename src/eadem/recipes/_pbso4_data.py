"""The two patterns of lead sulphate, and their model as it starts."""

from __future__ import annotations

import gzip
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

import eadem
from eadem.powder import Data, Instrument, Pattern, Phase, read_counters, read_steps

__all__ = [
    "BLOCK",
    "DISPERSION",
    "NOMINAL",
    "REACH",
    "SHARED",
    "STAGES",
    "THINNED",
    "WAVELENGTH",
    "blocks_of",
    "measured",
    "packed",
    "thinned",
]

NOMINAL = 1.909
WAVELENGTH = "neutron.instrument.wavelength"
#: What the two patterns have in common.
SHARED = ("cell", "xyz", "u_iso")
#: What each stage lets go, beside what those before it did.
STAGES: dict[str, tuple[str, ...]] = {
    "scale and background": ("*.scale", "*.background"),
    "cell and zero": (
        "*.phase.cell",
        "neutron.instrument.zero",
        "xray.instrument.displacement",
    ),
    "widths": (
        "neutron.instrument.u",
        "neutron.instrument.v",
        "*.instrument.w",
        "xray.instrument.x",
        "*.instrument.y",
    ),
    "everything": (
        "*.phase.xyz",
        "*.phase.u_iso",
        "neutron.instrument.displacement",
        "xray.instrument.asymmetry",
    ),
}
#: Points in a block of the sandwich, and how they are thinned when quick.
BLOCK, THINNED = 40, {"neutron": 2, "xray": 3}
#: Widths of a peak to which it reaches.
REACH = {"neutron": 30.0, "xray": 48.0}
#: f′ and f″ of Cu Kα₁ (D. T. Cromer & D. Liberman, J. Chem. Phys. 53, 1891, 1970).
DISPERSION = {"Pb": (-4.078, 8.501), "S": (0.333, 0.557), "O": (0.049, 0.032)}


def packed(name: str) -> Path:
    return Path(str(resources.files("eadem"))) / "data" / "pbso4" / name


def measured(quick: bool) -> dict[str, Pattern]:
    """Both patterns, each with a rough instrument and a starting structure of its own."""
    start = gzip.decompress(packed("start.cif.gz").read_bytes()).decode()
    neutrons = Instrument.neutron(
        NOMINAL, zero=-0.1, displacement=0.0, u=0.11, v=-0.28, w=0.27, y=0.02
    )
    xrays = Instrument.xray(
        (1.5405, 1.5443),
        0.5,
        polarisation=0.7,
        dispersion=DISPERSION,
        displacement=0.0,
        w=0.01,
        x=0.02,
        y=0.02,
        asymmetry=(0.0, 0.0, 0.0, 0.0),
    )
    data = {
        "neutron": read_counters(packed("neutron.dat.gz")),
        "xray": read_steps(packed("xray.dat.gz")),
    }
    kept = {"neutron": (10.0, 155.4), "xray": (16.0, 158.0)}
    return {
        name: Pattern(
            thinned(data[name], THINNED[name] if quick else 1),
            instrument,
            Phase.from_cif(start),
            excluded=[(0.0, kept[name][0] - 0.01), (kept[name][1] + 0.01, 180.0)],
            width=REACH[name],
        )
        for name, instrument in (("neutron", neutrons), ("xray", xrays))
    }


def thinned(data: Data, every: int) -> Data:
    return Data(data.x[::every], data.y[::every], data.sigma[::every])


def blocks_of(model: eadem.Joint, quick: bool) -> Tensor:
    """For every residual the block of neighbouring points that it belongs to."""
    ids, first = [], 0
    for name, block in patterns(model).items():
        size = max(1, BLOCK // (THINNED[name] if quick else 1))
        each = first + torch.arange(len(block.x)) // size
        ids.append(each)
        first = int(each[-1]) + 1
    return torch.cat(ids)


def patterns(model: eadem.Joint) -> dict[str, Pattern]:
    found = {}
    for name, block in model.blocks.items():
        assert isinstance(block, Pattern)
        found[name] = block
    return found
