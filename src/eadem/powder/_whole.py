"""A whole powder pattern as one function with compiled derivatives: structure to residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eadem.powder._band import Band
from eadem.powder._known import Array
from eadem.powder._lines import SCALARS, Lines
from eadem.powder._waves import Waves

__all__ = ["Whole"]

#: Numbers of a phase beside its structure: scale, strain, size. Coefficients of asymmetry.
OWN, SKEW = 3, 4
#: Constants before those of the phases, and for each phase: multiplicity, and those of `Waves`.
COMMON, EACH = 5, 10


@dataclass(frozen=True)
class Whole:
    """(observed − calculated)/σ, (points,): `Waves`, `Lines` and `Band` one after another.

    Of w: for each phase the numbers of its `Waves` (`sizes` of them), scale, strain and size;
    then wavelengths, zero, displacement, transparency, u, v, w, x, y, the four coefficients of
    asymmetry, and those of the background. Constants: the lines' ratios, x, what is observed
    less the baseline, σ, and the background's polynomials (points, coefficients); and for each
    phase multiplicities and the constants of `Waves`.
    """

    waves: tuple[Waves, ...]
    sizes: tuple[int, ...]
    lines: Lines
    band: Band

    def value(self, w: Array, *constants: Array) -> Array:
        parts = self._parts(w, constants)
        seen = [_Seen.of(self, i, parts, constants) for i in range(len(self.waves))]
        _, x, observed, sigma, chebyshev = constants[:COMMON]
        found = self.band.value(_joined([s.peaks for s in seen], parts.skew), x)
        found += chebyshev @ parts.background
        return (observed - found) / sigma

    def push(self, v: Array, w: Array, *constants: Array) -> Array:
        parts, moved = self._parts(w, constants), self._parts(v, constants)
        seen = [_Seen.of(self, i, parts, constants, moved) for i in range(len(self.waves))]
        _, x, _, sigma, chebyshev = constants[:COMMON]
        peaks = _joined([s.peaks for s in seen], parts.skew)
        pushed = _joined([s.push(moved) for s in seen], moved.skew)
        found = self.band.push(pushed, peaks, x)
        found += moved.background @ chebyshev.T
        found *= -1 / sigma
        return found

    def pull(self, u: Array, w: Array, *constants: Array) -> Array:
        parts = self._parts(w, constants)
        seen = [_Seen.of(self, i, parts, constants) for i in range(len(self.waves))]
        _, x, _, sigma, chebyshev = constants[:COMMON]
        u = u.reshape(len(u), -1) * (-1 / sigma)
        peaks = _joined([s.peaks for s in seen], parts.skew)
        pulled = self.band.pull(u, peaks, x)
        each = pulled[:, :-SKEW].reshape(len(u), 4, -1)
        ends = np.cumsum([s.peaks.shape[1] for s in seen])[:-1]
        found, instrument = [], 0.0
        for s, part in zip(seen, np.split(each, ends, 2), strict=True):
            own, common = s.pull(part)
            found.append(own)
            instrument = instrument + common
        return np.concatenate([*found, instrument, pulled[:, -SKEW:], u @ chebyshev], 1)

    def _parts(self, w: Array, constants: Sequence[Array]) -> _Parts:
        """w, or directions (t, k), by what its numbers belong to."""
        sizes = [n + OWN for n in self.sizes]
        cuts = np.cumsum([*sizes, len(constants[0]), SCALARS, SKEW])
        *phases, lines, scalars, skew, background = np.split(w, cuts, -1)
        return _Parts(phases, lines, scalars, skew, background)


@dataclass(frozen=True, eq=False)
class _Parts:
    """(…, numbers) each."""

    phases: list[Array]
    lines: Array
    scalars: Array
    skew: Array
    background: Array

    def of(self, i: int) -> tuple[Array, Array, Array]:
        """A phase's structure and scale (…, 1), and the instrument as the phase has it."""
        structure, own = self.phases[i][..., :-OWN], self.phases[i][..., -OWN:]
        scalars = self.scalars.copy()
        scalars[..., -2:] += own[..., 1:]
        instrument = np.concatenate([self.lines, scalars], -1)
        return np.ascontiguousarray(structure), own[..., :1], instrument


