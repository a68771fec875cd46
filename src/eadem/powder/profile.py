"""Sums of powder diffraction peaks, and their derivatives.

A peak is a pseudo-Voigt of Thompson, Cox & Hastings (J. Appl. Cryst. 20, 79, 1987) at the
points within a window about it. Lorentzian tails fill the window; Gaussians and asymmetry end
within a few widths, and are evaluated there alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eadem.errors import ShapeError, Unsupported
from eadem.powder._axial import sub_peaks
from eadem.powder._band import LEAST, Band
from eadem.powder._known import known

__all__ = ["peaks"]


def peaks(
    x: Tensor,
    position: Tensor,
    area: Tensor,
    gauss: Tensor,
    lorentz: Tensor,
    *,
    asymmetry: Tensor | None = None,
    width: float = 30.0,
    nodes: int = 6,
) -> Tensor:
    """The sum of peaks at the points x, (points,).

    Args:
        x: (points,) 2θ in degrees, ascending; spaced evenly or not, with gaps or without.
        position: (n,) the peaks' 2θ in degrees.
        area: (n,) their areas, in counts × degrees.
        gauss: (n,) the Gaussian full widths at half maximum Γ_G, degrees, not negative.
        lorentz: (n,) the Lorentzian ones Γ_L, not both zero.
        asymmetry: of axial divergence: (4,), the coefficients of Bérar & Baldinozzi
            (J. Appl. Cryst. 26, 128, 1993; FullProf's Asy1 to Asy4), which cost next to
            nothing; or (2,), S/L and D/L of Finger, Cox & Jephcoat (J. Appl. Cryst. 27, 892,
            1994), not both zero, which make 2·`nodes` peaks of each.
        width: how far from its position a peak is summed, in units of its FWHM, on each side
            (FullProf's Wdt), at least 8. Over the last fifth it falls to nothing; what is cut
            off is not made up for.
        nodes: points of the Gauss–Legendre quadrature on each of the two parts of the
            divergence of Finger, Cox & Jephcoat.

    A peak of area 1 is ηL + (1 − η)G, both of FWHM Γ, with
    Γ⁵ = Γ_G⁵ + 2.69269 Γ_G⁴Γ_L + 2.42843 Γ_G³Γ_L² + 4.47163 Γ_G²Γ_L³ + 0.07842 Γ_GΓ_L⁴ + Γ_L⁵
    and η = 1.36603 q − 0.47719 q² + 0.11116 q³, q = Γ_L/Γ. Bérar and Baldinozzi multiply it
    by 1 + (P₁F_a + P₂F_b)/tan θ + (P₃F_a + P₄F_b)/tan 2θ with F_a = 2z exp(−z²) and
    F_b = 2(2z² − 3)F_a; z is (position − x)/Γ as FullProf has it, so that P₁ > 0 raises the
    side of low angles.

    Within its window's last fifth, the Lorentzian ℓ = 1/(1 + 4z²) is multiplied by
    (ℓ − ℓ₁)/(ℓ₀ − ℓ₁), ℓ₀ and ℓ₁ its values at the ends of the fifth: windows move with the
    peaks, and a sum that jumps when a point enters one has no least χ².

    Derivatives by all but x: forward, batched over directions by `torch.func.vmap`, and
    backward; once, not twice. Where a number is not finite, all sums are NaN.

    Raises ShapeError for lengths that do not agree; Unsupported for x that does not ascend and
    for a width below 8.

    >>> x = torch.linspace(10, 30, 2001, dtype=torch.float64)
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> y = peaks(x, 20 * one, one, 0.1 * one, 0.0 * one)
    >>> round(float(torch.trapezoid(y, x)), 9), round(float(x[y.argmax()]), 9)
    (1.0, 20.0)
    """
    given = {"position": position, "area": area, "gauss": gauss, "lorentz": lorentz}
    for name, value in given.items():
        if value.shape != position.shape or value.dim() != 1:
            raise ShapeError(
                f"peaks need one {name} each: position has shape {tuple(position.shape)}, "
                f"{name} {tuple(value.shape)}; give both as (n,)"
            )
    if x.dim() != 1:
        raise ShapeError(f"x is one row of points, (points,), not {tuple(x.shape)}")
    if not width >= LEAST:
        raise Unsupported(
            f"width is {width}: Gaussian and asymmetry need {LEAST:g} FWHM on each side"
        )
    skewed = False
    skew = torch.zeros(4, dtype=position.dtype, device=position.device)
    if asymmetry is not None:
        if tuple(asymmetry.shape) == (4,):
            skew, skewed = asymmetry, True
        elif tuple(asymmetry.shape) == (2,):
            position, share = sub_peaks(position, asymmetry, nodes)
            many = position.shape[1]
            area = (area.unsqueeze(1) * share).reshape(-1)
            position = position.reshape(-1)
            gauss, lorentz = (v.repeat_interleave(many) for v in (gauss, lorentz))
        else:
            raise ShapeError(
                f"asymmetry has shape {tuple(asymmetry.shape)}; give (4,), the coefficients "
                "of Bérar and Baldinozzi, or (2,), S/L and D/L"
            )
    return known(
        Band(float(width), skewed), torch.cat([position, area, gauss, lorentz, skew]), x
    )
