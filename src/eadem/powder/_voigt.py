"""Pseudo-Voigt peaks from areas and widths, with derivatives by hand.

By hand, because as many small operations with as many directions each they would cost more
than the sum of the peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PseudoVoigt"]

#: The heights of a Lorentzian and of a Gaussian of area 1 and FWHM 1.
LORENTZIAN = 2 / math.pi
GAUSSIAN = 2 * math.sqrt(math.log(2) / math.pi)


@dataclass(frozen=True, eq=False)
class PseudoVoigt:
    """Peaks (n,): areas, FWHM and Lorentzian share η; `by`: the derivatives of these two by
    Γ_G, and by Γ_L.
    """

    area: Tensor
    fwhm: Tensor
    eta: Tensor
    by: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, area: Tensor, gauss: Tensor, lorentz: Tensor) -> PseudoVoigt:
        """The mixture of P. Thompson, D. E. Cox & J. B. Hastings, J. Appl. Cryst. 20, 79
        (1987).
        """
        g, l = gauss, lorentz
        one = torch.ones_like(g)
        factors = [one, 2.69269 * one, 2.42843 * one, 4.47163 * one, 0.07842 * one, one]
        powers_g, powers_l = [one], [one]
        for _ in range(5):
            powers_g.append(powers_g[-1] * g)
            powers_l.append(powers_l[-1] * l)
        fifth, slope_g, slope_l = torch.zeros_like(g), torch.zeros_like(g), torch.zeros_like(g)
        for k, c in enumerate(factors):  # c·g^(5 − k)·l^k
            fifth = fifth + c * powers_g[5 - k] * powers_l[k]
            if k < 5:
                slope_g = slope_g + c * (5 - k) * powers_g[4 - k] * powers_l[k]
            if k:
                slope_l = slope_l + c * k * powers_g[5 - k] * powers_l[k - 1]
        fwhm = fifth**0.2
        share = fwhm / (5 * fifth)
        wider_g, wider_l = share * slope_g, share * slope_l
        q = l / fwhm
        eta = q * (1.36603 + q * (-0.47719 + 0.11116 * q))
        steep = (1.36603 + q * (-2 * 0.47719 + 3 * 0.11116 * q)) / fwhm
        more_g, more_l = -steep * q * wider_g, steep * (1 - q * wider_l)
        return cls(area, fwhm, eta, ((wider_g, more_g), (wider_l, more_l)))

    @property
    def lorentz(self) -> Tensor:
        """The height of the Lorentzian parts."""
        return self.area * self.eta * LORENTZIAN / self.fwhm

    @property
    def gauss(self) -> Tensor:
        """The height of the Gaussian parts."""
        return self.area * (1 - self.eta) * GAUSSIAN / self.fwhm

    def push(self, area: Tensor, gauss: Tensor, lorentz: Tensor) -> tuple[Tensor, ...]:
        """What changes (n, t) of areas and widths do to FWHM and to both heights."""
        (wg, eg), (wl, el) = self._slopes()
        wider, more = wg * gauss + wl * lorentz, eg * gauss + el * lorentz
        by_area, by_eta, by_width = self._heights()
        return (
            wider,
            by_area[0] * area + by_eta[0] * more + by_width[0] * wider,
            by_area[1] * area + by_eta[1] * more + by_width[1] * wider,
        )

    def pull(self, fwhm: Tensor, lorentz: Tensor, gauss: Tensor) -> tuple[Tensor, ...]:
        """The transpose of `push`: (n, t) by areas, Γ_G and Γ_L."""
        (wg, eg), (wl, el) = self._slopes()
        by_area, by_eta, by_width = self._heights()
        wider = fwhm + by_width[0] * lorentz + by_width[1] * gauss
        more = by_eta[0] * lorentz + by_eta[1] * gauss
        return (
            by_area[0] * lorentz + by_area[1] * gauss,
            wg * wider + eg * more,
            wl * wider + el * more,
        )

    def _slopes(self) -> tuple[list[Tensor], list[Tensor]]:
        """The derivatives of FWHM and η, (n, 1), by Γ_G and by Γ_L."""
        by_gauss, by_lorentz = ([v.unsqueeze(1) for v in d] for d in self.by)
        return by_gauss, by_lorentz

    def _heights(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """The derivatives of both heights, (n, 1), by area, η and FWHM."""
        area, fwhm, eta = (v.unsqueeze(1) for v in (self.area, self.fwhm, self.eta))
        l, g = LORENTZIAN / fwhm, GAUSSIAN / fwhm
        tall = area * eta * l, area * (1 - eta) * g
        return (
            (eta * l, (1 - eta) * g),
            (area * l, -area * g),
            (-tall[0] / fwhm, -tall[1] / fwhm),
        )