@dataclass(frozen=True, eq=False)
class _Seen:
    """A phase as the instrument sees it. `peaks` (4, lines·n): position, area, Γ_G, Γ_L."""

    whole: Whole
    place: int
    structure: Array
    given: Array
    constants: tuple[Array, ...]
    ratios: Array
    scale: Array
    multiplicity: Array
    sums: Array
    squared: Array
    seen: Array
    peaks: Array
    pushed: Array

    @classmethod
    def of(
        cls,
        whole: Whole,
        i: int,
        parts: _Parts,
        constants: Sequence[Array],
        moved: _Parts | None = None,
    ) -> _Seen:
        at = COMMON + EACH * i
        multiplicity, *table = constants[at : at + EACH]
        structure, scale, instrument = parts.of(i)
        v = np.empty((0, len(structure))) if moved is None else moved.of(i)[0]
        sums, pushed = whole.waves[i].both(v, structure, *table, sloped=moved is not None)
        squared = np.square(sums[1:]).sum(0) * multiplicity
        given = np.concatenate([sums[0], instrument])
        seen = whole.lines.value(given, constants[0])
        area = seen[3] * (squared * scale)
        peaks = np.stack([seen[0], area, seen[1], seen[2]]).reshape(4, -1)
        return cls(
            whole, i, structure, given, tuple(table), constants[0], scale, multiplicity,
            sums, squared, seen, peaks, pushed,
        )  # fmt: skip

    def push(self, moved: _Parts) -> Array:
        """The derivative of `peaks` along directions, (t, 4, lines·n)."""
        _, scale, instrument = moved.of(self.place)
        sums = self.pushed
        squared = np.einsum("tpn,pn->tn", sums[:, 1:], 2 * self.multiplicity * self.sums[1:])
        given = np.concatenate([sums[:, 0], instrument], 1)
        seen = self.whole.lines.push(given, self.given, self.ratios)
        area = seen[:, 3] * (self.squared * self.scale)
        area += self.seen[3] * (squared * self.scale + self.squared * scale)[:, None]
        peaks = np.stack([seen[:, 0], area, seen[:, 1], seen[:, 2]], 1)
        return peaks.reshape(len(peaks), 4, -1)

    def pull(self, u: Array) -> tuple[Array, Array]:
        """The transpose: of u (t, 4, lines·n) what the phase's numbers receive, and what the
        wavelengths and the eight of the instrument do.
        """
        t, n = len(u), len(self.squared)
        position, area, gauss, lorentz = np.moveaxis(u.reshape(t, 4, -1, n), 1, 0)
        seen = np.stack([position, gauss, lorentz, area * (self.squared * self.scale)], 1)
        given = self.whole.lines.pull(seen.reshape(t, -1), self.given, self.ratios)
        strength = (area * self.seen[3]).sum(1)  # (t, n)
        sums = np.empty((t, len(self.sums), n))
        sums[:, 0] = given[:, :n]
        sums[:, 1:] = (strength * 2 * self.scale * self.multiplicity)[:, None] * self.sums[1:]
        waves = self.whole.waves[self.place]
        structure = waves.pull(sums.reshape(t, -1), self.structure, *self.constants)
        instrument = given[:, n:]
        scale = (strength * self.squared).sum(1, keepdims=True)
        return np.concatenate([structure, scale, instrument[:, -2:]], 1), instrument


def _joined(peaks: Sequence[Array], skew: Array) -> Array:
    """(…, 4, peaks) of several phases and the asymmetry as the numbers of `Band`."""
    every = np.concatenate(peaks, -1) if len(peaks) > 1 else peaks[0]
    return np.concatenate([every.reshape(*every.shape[:-2], -1), skew], -1)
