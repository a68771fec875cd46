"""A powder pattern as a block: (observed − calculated)/σ from phases and an instrument."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eadem.errors import DataError, ShapeError, Unsupported
from eadem.powder._band import LEAST, Band
from eadem.powder._known import known
from eadem.powder._whole import SKEW, Whole
from eadem.powder.data import Data
from eadem.powder.instrument import SCALARS, Instrument
from eadem.powder.phase import Phase
from eadem.powder.profile import peaks
from eadem.powder.reflections import reflections
from eadem.powder.scattering import Diffraction, Sums, reciprocal
from eadem.powder.symmetry import PAIRS

__all__ = ["Pattern", "Reflections"]

#: Further spacings, as a share of the smallest, that the list of reflections reaches.
MARGIN = 0.03
#: sin θ beyond which no reflection is listed, though a cell that grows might bring it in.
OUT_OF_REACH = 1.01


@dataclass(frozen=True, eq=False)
class Reflections:
    """A phase's reflections in a pattern, by falling d.

    `hkl` (n, 3), `multiplicity` (n,), `d` (n,) in Å, `squared` (n,): |F|² of the cell, the mean
    of h and −h, in electrons² or fm²; by wavelength (lines, n): `position` in degrees 2θ as it
    is observed, and `intensity`, the peak's area.
    """

    hkl: Tensor
    multiplicity: Tensor
    d: Tensor
    squared: Tensor
    position: Tensor
    intensity: Tensor


class Pattern(nn.Module):
    """A measured powder pattern, its instrument and its phases; a block for `eadem.Joint`.

    Args:
        data: what was measured.
        instrument: how. A sub-module, `instrument`.
        phase: a `Phase`, the sub-module `phase`; or several by name, each the sub-module of
            that name. A phase object in several patterns is one structure for all of them.
        background: the number of Chebyshev coefficients of the background, over the range of
            the data.
        baseline: (points of `data`,) counts that are added to the background as they are.
        scale: of every phase; by default `estimate` finds scales and background.
        excluded: regions (from, to) in degrees 2θ that are left out.
        preferred: the direction (h, k, l) of preferred orientation, or one by phase name. Those
            phases have a March coefficient in `march`, 1 where there is none (Dollase, J. Appl.
            Cryst. 19, 267, 1986).
        width: how far a peak reaches, in its full widths at half maximum.
        margin: reflections are listed once, here, by the present cell and wavelengths: all
            with d ≥ (1 − margin)·λ/(2 sin θ) at the last point and for the shortest wavelength.
            Those beyond the range have no effect but by their tails, and a cell that grows by
            less brings in no reflection that is not listed.

    Parameters beside those of instrument and phases: `scale` (phases,), `background`
    (coefficients,) in counts, `march` (phases with a direction,); and where there are several
    phases, `strain` and `size` (phases,), degrees, which add strain·tan θ + size/cos θ to Γ_L:
    zero and not refined unless freed, and then not of all phases beside `x` and `y`.

    The calculated pattern is background + Σ scale·m·|F|²·L·P·profile, with the Lorentz factor
    L = 1/(2 sin²θ cos θ), P = 1 + K cos²2θ for X-rays, and profiles of unit area over 2θ in
    degrees, all as in FullProf; the further lines of an X-ray doublet have `ratio` times the
    intensity of the first.

    Raises DataError where no point or no reflection is in the range.

    >>> from eadem.powder import Atom, Instrument
    >>> salt = Phase([5.64] * 3 + [90] * 3, "F m -3 m",
    ...              [Atom("Na", "Na", (0, 0, 0)), Atom("Cl", "Cl", (0.5, 0.5, 0.5))])
    >>> x = torch.arange(20, 80, 0.02).double()
    >>> data = Data(x, torch.full_like(x, 100.0))
    >>> pattern = Pattern(data, Instrument.xray(w=0.01, y=0.02), salt)
    >>> pattern.reflections()["phase"].hkl[:3].tolist()
    [[1, 1, 1], [2, 0, 0], [2, 2, 0]]
    >>> tuple(pattern.residual().shape)
    (3000,)
    """

    x: Tensor
    y: Tensor
    sigma: Tensor
    baseline: Tensor | None
    chebyshev: Tensor
    march: Tensor
    strain: Tensor
    size: Tensor

    def __init__(
        self,
        data: Data,
        instrument: Instrument,
        phase: Phase | Mapping[str, Phase],
        *,
        background: int = 6,
        baseline: Tensor | None = None,
        scale: float | Sequence[float] | None = None,
        excluded: Sequence[tuple[float, float]] = (),
        preferred: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        width: float = 20.0,
        margin: float = MARGIN,
    ) -> None:
        super().__init__()
        if not 0 <= margin < 1:
            raise Unsupported(f"margin is a share of the spacings, from 0 to 1, not {margin}")
        phases = {"phase": phase} if isinstance(phase, Phase) else dict(phase)
        self.instrument = instrument
        self.names = _named(self, phases)
        self.width = float(width)
        used = data.without(*excluded)
        if not len(used):
            raise DataError(f"of {len(data)} points none is outside of the excluded regions")
        for name in ("x", "y", "sigma"):
            self._keep(name, getattr(used, name))
        self._keep("baseline", _kept(baseline, data, used))
        self._keep("chebyshev", _chebyshev(used.x, background))
        directions = _directions(preferred, self.names)
        self.oriented = tuple(name for name in self.names if name in directions)
        listed, tables = nn.ModuleDict(), nn.ModuleDict()
        for name, each in phases.items():
            found = _Listed(each, instrument, used, margin, directions.get(name))
            wavelength = instrument.nominal if instrument.radiation == "xray" else None
            hkl = found.hkl.numpy()
            tables[name] = found
            given = (instrument.radiation, wavelength, instrument.dispersion)
            listed[name] = Diffraction(each, hkl, *given)
        self.tables, self.diffraction = tables, listed
        each_scale = [scale] * len(phases) if isinstance(scale, float | int) else scale
        if each_scale is not None and len(each_scale) != len(phases):
            raise ShapeError(f"{len(phases)} phases need as many scales, not {each_scale}")
        values = [1.0] * len(phases) if each_scale is None else each_scale
        self.scale = nn.Parameter(torch.tensor(values, dtype=torch.float64))
        self.background = nn.Parameter(torch.zeros(background, dtype=torch.float64))
        if len(phases) > 1:
            none = torch.zeros(2, len(phases), dtype=torch.float64)
            self.strain = nn.Parameter(none[0].clone(), requires_grad=False)
            self.size = nn.Parameter(none[1].clone(), requires_grad=False)
        if self.oriented:
            ones = torch.ones(len(self.oriented), dtype=torch.float64)
            self.march = nn.Parameter(ones)
        if scale is None:
            self.estimate()

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases by name."""
        return {name: cast(Phase, self._modules[name]) for name in self.names}

    def residual(self) -> Tensor:
        """(observed − calculated)/σ, (points,)."""
        if not self._at_once:
            return (self.y - self.calculated()) / self.sigma
        return known(self._whole, self._joined(lambda n: attrgetter(n)(self)), *self._constants)

    def residual_jvp(self, along: Mapping[str, Tensor]) -> Tensor:
        """The derivative of `residual()` along t directions at once, (t, points), as blocks of
        an `eadem.Joint` may have it; `along` by parameter, (t, *shape).

        NotImplemented, and torch's own way taken, where a phase has anisotropic displacements
        or a preferred orientation, or the asymmetry is that of Finger, Cox & Jephcoat.
        """
        if not self._at_once or any(d.anisotropic for d in self._listed):
            return NotImplemented
        with torch.no_grad():
            given = [self._joined(lambda n: attrgetter(n)(self)), *self._constants]
            v = self._joined(lambda n: along[n]).numpy()
            found = self._whole.push(v, *(g.contiguous().numpy() for g in given))
        return torch.from_numpy(found)

    @property
    def _at_once(self) -> bool:
        """Whether one kernel goes from the parameters to the residual."""
        slits = self.instrument.asymmetric and self.instrument.asymmetry.shape[0] != SKEW
        twice = len(set(self.phases.values())) < len(self.names)
        return not (self.oriented or slits or twice) and self.width >= LEAST

    @property
    def _listed(self) -> list[Diffraction]:
        return [cast(Diffraction, self.diffraction[name]) for name in self.names]

    @property
    def _whole(self) -> Whole:
        every = self._listed
        band = Band(self.width, self.instrument.asymmetric)
        sizes = tuple(d.size for d in every)
        return Whole(tuple(d.waves for d in every), sizes, self.instrument.lines, band)

    @property
    def _constants(self) -> tuple[Tensor, ...]:
        """The constants of `Whole`."""
        observed = self.y if self.baseline is None else self.y - self.baseline
        found = [self.instrument.ratios, self.x, observed, self.sigma, self.chebyshev]
        for name, each in zip(self.names, self._listed, strict=True):
            found += [cast(_Listed, self.tables[name]).multiplicity, *each.constants]
        return tuple(found)

    def _joined(self, get: Callable[[str], Tensor]) -> Tensor:
        """The numbers of `Whole`, (…, k), from values or directions by name."""
        found = []
        scale = get("scale")
        none = torch.zeros_like(scale[..., :1])
        for i, (name, each) in enumerate(zip(self.names, self._listed, strict=True)):
            inside = self._inside(get, name)
            found += [each.numbers(inside, self.phases[name].share), scale[..., i : i + 1]]
            several = len(self.names) > 1
            found += [get(n)[..., i : i + 1] if several else none for n in ("strain", "size")]
        inside = self._inside(get, "instrument")
        found += [inside("wavelength"), torch.stack([inside(n) for n in SCALARS], -1)]
        skew = (
            inside("asymmetry")
            if self.instrument.asymmetric
            else none.repeat_interleave(SKEW, -1)
        )
        return torch.cat([*found, skew, get("background")], -1)

    @staticmethod
    def _inside(get: Callable[[str], Tensor], name: str) -> Callable[[str], Tensor]:
        return lambda n: get(f"{name}.{n}")

    def forward(self) -> Tensor:
        """The calculated pattern."""
        return self.calculated()

    def calculated(self) -> Tensor:
        """Counts at every point, (points,)."""
        found = [self._peaks(name, i) for i, name in enumerate(self.names)]
        each = found[0] if len(found) == 1 else [torch.cat(c) for c in zip(*found, strict=True)]
        return self._profile(*each) + self._background()

    def contributions(self) -> dict[str, Tensor]:
        """What every phase adds, by name, and "background"; all (points,)."""
        found = {n: self._profile(*self._peaks(n, i)) for i, n in enumerate(self.names)}
        return {**found, "background": self._background()}

    def reflections(self) -> dict[str, Reflections]:
        """The reflections of every phase, by name, at the present values."""
        found = {}
        with torch.no_grad():
            for i, (name, phase) in enumerate(self.phases.items()):
                sums = self.diffraction[name](phase)
                position, area, _, _ = self._peaks(name, i)
                table = cast(_Listed, self.tables[name])
                lines = (-1, len(table.hkl))
                found[name] = Reflections(
                    table.hkl,
                    table.multiplicity.to(torch.int64),
                    sums.inverse_d2.rsqrt(),
                    sums.squared(),
                    position.reshape(lines),
                    area.reshape(lines),
                )
        return found

    def rwp(self) -> float:
        """The weighted profile R factor, √(Σ r² / Σ (y/σ)²), background included."""
        with torch.no_grad():
            r, size = self.residual(), self.y / self.sigma
            return float(r.norm() / size.norm())

    def estimate(self) -> None:
        """Set scales and background by linear least squares, all else as it is."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            found = [self._profile(*self._peaks(n, i)) for i, n in enumerate(self.names)]
            base = self.y if self.baseline is None else self.y - self.baseline
            columns = torch.cat([torch.stack(found, 1), self.chebyshev], 1)
            weighted = columns / self.sigma.unsqueeze(1)
            size = weighted.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
            right = (base / self.sigma).unsqueeze(1)
            best = torch.linalg.lstsq(weighted / size, right, driver="gelsd").solution
            best = best.squeeze(1) / size
            n = len(self.names)
            least = float(base.clamp(min=0).sum()) / float(columns[:, :n].sum() + 1e-300) / 1e3
            self.scale.copy_(best[:n].clamp(min=least))
            self.background.copy_(best[n:])

    def _background(self) -> Tensor:
        found = self.background @ self.chebyshev.T
        return found if self.baseline is None else found + self.baseline

    def _profile(
        self, position: Tensor, area: Tensor, gauss: Tensor, lorentz: Tensor
    ) -> Tensor:
        asymmetry = self.instrument.asymmetry if self.instrument.asymmetric else None
        found: Tensor = peaks(
            self.x, position, area, gauss, lorentz, asymmetry=asymmetry, width=self.width
        )
        return found

    def _peaks(self, name: str, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position, area and both widths of a phase's peaks, (lines·reflections,) each."""
        phase, table = self.phases[name], cast(_Listed, self.tables[name])
        sums: Sums = self.diffraction[name](phase)
        squared = sums.squared() * table.multiplicity
        if name in self.oriented:
            march = self.march[self.oriented.index(name)]
            squared = squared * table.march_dollase(phase.cell, sums.inverse_d2, march)
        own = (self.strain[i], self.size[i]) if len(self.names) > 1 else ()
        seen = self.instrument.peaks(sums.inverse_d2, *own)
        area = seen.strength * (squared * self.scale[i])
        return (
            seen.position.reshape(-1),
            area.reshape(-1),
            seen.gauss.reshape(-1),
            seen.lorentz.reshape(-1),
        )


