"""The verdict on each thing that the two patterns may disagree about."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from eadem.fits import Fit
from eadem.recipes._pbso4_data import (
    WAVELENGTH,
)
from eadem.recipes._pbso4_numbers import (
    RIVAL,
)

__all__ = ["SUSPECTS", "entries", "places", "suspects"]

#: What the test lets go, one by one.
SUSPECTS: dict[str, str] = {
    "the neutrons' wavelength": WAVELENGTH,
    "a of the neutron pattern": "neutron.phase.cell[0]",
    "b of the neutron pattern": "neutron.phase.cell[1]",
    "c of the neutron pattern": "neutron.phase.cell[2]",
    "a, b and c of the neutron pattern": "neutron.phase.cell[:3]",
}


def suspects(fit: Fit, clusters: Tensor) -> list[dict[str, Any]]:
    """The score test of every suspect and of the rival: raw, and by blocks of points."""
    first = fit.score_test(release=WAVELENGTH, cluster=clusters)
    found = []
    for name, site in {**SUSPECTS, "the X-ray zero": RIVAL}.items():
        test = first.again(site)
        assert test.robust is not None
        changes = dict(zip(places(site), entries(test.changes, site), strict=True))
        found.append(
            {
                "name": name,
                "site": site,
                "df": test.df,
                "raw": {"statistic": test.statistic, "pvalue": test.pvalue},
                "robust": {"statistic": test.robust.statistic, "pvalue": test.robust.pvalue},
                "expected_change": changes,
            }
        )
    return found


def places(site: str) -> list[int]:
    """The places of a tensor that a suspect names.

    >>> places("cell[1]"), places("cell[:3]"), places("zero")
    ([1], [0, 1, 2], [0])
    """
    part = site.partition("[")[2].rstrip("]")
    return list(range(int(part[1:]))) if part.startswith(":") else [int(part or 0)]


def entries(values: dict[str, Tensor], site: str) -> list[float]:
    flat = values[site.partition("[")[0]].reshape(-1)
    return [float(flat[i]) for i in places(site)]
