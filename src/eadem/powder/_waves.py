"""Sums over the atoms of a cell and their derivatives, compiled by numba, in float64.

One reflection at a time: what each number of the structure does to its sums is a short row, and
a direction is a product with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from eadem.powder._known import Array

__all__ = ["Waves"]

TWICE_PI_SQUARED = 2 * math.pi**2
DEGREE = math.pi / 180

_fast: Any = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "nsz", "arcp", "contract"},
)


@dataclass(frozen=True)
class Waves:
    """1/d² and Σ f·T·cos, Σ f·T·sin over the cell: (1 + parts, reflections).

    Of w: cell (6,), xyz (3·atoms,), weights (atoms,), U_iso of the first `isotropic` atoms, and
    β of the others (6·others,), where T = exp(−2π² β·(h², k², l², 2hk, 2hl, 2kl)).

    Constants: indices (n, 3); 2πhR (n, operations, 3); 2πh·t (n, operations); what the lattice
    multiplies by (n,); the kind of each atom (atoms,); `a`, `b` (kinds, 4), `c` and `imaginary`
    (kinds,) of form factors. `parts` are the cosine sums by f₀ + f′, by f″ where `dispersive`,
    and the sine sums likewise unless `centric`.
    """

    isotropic: int
    centric: bool
    dispersive: bool

    @property
    def parts(self) -> int:
        """How many sums there are."""
        return (2 if self.dispersive else 1) * (1 if self.centric else 2)

    def value(self, w: Array, *constants: Array) -> Array:
        return self.both(np.zeros((0, len(w))), w, *constants, sloped=False)[0]

    def push(self, v: Array, w: Array, *constants: Array) -> Array:
        return self.both(v, w, *constants)[1]

    def both(
        self, v: Array, w: Array, *constants: Array, sloped: bool = True
    ) -> tuple[Array, Array]:
        """`value` and `push`; the latter nothing unless `sloped`."""
        n = len(constants[0])
        value, pushed = np.empty((1 + self.parts, n)), np.zeros((len(v), 1 + self.parts, n))
        kind = (self.isotropic, self.centric, self.dispersive, sloped)
        _push(v, w, *constants, *kind, value, pushed)
        return value, pushed

    def pull(self, u: Array, w: Array, *constants: Array) -> Array:
        found = np.zeros((len(u), len(w)))
        kind = (self.isotropic, self.centric, self.dispersive)
        _pull(u.reshape(len(u), 1 + self.parts, -1), w, *constants, *kind, found)
        return found


@_fast
def _metric(w, metric):  # type: ignore[no-untyped-def]
    """The reciprocal metric tensor of a cell (Å⁻²), into metric (3, 3)."""
    a, b, c = w[0], w[1], w[2]
    ca, cb, cg = math.cos(w[3] * DEGREE), math.cos(w[4] * DEGREE), math.cos(w[5] * DEGREE)
    squared = 1 - ca * ca - cb * cb - cg * cg + 2 * ca * cb * cg
    metric[0, 0] = (1 - ca * ca) / (a * a * squared)
    metric[1, 1] = (1 - cb * cb) / (b * b * squared)
    metric[2, 2] = (1 - cg * cg) / (c * c * squared)
    metric[0, 1] = metric[1, 0] = (ca * cb - cg) / (a * b * squared)
    metric[0, 2] = metric[2, 0] = (ca * cg - cb) / (a * c * squared)
    metric[1, 2] = metric[2, 1] = (cb * cg - ca) / (b * c * squared)


@_fast
def _cell_row(w, metric, h, k, l, row):  # type: ignore[no-untyped-def]
    """1/d² = h·G*·h, and what the six of the cell do to it: dG* = −G*·dG·G*."""
    x = metric[0, 0] * h + metric[0, 1] * k + metric[0, 2] * l
    y = metric[1, 0] * h + metric[1, 1] * k + metric[1, 2] * l
    z = metric[2, 0] * h + metric[2, 1] * k + metric[2, 2] * l
    row[0], row[1], row[2] = -2 * x * h / w[0], -2 * y * k / w[1], -2 * z * l / w[2]
    row[3] = 2 * y * z * w[1] * w[2] * math.sin(w[3] * DEGREE) * DEGREE
    row[4] = 2 * x * z * w[0] * w[2] * math.sin(w[4] * DEGREE) * DEGREE
    row[5] = 2 * x * y * w[0] * w[1] * math.sin(w[5] * DEGREE) * DEGREE
    return x * h + y * k + z * l


@_fast
def _over_operations(w, x, beta, turned, phase, sloped, sums, slopes):  # type: ignore[no-untyped-def]
    """Σ over the operations of T·cos and T·sin of one atom, into sums (2,); and what x, y, z
    and six β do to both, into slopes (2, 9). `beta` is where β begins, or negative.
    """
    sums[:] = 0.0
    if sloped:
        slopes[:] = 0.0
    for o in range(len(phase)):
        h, k, l = turned[o, 0], turned[o, 1], turned[o, 2]
        angle = h * w[x] + k * w[x + 1] + l * w[x + 2] + phase[o]
        c, s = math.cos(angle), math.sin(angle)
        if beta >= 0:
            # indices here have a factor 2π: −2π²·β·hh is −½·β·(2πh)(2πh)
            power = h * (h * w[beta] + 2 * k * w[beta + 3] + 2 * l * w[beta + 4])
            power += k * (k * w[beta + 1] + 2 * l * w[beta + 5]) + l * l * w[beta + 2]
            damped = math.exp(-0.5 * power)
            c, s = damped * c, damped * s
        sums[0] += c
        sums[1] += s
        if sloped:
            for i in range(3):
                slopes[0, i] -= s * turned[o, i]
                slopes[1, i] += c * turned[o, i]
            if beta >= 0:
                pairs = (-0.5 * h * h, -0.5 * k * k, -0.5 * l * l, -h * k, -h * l, -k * l)
                for i in range(6):
                    slopes[0, 3 + i] += c * pairs[i]
                    slopes[1, 3 + i] += s * pairs[i]


@_fast
def _factor(q, a, b, c):  # type: ignore[no-untyped-def]
    """Σ a·exp(−b·q/4) + c and its derivative by q = 1/d²; `a` and `b` may be empty."""
    value, slope = c, 0.0
    for i in range(len(a)):
        each = a[i] * math.exp(-0.25 * b[i] * q)
        value += each
        slope -= 0.25 * b[i] * each
    return value, slope


@_fast
def _reflection(  # type: ignore[no-untyped-def]
    w, metric, hkl, turned, phase, lattice, place, a, b, c, imaginary, kind, real, work, rows
):
    """1/d² and the sums of one reflection, into real; and what every number of w does to them,
    into rows (1 + parts, k).
    """
    isotropic, centric, dispersive, sloped = kind
    sums, slopes, factors = work
    atoms = len(place)
    rows[:] = 0.0
    real[:] = 0.0
    q = _cell_row(w, metric, hkl[0], hkl[1], hkl[2], rows[0])
    real[0] = q
    for e in range(len(c)):
        factors[e, 0], factors[e, 1] = _factor(q, a[e], b[e], c[e])
    first_u = 6 + 4 * atoms
    for m in range(atoms):
        x, weight_at = 6 + 3 * m, 6 + 3 * atoms + m
        beta = -1 if m < isotropic else first_u + isotropic + 6 * (m - isotropic)
        _over_operations(w, x, beta, turned, phase, sloped, sums, slopes)
        u = w[first_u + m] if m < isotropic else 0.0
        damped = lattice * math.exp(-TWICE_PI_SQUARED * q * u)
        weight = w[weight_at] * damped
        part = 1
        for wave in range(1 if centric else 2):
            for anomalous in range(2 if dispersive else 1):
                f = imaginary[place[m]] if anomalous else factors[place[m], 0]
                f_slope = 0.0 if anomalous else factors[place[m], 1]
                real[part] += weight * f * sums[wave]
                if sloped:
                    row = rows[part]
                    for i in range(3):
                        row[x + i] = weight * f * slopes[wave, i]
                    row[weight_at] = damped * f * sums[wave]
                    by_q = weight * sums[wave] * (f_slope - TWICE_PI_SQUARED * u * f)
                    if beta >= 0:
                        for i in range(6):
                            row[beta + i] = weight * f * slopes[wave, 3 + i]
                    else:
                        row[first_u + m] = -TWICE_PI_SQUARED * q * weight * f * sums[wave]
                    for i in range(6):
                        row[i] += by_q * rows[0, i]
                part += 1


@_fast
def _push(  # type: ignore[no-untyped-def]
    v, w, hkl, turned, phase, lattice, place, a, b, c, imaginary,
    isotropic, centric, dispersive, sloped, value, found,
):  # fmt: skip
    """Values into value (1 + parts, n), derivatives along v (t, k) into found."""
    metric = np.empty((3, 3))
    _metric(w, metric)
    parts = value.shape[0]
    work = (np.empty(2), np.empty((2, 9)), np.empty((len(c), 2)))
    real, rows = np.empty(parts), np.empty((parts, len(w)))
    kind = (isotropic, centric, dispersive, sloped)
    moved = [j for j in range(len(v)) if np.any(v[j] != 0.0)]
    for n in range(len(hkl)):
        given = (hkl[n], turned[n], phase[n], lattice[n], place, a, b, c, imaginary)
        _reflection(w, metric, *given, kind, real, work, rows)
        for part in range(parts):
            value[part, n] = real[part]
            for j in moved:
                total = 0.0
                for i in range(len(w)):
                    total += rows[part, i] * v[j, i]
                found[j, part, n] = total


@_fast
def _pull(  # type: ignore[no-untyped-def]
    u, w, hkl, turned, phase, lattice, place, a, b, c, imaginary,
    isotropic, centric, dispersive, found,
):  # fmt: skip
    """The transpose of `_push`: u (t, 1 + parts, n) into found (t, k)."""
    metric = np.empty((3, 3))
    _metric(w, metric)
    parts = u.shape[1]
    work = (np.empty(2), np.empty((2, 9)), np.empty((len(c), 2)))
    real, rows = np.empty(parts), np.empty((parts, len(w)))
    kind = (isotropic, centric, dispersive, True)
    for n in range(len(hkl)):
        given = (hkl[n], turned[n], phase[n], lattice[n], place, a, b, c, imaginary)
        _reflection(w, metric, *given, kind, real, work, rows)
        for j in range(len(u)):
            for part in range(parts):
                for i in range(len(w)):
                    found[j, i] += u[j, part, n] * rows[part, i]
