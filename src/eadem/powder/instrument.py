"""Constant-wavelength diffractometers: where peaks lie, how wide they are, how strong.

Units and signs are FullProf's (J. Rodríguez-Carvajal, manual of 2001): degrees of 2θ, Γ full
widths at half maximum,

    2θ_observed = 2θ_Bragg + zero + displacement·cos θ + transparency·sin 2θ
    Γ_G² = u·tan²θ + v·tan θ + w,    Γ_L = x·tan θ + y/cos θ

with cos 2θ in place of cos θ for neutrons in Debye–Scherrer geometry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import ties
from eadem.bind.names import Sites
from eadem.errors import ShapeError, Unsupported
from eadem.powder._known import known
from eadem.powder._lines import Lines

__all__ = ["Instrument", "Peaks", "free", "freeze"]

#: Parameters of one value each.
SCALARS = ("zero", "displacement", "transparency", "u", "v", "w", "x", "y")


@dataclass(frozen=True, eq=False)
class Peaks:
    """Reflections as peaks, one row for each wavelength: all (wavelengths, reflections).

    `position` in degrees 2θ, `gauss` and `lorentz` full widths in degrees; `strength` is the
    factor by which |F|² is to be multiplied: Lorentz, polarisation and the wavelength's share;
    zero for a reflection that the wavelength does not reach.
    """

    position: Tensor
    gauss: Tensor
    lorentz: Tensor
    strength: Tensor


class Instrument(nn.Module):
    """A constant-wavelength diffractometer; see `Instrument.neutron` and `Instrument.xray`.

    Parameters (sites), all float64: `wavelength` (lines,) in Å; `zero`, `displacement`,
    `transparency` in degrees 2θ; `u`, `v`, `w` in degrees²; `x`, `y` in degrees; and
    `asymmetry`, (2,) S/L and D/L of Finger, Cox & Jephcoat (J. Appl. Cryst. 27, 892, 1994) or
    (4,) of Bérar & Baldinozzi (J. Appl. Cryst. 26, 128, 1993), where it is given.

    **What is given is refined**: a parameter that the constructor is not told is zero and
    does not require a gradient, nor does the wavelength; `free` and `freeze` change that by
    name.

    >>> d1a = Instrument.neutron(1.909, zero=-0.14, u=0.14, v=-0.41, w=0.39, y=0.09)
    >>> [name for name, p in d1a.named_parameters() if p.requires_grad]
    ['zero', 'u', 'v', 'w', 'y']
    >>> free(d1a, "wavelength")
    ('wavelength',)
    """

    wavelength: Tensor
    ratios: Tensor
    zero: Tensor
    displacement: Tensor
    transparency: Tensor
    u: Tensor
    v: Tensor
    w: Tensor
    x: Tensor
    y: Tensor
    asymmetry: Tensor

    def __init__(
        self,
        radiation: str,
        wavelengths: Sequence[float],
        ratios: Sequence[float] = (1.0,),
        *,
        polarisation: float = 0.0,
        asymmetry: Sequence[float] | None = None,
        dispersion: Mapping[str, tuple[float, float]] | None = None,
        **given: float | None,
    ) -> None:
        super().__init__()
        if len(wavelengths) != len(ratios):
            raise ShapeError(f"{len(wavelengths)} wavelengths need as many ratios: {ratios}")
        if not wavelengths or not all(math.isfinite(l) and l > 0 for l in wavelengths):
            raise Unsupported(f"wavelengths are positive numbers in Å, not {wavelengths}")
        unknown = sorted(set(given) - set(SCALARS))
        if unknown:
            raise TypeError(f"an Instrument has no {unknown}; its parameters are {SCALARS}")
        self.radiation, self.polarisation = radiation, float(polarisation)
        self.dispersion = dict(dispersion or {})
        self.register_buffer("ratios", _column(ratios), persistent=False)
        self.wavelength = nn.Parameter(_column(wavelengths), requires_grad=False)
        for name in SCALARS:
            value = given.get(name)
            p = nn.Parameter(_column(value or 0.0), requires_grad=value is not None)
            self.register_parameter(name, p)
        self.asymmetric = asymmetry is not None
        if asymmetry is not None:
            if len(asymmetry) not in (2, 4):
                raise ShapeError(
                    f"asymmetry is (S/L, D/L) or the four coefficients of Bérar & Baldinozzi, "
                    f"not {len(asymmetry)} numbers"
                )
            self.asymmetry = nn.Parameter(_column(asymmetry))

    @classmethod
    def neutron(cls, wavelength: float, **given: Any) -> Instrument:
        """Neutrons of one wavelength, in Debye–Scherrer geometry.

        `given`: values of `zero`, …, `y` and `asymmetry`.
        """
        return cls("neutron", (wavelength,), **given)

    @classmethod
    def xray(
        cls,
        wavelengths: Sequence[float] = (1.540562, 1.544398),
        ratio: float = 0.5,
        *,
        polarisation: float = 1.0,
        dispersion: Mapping[str, tuple[float, float]] | None = None,
        **given: Any,
    ) -> Instrument:
        """X-rays of one line or of a doublet, in Bragg–Brentano geometry; Cu Kα by default.

        Args:
            wavelengths: in Å, the stronger line first.
            ratio: the intensity of each further line over that of the first.
            polarisation: K of 1 + K·cos²2θ: 1 without a monochromator, cos²2θ_M with one
                before or behind the sample.
            dispersion: f′ and f″ in electrons by element, where gemmi's (Cromer & Liberman,
                at the first wavelength) are not wanted.
            given: values of `zero`, …, `y` and `asymmetry`.
        """
        ratios = (1.0, *(float(ratio) for _ in wavelengths[1:]))
        return cls(
            "xray",
            wavelengths,
            ratios,
            polarisation=polarisation,
            dispersion=dispersion,
            **given,
        )

    @property
    def nominal(self) -> float:
        """The first wavelength, in Å."""
        return float(self.wavelength.detach()[0])

    def peaks(
        self, inverse_d2: Tensor, strain: Tensor | float = 0.0, size: Tensor | float = 0.0
    ) -> Peaks:
        """Where and how reflections with these 1/d² (reflections,), in Å⁻², are seen.

        `strain` and `size`: what a phase adds to `x` and to `y`.
        """
        each = [getattr(self, name) for name in SCALARS]
        each[-2], each[-1] = each[-2] + strain, each[-1] + size
        w = torch.cat([inverse_d2, self.wavelength, torch.stack(each)])
        return Peaks(*known(self.lines, w, self.ratios))

    @property
    def lines(self) -> Lines:
        """What makes peaks of reflections."""
        xray = self.radiation == "xray"
        return Lines(xray, self.polarisation if xray else 0.0)


def _column(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def free(model: nn.Module, *names: str) -> tuple[str, ...]:
    """Let parameters be refined, by name or pattern ("*.instrument.zero"); their names.

    A site that is tied to another is refined with it. Raises NoSuchSite.
    """
    return _set(model, names, True)


def freeze(model: nn.Module, *names: str) -> tuple[str, ...]:
    """Keep parameters as they are, by name or pattern; their names. Raises NoSuchSite."""
    return _set(model, names, False)


def _set(model: nn.Module, names: Sequence[str], wanted: bool) -> tuple[str, ...]:
    sites = Sites(model)
    chosen = dict.fromkeys(name for text in names for name, _ in sites.find(text))
    own = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, None] = {}
    for tied in ties(model) if any(name not in own for name in chosen) else []:
        if any(site.split("[")[0] in chosen for site in tied.sites):
            for name, p in own.items():
                if any(p is theta for theta in tied.thetas):
                    found[name] = None
    found.update(dict.fromkeys(name for name in chosen if name in own))
    for name in found:
        own[name].requires_grad_(wanted)
    return tuple(name for name in own if name in found)
