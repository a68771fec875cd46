"""What a diffractometer makes of reflections, and the derivatives, compiled by numba."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from eadem.powder._known import Array

__all__ = ["Lines"]

#: sin θ up to which a reflection counts as reached (2θ = 177.7°), and where one is kept that
#: is not: without strength, and not as wide as at the end, where it would cost time.
REACHED, ELSEWHERE = 0.9998, 0.5
#: The smallest Γ_G², in degrees²: widths of a thousandth of a degree.
NARROWEST = 1e-6
TURN = 180 / math.pi
#: The numbers of an instrument beside its wavelengths: zero, displacement, transparency, u, v,
#: w, x, y.
SCALARS = 8

_exact: Any = njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True)
class Lines:
    """Position, Γ_G, Γ_L and strength, (4, wavelengths, reflections).

    Of w: 1/d² (reflections,), wavelengths (lines,), and zero, displacement, transparency, u, v,
    w, x, y; constants: the lines' ratios. `polarisation`: K of 1 + K·cos²2θ; `focusing`:
    whether a displacement goes with cos θ, not with cos 2θ.
    """

    focusing: bool
    polarisation: float

    def value(self, w: Array, ratios: Array) -> Array:
        found = np.empty((4, len(ratios), len(w) - len(ratios) - SCALARS))
        _value(w, ratios, self.focusing, self.polarisation, found)
        return found

    def push(self, v: Array, w: Array, ratios: Array) -> Array:
        found = np.zeros((len(v), 4, len(ratios), len(w) - len(ratios) - SCALARS))
        _push(v, w, ratios, self.focusing, self.polarisation, found)
        return found

    def pull(self, u: Array, w: Array, ratios: Array) -> Array:
        found = np.zeros((len(u), len(w)))
        each = u.reshape(len(u), 4, len(ratios), -1)
        _pull(each, w, ratios, self.focusing, self.polarisation, found)
        return found


@_exact
def _seen(w, line, n, lines, ratio, focusing, polarisation, value, rows):  # type: ignore[no-untyped-def]
    """One reflection by one line: four numbers, and what 1/d², wavelength and the eight do to
    them, into rows (4, 10).
    """
    count = len(w) - lines - SCALARS
    wavelength, first = w[count + line], count + lines
    rows[:] = 0.0
    sine = 0.5 * wavelength * math.sqrt(w[n])
    reached = sine < REACHED
    if not reached:
        sine = ELSEWHERE
    cosine = math.sqrt(1 - sine * sine)
    tangent = sine / cosine
    sine2, cosine2 = 2 * sine * cosine, 1 - 2 * sine * sine
    zero, displacement, transparency = w[first], w[first + 1], w[first + 2]
    a, b, c, x, y = w[first + 3], w[first + 4], w[first + 5], w[first + 6], w[first + 7]
    shifted = cosine if focusing else cosine2
    value[0] = 2 * TURN * math.asin(sine) + zero + displacement * shifted
    value[0] += transparency * sine2
    shifted_slope = -tangent if focusing else -4 * sine
    slope = 2 * TURN / cosine + displacement * shifted_slope
    slope += transparency * 2 * cosine2 / cosine
    rows[0, 2], rows[0, 3], rows[0, 4] = 1.0, shifted, sine2
    tangent_slope = 1 / (cosine * cosine * cosine)
    squared = (a * tangent + b) * tangent + c
    value[1] = math.sqrt(NARROWEST if squared < NARROWEST else squared)
    gauss_slope = 0.0
    if not squared < NARROWEST:
        half = 0.5 / value[1]
        rows[1, 5], rows[1, 6], rows[1, 7] = half * tangent * tangent, half * tangent, half
        gauss_slope = half * (2 * a * tangent + b) * tangent_slope
    lorentz = x * tangent + y / cosine
    value[2] = 0.0 if lorentz < 0 else lorentz
    lorentz_slope = 0.0
    if not lorentz < 0:
        rows[2, 8], rows[2, 9] = tangent, 1 / cosine
        lorentz_slope = (x + y * sine) * tangent_slope
    value[3] = 0.0
    if reached:
        lorentz_factor = ratio / (2 * sine * sine * cosine)
        polarised = 1 + polarisation * cosine2 * cosine2
        value[3] = lorentz_factor * polarised
        strength_slope = value[3] * (-2 / sine + sine / (cosine * cosine))
        strength_slope -= 8 * lorentz_factor * polarisation * cosine2 * sine
        slopes = (slope, gauss_slope, lorentz_slope, strength_slope)
        for i in range(4):
            rows[i, 0] = slopes[i] * sine / (2 * w[n])
            rows[i, 1] = slopes[i] * sine / wavelength


@_exact
def _value(w, ratios, focusing, polarisation, found):  # type: ignore[no-untyped-def]
    rows, value = np.empty((4, 10)), np.empty(4)
    for line in range(len(ratios)):
        for n in range(found.shape[2]):
            given = (len(ratios), ratios[line], focusing, polarisation, value, rows)
            _seen(w, line, n, *given)
            for i in range(4):
                found[i, line, n] = value[i]


@_exact
def _push(v, w, ratios, focusing, polarisation, found):  # type: ignore[no-untyped-def]
    rows, value = np.empty((4, 10)), np.empty(4)
    lines, count = len(ratios), found.shape[3]
    moved = [j for j in range(len(v)) if np.any(v[j] != 0.0)]
    for line in range(lines):
        for n in range(count):
            given = (lines, ratios[line], focusing, polarisation, value, rows)
            _seen(w, line, n, *given)
            for j in moved:
                for i in range(4):
                    total = rows[i, 0] * v[j, n] + rows[i, 1] * v[j, count + line]
                    for k in range(SCALARS):
                        total += rows[i, 2 + k] * v[j, count + lines + k]
                    found[j, i, line, n] = total


@_exact
def _pull(u, w, ratios, focusing, polarisation, found):  # type: ignore[no-untyped-def]
    rows, value = np.empty((4, 10)), np.empty(4)
    lines, count = len(ratios), u.shape[3]
    for line in range(lines):
        for n in range(count):
            given = (lines, ratios[line], focusing, polarisation, value, rows)
            _seen(w, line, n, *given)
            for j in range(len(u)):
                for i in range(4):
                    at = u[j, i, line, n]
                    found[j, n] += rows[i, 0] * at
                    found[j, count + line] += rows[i, 1] * at
                    for k in range(SCALARS):
                        found[j, count + lines + k] += rows[i, 2 + k] * at
