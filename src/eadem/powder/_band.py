"""Sums of pseudo-Voigt peaks and their derivatives, compiled by numba, in float64.

Per peak, the points of its window are a run of x: what one number of the peak does to them is a
row, and a direction is a sum of such rows. So the derivative along any number of directions
takes the exponentials once, and a peak that a direction leaves as it is costs that direction
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from eadem.errors import Unsupported
from eadem.powder._known import Array

__all__ = ["LEAST", "Band"]

#: |x − position|/FWHM beyond which exp(−4 log 2·z²), or exp(−z²), is nothing in float64.
GAUSS_ENDS, SKEW_ENDS = 4.0, 5.9
#: Where a window begins to end, as a share of it; and the least width, beyond all cores.
TAPER, LEAST = 0.8, 8.0
#: The heights of a Lorentzian and of a Gaussian of area 1 and FWHM 1.
LORENTZIAN, GAUSSIAN = 2 / math.pi, 2 * math.sqrt(math.log(2) / math.pi)
LOG2 = math.log(2.0)
#: log 2 as a number of few bits and what is left of it.
LOG2_HIGH, LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
#: 2⁻ᵏ, as far as cores reach.
HALVES = 2.0 ** -np.arange(160.0)

# What is not finite must be seen: neither "nnan" nor "ninf", nor any where that is asked.
_fast: Any = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "nsz", "arcp", "contract"},
)
_exact: Any = njit(cache=True, nogil=True, error_model="numpy")
_inline: Any = njit(inline="always", error_model="numpy")


@dataclass(frozen=True)
class Band:
    """The sum of n peaks at the points x, (points,).

    Of w: n positions, areas, Γ_G, Γ_L, and the four coefficients of Bérar and Baldinozzi,
    which count where it is `skewed`; constant: x. `width`: where windows end, in FWHM.
    """

    width: float
    skewed: bool

    def value(self, w: Array, x: Array) -> Array:
        if not _ascends(x):
            raise Unsupported("x does not ascend; sort the points of a pattern by 2θ")
        found = np.zeros(len(x))
        _value(x, w[:-4].reshape(4, -1), w[-4:], self.width, self.skewed, found)
        return found

    def push(self, v: Array, w: Array, x: Array) -> Array:
        found = np.zeros((len(v), len(x)))
        _push(x, w[:-4].reshape(4, -1), w[-4:], v, self.width, self.skewed, found)
        return found

    def pull(self, u: Array, w: Array, x: Array) -> Array:
        found = np.zeros((len(u), len(w)))
        _pull(x, w[:-4].reshape(4, -1), w[-4:], u, self.width, self.skewed, found)
        return found


@_inline
def _decay(t):  # type: ignore[no-untyped-def]
    """exp(−t) for 0 ≤ t < 110 to the last bit or two: math.exp would keep a loop from running
    on vectors.
    """
    k = math.floor(t * (1 / LOG2) + 0.5)
    r = (k * LOG2_HIGH - t) + k * LOG2_LOW
    q = 1 / 479001600 * r + 1 / 39916800
    q = q * r + 1 / 3628800
    q = q * r + 1 / 362880
    q = q * r + 1 / 40320
    q = q * r + 1 / 5040
    q = q * r + 1 / 720
    q = q * r + 1 / 120
    q = q * r + 1 / 24
    q = q * r + 1 / 6
    q = q * r + 0.5
    return ((q * r + 1) * r + 1) * HALVES[int(k)]


@_fast
def _ascends(x):  # type: ignore[no-untyped-def]
    """Whether every point is beyond the one before."""
    wrong = 0
    for i in range(1, len(x)):
        wrong += not x[i] > x[i - 1]
    return wrong == 0


@_exact
def _voigt(p, k):  # type: ignore[no-untyped-def]
    """FWHM and η of peak k, and the derivatives of both by Γ_G and by Γ_L (P. Thompson,
    D. E. Cox & J. B. Hastings, J. Appl. Cryst. 20, 79, 1987); a FWHM of zero where a number is
    not finite.
    """
    g, l = p[2, k], p[3, k]
    size = abs(p[0, k]) + abs(p[1, k]) + abs(g) + abs(l)
    a, b, c, d = 2.69269, 2.42843, 4.47163, 0.07842
    gg, ll = g * g, l * l
    fifth = gg * gg * (g + a * l) + gg * ll * (b * g + c * l) + ll * ll * (d * g + l)
    if not (size < np.inf and 0 < fifth < np.inf):
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    fwhm = fifth**0.2
    by_g = gg * (5 * gg + 4 * a * g * l + 3 * b * ll) + ll * l * (2 * c * g + d * l)
    by_l = gg * g * (a * g + 2 * b * l) + ll * (3 * c * gg + 4 * d * g * l + 5 * ll)
    share = fwhm / (5 * fifth)
    wide_g, wide_l = share * by_g, share * by_l
    q = l / fwhm
    eta = q * (1.36603 + q * (-0.47719 + 0.11116 * q))
    steep = (1.36603 + q * (-2 * 0.47719 + 3 * 0.11116 * q)) / fwhm
    return fwhm, eta, wide_g, wide_l, -steep * q * wide_g, steep * (1 - q * wide_l)


@_fast
def _between(x, at, reach):  # type: ignore[no-untyped-def]
    """The first and the last point, and one more, that are less than `reach` from `at`."""
    return np.searchsorted(x, at - reach, "right"), np.searchsorted(x, at + reach, "left")


@_fast
def _tail(x, at, scale, tall, found):  # type: ignore[no-untyped-def]
    """Add a Lorentzian of this height."""
    for i in range(len(x)):
        z = (x[i] - at) * scale
        found[i] += tall / (1 + z * z)


@_fast
def _ending(x, at, scale, tall, last, fall, found):  # type: ignore[no-untyped-def]
    """Add a Lorentzian where its window ends."""
    for i in range(len(x)):
        z = (x[i] - at) * scale
        bell = 1 / (1 + z * z)
        found[i] += tall / fall * bell * min(max(bell - last, 0.0), fall)


@_fast
def _bell(x, at, scale, dense, found):  # type: ignore[no-untyped-def]
    """Add a Gaussian of this height."""
    for i in range(len(x)):
        z = (x[i] - at) * scale
        found[i] += dense * _decay(z * z * LOG2)


@_fast
def _skewed(x, at, scale, tall, dense, odd, cubic, found):  # type: ignore[no-untyped-def]
    """Add a Gaussian, and (Lorentzian + Gaussian) × asymmetry."""
    for i in range(len(x)):
        z = (x[i] - at) * scale
        square = z * z
        high = dense * _decay(square * LOG2)
        skew = _decay(square * 0.25) * z * (odd + (square - 6) * cubic)
        found[i] += high + (tall / (1 + square) + high) * skew


@_exact
def _two_sided(at, skew):  # type: ignore[no-untyped-def]
    """What F_a and F_b are multiplied by at 2θ, from P₁ to P₄: −(P₁/tan θ + P₃/tan 2θ), and
    −(P₂/tan θ + P₄/tan 2θ) (Bérar & Baldinozzi, J. Appl. Cryst. 26, 128, 1993), then
    −1/tan θ and −1/tan 2θ themselves and the derivatives of the former two by 2θ. Both
    functions are odd: the sign is that of x − position, where FullProf has position − x.
    """
    theta = at * (math.pi / 360)
    single, double = math.sin(theta), math.sin(2 * theta)
    f, g = -math.cos(theta) / single, -math.cos(2 * theta) / double
    f_slope, g_slope = math.pi / 360 / single**2, math.pi / 180 / double**2
    return (
        (skew[0] * f + skew[2] * g, skew[1] * f + skew[3] * g),
        (f, g),
        (skew[0] * f_slope + skew[2] * g_slope, skew[1] * f_slope + skew[3] * g_slope),
    )


@_exact
def _sound(p, skew):  # type: ignore[no-untyped-def]
    """Whether every number is finite and every FWHM positive."""
    wrong = 0 if np.abs(skew).sum() < np.inf else 1
    for k in range(p.shape[1]):
        wrong += _voigt(p, k)[0] == 0.0
    return wrong == 0


@_fast
def _value(x, p, skew, width, skewed, found):  # type: ignore[no-untyped-def]
    """Add the peaks to found (points,); NaN where not all is sound."""
    if not _sound(p, skew):
        found[:] = np.nan
        return
    last = 1 / (1 + 4 * width**2)
    fall = 1 / (1 + 4 * (TAPER * width) ** 2) - last
    for k in range(p.shape[1]):
        if p[1, k] == 0.0:
            continue
        fwhm, eta = _voigt(p, k)[:2]
        at, scale = p[0, k], 2 / fwhm
        tall = p[1, k] * eta * LORENTZIAN / fwhm
        dense = p[1, k] * (1 - eta) * GAUSSIAN / fwhm
        if tall != 0.0:
            a, d = _between(x, at, width * fwhm)
            b, c = _between(x, at, TAPER * width * fwhm)
            _ending(x[a:b], at, scale, tall, last, fall, found[a:b])
            _tail(x[b:c], at, scale, tall, found[b:c])
            _ending(x[c:d], at, scale, tall, last, fall, found[c:d])
        if skewed:
            odd, cubic = _two_sided(at, skew)[0]
            a, b = _between(x, at, SKEW_ENDS * fwhm)
            _skewed(x[a:b], at, scale, tall, dense, odd, cubic, found[a:b])
        else:
            a, b = _between(x, at, GAUSS_ENDS * fwhm)
            _bell(x[a:b], at, scale, dense, found[a:b])


@_fast
def _peak(p, k, odd, cubic):  # type: ignore[no-untyped-def]
    """Of peak k: position, 2/FWHM, the heights of its Lorentzian and Gaussian, the two
    coefficients of its asymmetry; what the heights are by area, by Γ_G and by Γ_L; and what
    −z/FWHM is by the two widths.
    """
    fwhm, eta, wide_g, wide_l, eta_g, eta_l = _voigt(p, k)
    area = p[1, k]
    by_tall, by_dense = LORENTZIAN / fwhm, GAUSSIAN / fwhm
    tall, dense = area * eta * by_tall, area * (1 - eta) * by_dense
    more_g, more_l = wide_g / fwhm, wide_l / fwhm
    tall_g = area * by_tall * eta_g - tall * more_g
    tall_l = area * by_tall * eta_l - tall * more_l
    dense_g = -area * by_dense * eta_g - dense * more_g
    dense_l = -area * by_dense * eta_l - dense * more_l
    return (
        (p[0, k], 2 / fwhm, tall, dense, odd, cubic),
        (eta * by_tall, tall_g, tall_l),
        ((1 - eta) * by_dense, dense_g, dense_l),
        (-more_g, -more_l),
    )


@_fast
def _tail_rows(x, peak, tall_by, z_by, r0, r1, r2, r3):  # type: ignore[no-untyped-def]
    """What position, area, Γ_G and Γ_L do to a Lorentzian."""
    at, scale, tall = peak[0], peak[1], peak[2]
    for i in range(len(x)):
        z = (x[i] - at) * scale
        bell = 1 / (1 + z * z)
        slope = -2 * tall * z * bell * bell
        r0[i] = -scale * slope
        r1[i] = tall_by[0] * bell
        r2[i] = tall_by[1] * bell + z_by[0] * slope * z
        r3[i] = tall_by[2] * bell + z_by[1] * slope * z


@_fast
def _ending_rows(x, peak, tall_by, z_by, last, fall, r0, r1, r2, r3):  # type: ignore[no-untyped-def]
    """The same where the window ends."""
    at, scale, tall = peak[0], peak[1], peak[2]
    for i in range(len(x)):
        z = (x[i] - at) * scale
        bell = 1 / (1 + z * z)
        level = min(max(bell - last, 0.0), fall)
        falling = bell if 0.0 < level < fall else 0.0
        slope = -2 * tall / fall * z * bell * bell * (level + falling)
        bell = bell * level / fall
        r0[i] = -scale * slope
        r1[i] = tall_by[0] * bell
        r2[i] = tall_by[1] * bell + z_by[0] * slope * z
        r3[i] = tall_by[2] * bell + z_by[1] * slope * z


@_fast
def _bell_rows(x, peak, dense_by, z_by, r0, r1, r2, r3):  # type: ignore[no-untyped-def]
    """What they do to a Gaussian, added."""
    at, scale, dense = peak[0], peak[1], peak[3]
    for i in range(len(x)):
        z = (x[i] - at) * scale
        gauss = _decay(z * z * LOG2)
        slope = -2 * LOG2 * z * dense * gauss
        r0[i] -= scale * slope
        r1[i] += dense_by[0] * gauss
        r2[i] += dense_by[1] * gauss + z_by[0] * slope * z
        r3[i] += dense_by[2] * gauss + z_by[1] * slope * z


@_fast
def _skewed_rows(x, peak, tall_by, dense_by, z_by, r0, r1, r2, r3, r4, r5):  # type: ignore[no-untyped-def]
    """What they do to a Gaussian, and to (Lorentzian + Gaussian) × asymmetry, added; and what
    the coefficients of the asymmetry do.
    """
    at, scale, tall, dense, odd, cubic = peak
    for i in range(len(x)):
        z = (x[i] - at) * scale
        square = z * z
        bell = 1 / (1 + square)
        gauss = _decay(square * LOG2)
        fade = _decay(square * 0.25)
        one, ratio = fade * z, square - 6
        skew = one * (odd + cubic * ratio)
        both = tall * bell + dense * gauss
        one_slope = fade * (1 - 0.5 * square)
        tilt = odd * one_slope + cubic * (ratio * one_slope + 2 * z * one)
        slope = -2 * LOG2 * z * dense * gauss
        slope += (slope - 2 * z * tall * bell * bell) * skew + both * tilt
        bell, gauss = bell * skew, gauss * (1 + skew)
        r0[i] -= scale * slope
        r1[i] += tall_by[0] * bell + dense_by[0] * gauss
        r2[i] += tall_by[1] * bell + dense_by[1] * gauss + z_by[0] * slope * z
        r3[i] += tall_by[2] * bell + dense_by[2] * gauss + z_by[1] * slope * z
        r4[i] = one * both
        r5[i] = one * ratio * both


@_fast
def _rows(x, p, skew, k, width, skewed, row):  # type: ignore[no-untyped-def]
    """What the four numbers of peak k do to the points, and what F_a and F_b do, in the rows of
    row (6, points). Returns the ends of its window, and those of its core, which are all that
    the last two rows have, and −1/tan θ and −1/tan 2θ.
    """
    odd = cubic = odd_slope = cubic_slope = f = g = 0.0
    if skewed:
        (odd, cubic), (f, g), (odd_slope, cubic_slope) = _two_sided(p[0, k], skew)
    peak, tall_by, dense_by, z_by = _peak(p, k, odd, cubic)
    last = 1 / (1 + 4 * width**2)
    fall = 1 / (1 + 4 * (TAPER * width) ** 2) - last
    at, fwhm = peak[0], 2 / peak[1]
    first, end = _between(x, at, width * fwhm)
    b, c = _between(x, at, TAPER * width * fwhm)
    r0, r1, r2, r3 = row[0], row[1], row[2], row[3]
    for i, j in ((first, b), (c, end)):
        each = (r0[i:j], r1[i:j], r2[i:j], r3[i:j])
        _ending_rows(x[i:j], peak, tall_by, z_by, last, fall, *each)
    _tail_rows(x[b:c], peak, tall_by, z_by, r0[b:c], r1[b:c], r2[b:c], r3[b:c])
    a, b = _between(x, at, (SKEW_ENDS if skewed else GAUSS_ENDS) * fwhm)
    each = (r0[a:b], r1[a:b], r2[a:b], r3[a:b])
    if skewed:
        r4, r5 = row[4, a:b], row[5, a:b]
        _skewed_rows(x[a:b], peak, tall_by, dense_by, z_by, *each, r4, r5)
        _plus_two(odd_slope, cubic_slope, r4, r5, r0[a:b])
    else:
        _bell_rows(x[a:b], peak, dense_by, z_by, *each)
        b = a
    return first, end, a, b, f, g


@_fast
def _plus(a, row, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += a * row[i]


@_fast
def _plus_two(a, b, row_a, row_b, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] += a * row_a[i] + b * row_b[i]


@_fast
def _push(x, p, skew, v, width, skewed, found):  # type: ignore[no-untyped-def]
    """Add the derivatives along v (t, 4n + 4) to found (t, points)."""
    if not _sound(p, skew):
        found[:] = np.nan
        return
    n = p.shape[1]
    row = np.empty((6, len(x)))
    for k in range(n):
        first, end, low, high, f, g = _rows(x, p, skew, k, width, skewed, row)
        r0, r1 = row[0, first:end], row[1, first:end]
        r2, r3 = row[2, first:end], row[3, first:end]
        r4, r5 = row[4, low:high], row[5, low:high]
        for j in range(len(v)):
            out = found[j, first:end]
            at, area, gauss, lorentz = v[j, k], v[j, n + k], v[j, 2 * n + k], v[j, 3 * n + k]
            if at != 0.0:
                _plus_two(at, area, r0, r1, out)
            elif area != 0.0:
                _plus(area, r1, out)
            if gauss != 0.0 or lorentz != 0.0:
                _plus_two(gauss, lorentz, r2, r3, out)
            odd = f * v[j, 4 * n] + g * v[j, 4 * n + 2]
            cubic = f * v[j, 4 * n + 1] + g * v[j, 4 * n + 3]
            if odd != 0.0 or cubic != 0.0:
                _plus_two(odd, cubic, r4, r5, found[j, low:high])


@_fast
def _dot(row, u):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(u)):
        total += row[i] * u[i]
    return total


@_fast
def _pull(x, p, skew, u, width, skewed, found):  # type: ignore[no-untyped-def]
    """The transpose of `_push`: u (t, points) into found (t, 4n + 4)."""
    if not _sound(p, skew):
        found[:] = np.nan
        return
    n = p.shape[1]
    row = np.empty((6, len(x)))
    for k in range(n):
        first, end, low, high, f, g = _rows(x, p, skew, k, width, skewed, row)
        for j in range(len(u)):
            for m in range(4):
                found[j, m * n + k] = _dot(row[m, first:end], u[j, first:end])
            odd = _dot(row[4, low:high], u[j, low:high])
            cubic = _dot(row[5, low:high], u[j, low:high])
            found[j, 4 * n] += f * odd
            found[j, 4 * n + 1] += f * cubic
            found[j, 4 * n + 2] += g * odd
            found[j, 4 * n + 3] += g * cubic