class _Listed(nn.Module):
    """The reflections of a phase in a pattern, and the directions of preferred orientation."""

    hkl: Tensor
    multiplicity: Tensor
    along: Tensor
    axis: Tensor

    def __init__(
        self,
        phase: Phase,
        instrument: Instrument,
        data: Data,
        margin: float,
        direction: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        last = float(data.x[-1]) - float(instrument.zero.detach())
        shortest = float(instrument.wavelength.detach().min())
        sine = math.sin(math.radians(min(last, 180.0) / 2)) / (1 - margin)
        dmin = shortest / (2 * min(sine, OUT_OF_REACH))
        hkl, multiplicity = reflections(phase.group, phase.cell.detach().tolist(), dmin)
        if not len(hkl):
            raise DataError(
                f"{phase.name or 'the phase'} has no reflection up to 2θ = {last:g}"
            )
        self.register_buffer("hkl", torch.from_numpy(hkl), persistent=False)
        counted = torch.from_numpy(multiplicity).to(torch.float64)
        self.register_buffer("multiplicity", counted, persistent=False)
        if direction is not None:
            turned = np.stack([hkl @ np.array(r) for r in phase.group.rotations], 1)
            self.register_buffer("along", _products(turned, direction), persistent=False)
            self.register_buffer(
                "axis", _products(np.array(direction), direction), persistent=False
            )

    def march_dollase(self, cell: Tensor, inverse_d2: Tensor, r: Tensor) -> Tensor:
        """The mean over equivalent reflections of (r² cos²α + sin²α/r)^(−3/2)."""
        metric = reciprocal(cell)
        squared = (self.along @ metric).square() / (
            inverse_d2.unsqueeze(1) * (self.axis @ metric)
        )
        return (r * r * squared + (1 - squared) / r).pow(-1.5).mean(1)


def _products(hkl: NDArray[np.int64], axis: Sequence[int]) -> Tensor:
    """What gives h·G*·axis as a sum over the six entries of G*."""
    p = [float(v) for v in axis]
    each = [hkl[..., i] * p[j] + (hkl[..., j] * p[i] if i != j else 0.0) for i, j in PAIRS]
    return torch.from_numpy(np.stack(each, -1).astype(np.float64))


def _named(pattern: nn.Module, phases: Mapping[str, Phase]) -> tuple[str, ...]:
    """Add the phases as sub-modules; their names."""
    if not phases:
        raise Unsupported("a Pattern needs a Phase, or several by name")
    for name, phase in phases.items():
        if not isinstance(phase, Phase):
            raise Unsupported(f"phase {name!r} is a {type(phase).__name__}, not a Phase")
        if not name.isidentifier() or hasattr(pattern, name) or name in _TAKEN:
            raise Unsupported(
                f"a phase cannot be called {name!r}: a Pattern's phases are sub-modules, so "
                f"names are those of attributes, and not {sorted(_TAKEN)}"
            )
        pattern.add_module(name, phase)
    return tuple(phases)


_TAKEN = frozenset(
    {"background", "baseline", "chebyshev", "diffraction", "instrument", "march", "names"}
    | {"oriented", "scale", "sigma", "size", "strain", "tables", "width", "x", "y"}
)


def _kept(baseline: Tensor | None, data: Data, used: Data) -> Tensor | None:
    """The baseline at the points that are used."""
    if baseline is None:
        return None
    given = torch.as_tensor(baseline, dtype=torch.float64)
    if given.shape != data.x.shape:
        raise ShapeError(
            f"baseline has shape {tuple(given.shape)}; it needs one value for each of the "
            f"{len(data)} points of the data"
        )
    kept = torch.isin(data.x, used.x)
    return given[kept]


def _chebyshev(x: Tensor, n: int) -> Tensor:
    """T_0 … T_{n−1} over the range of x, (points, n)."""
    low, high = float(x[0]), float(x[-1])
    t = 2 * (x.numpy() - low) / max(high - low, 1e-12) - 1
    return torch.from_numpy(np.polynomial.chebyshev.chebvander(t, max(n, 1) - 1)[:, :n].copy())


def _directions(
    preferred: Sequence[int] | Mapping[str, Sequence[int]] | None, names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    if preferred is None:
        return {}
    if not isinstance(preferred, Mapping):
        if len(names) != 1:
            raise Unsupported(
                f"there are several phases; give preferred={{name: (h, k, l)}} of {names}"
            )
        preferred = {names[0]: preferred}
    found = {name: tuple(int(v) for v in axis) for name, axis in preferred.items()}
    for name, axis in found.items():
        if name not in names or len(axis) != 3 or not any(axis):
            raise Unsupported(
                f"preferred: {name!r}: {axis} is no direction (h, k, l) of {names}"
            )
    return found
