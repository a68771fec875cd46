"""Sums of powder diffraction peaks, and their derivatives.

A peak is a pseudo-Voigt of Thompson, Cox & Hastings (J. Appl. Cryst. 20, 79, 1987) at the
points within a window about it. The points are cut into runs, and each run meets some of the
peaks: the sum is a banded matrix, (points × peaks), times what each peak contributes, and so
is its derivative along any number of directions at once: one product of band and columns,
never a pass for each. Lorentzian tails fill the window; Gaussians and asymmetry end within a
few widths, and are evaluated there alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eadem.errors import ShapeError, Unsupported
from eadem.powder._axial import sub_peaks, two_sided
from eadem.powder._voigt import PseudoVoigt

__all__ = ["peaks"]

#: Points in a run: long enough to outweigh the calls, short enough to stay in the cache.
RUN = 128
#: Pairs of point and peak at a time near the positions.
PAIRS = 8192
#: |x − position|/FWHM beyond which exp(−4 log 2·z²), or exp(−z²), is nothing in float64.
GAUSS_ENDS, SKEW_ENDS = 4.0, 5.9
#: Where a window begins to end, as a share of it; and the least width, beyond all cores.
TAPER, LEAST = 0.8, 8.0
LOG2 = math.log(2.0)
#: The logarithm of what is nothing beside 1.
NOTHING = -60.0
#: What one peak is to the band: position, FWHM, the heights of its Lorentzian and Gaussian
#: parts, and the two coefficients of its asymmetry. What is given instead of the second to
#: fourth are area, Γ_G and Γ_L.
POSITION, FWHM, LORENTZ, GAUSS, ODD, CUBIC = range(6)


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
    odd = cubic = torch.zeros_like(position)
    skewed = False
    if asymmetry is not None:
        if tuple(asymmetry.shape) == (4,):
            odd, cubic = two_sided(position, asymmetry)
            skewed = True
        elif tuple(asymmetry.shape) == (2,):
            position, share = sub_peaks(position, asymmetry, nodes)
            many = position.shape[1]
            area = (area.unsqueeze(1) * share).reshape(-1)
            position = position.reshape(-1)
            gauss, lorentz = (v.repeat_interleave(many) for v in (gauss, lorentz))
            odd = cubic = torch.zeros_like(position)
        else:
            raise ShapeError(
                f"asymmetry has shape {tuple(asymmetry.shape)}; give (4,), the coefficients "
                "of Bérar and Baldinozzi, or (2,), S/L and D/L"
            )
    p = torch.stack([position, area, gauss, lorentz, odd, cubic])
    return _applied(_Sum, x, p, float(width), skewed)


@dataclass(frozen=True, eq=False)
class _Run:
    """Points i to j, the peaks whose windows meet them, and those of these whose cores do:
    their places among the former, and among all.
    """

    points: slice
    window: Tensor
    near: Tensor
    core: Tensor


@dataclass(frozen=True, eq=False)
class _Band:
    """Peaks p (6, n) at points x, and which peaks each run of points meets. `reach`: where the
    cores end, in FWHM.
    """

    x: Tensor
    p: Tensor
    shape: PseudoVoigt
    width: float
    reach: float
    skewed: bool

    @classmethod
    def of(cls, x: Tensor, p: Tensor, width: float, skewed: bool) -> _Band | None:
        """From positions, areas, Γ_G, Γ_L and asymmetries; None where a number is not finite or
        a FWHM not positive.
        """
        shape = PseudoVoigt.of(*p[1:4])
        p = torch.stack([p[0], shape.fwhm, shape.lorentz, shape.gauss, p[4], p[5]])
        if not bool(torch.isfinite(p).all()) or not bool((shape.fwhm > 0).all()):
            return None
        if not bool((x[1:] > x[:-1]).all()):
            raise Unsupported("x does not ascend; sort the points of a pattern by 2θ")
        return cls(x, p, shape, width, SKEW_ENDS if skewed else GAUSS_ENDS, skewed)

    def runs(self) -> Iterator[_Run]:
        points = self.x.numpy()
        at, fwhm = self.p[POSITION].numpy(), self.p[FWHM].numpy()
        left, right = at - self.width * fwhm, at + self.width * fwhm
        core_left, core_right = at - self.reach * fwhm, at + self.reach * fwhm
        for i in range(0, len(points), RUN):
            j = min(i + RUN, len(points))
            low, high = points[i], points[j - 1]
            window = np.flatnonzero((right > low) & (left < high))
            if len(window):
                near = np.flatnonzero((core_right[window] > low) & (core_left[window] < high))
                each = (torch.from_numpy(v) for v in (window, near, window[near]))
                yield _Run(slice(i, j), *each)

    @property
    def ends(self) -> tuple[float, float]:
        """1/(1 + z²) where windows end, and how much more it is where they begin to."""
        last = 1 / (1 + 4 * self.width**2)
        return last, 1 / (1 + 4 * (TAPER * self.width) ** 2) - last

    def cells(self) -> Iterator[tuple[_Run, Tensor, Tensor]]:
        """Per run: z = 2(x − position)/FWHM and 1/(1 + z²), (points of the run, peaks that it
        meets).
        """
        scale = 2 / self.p[FWHM]
        one = self.x.new_ones(())
        for run in self.runs():
            z = self.x[run.points].unsqueeze(1) - self.p[POSITION, run.window]
            z *= scale[run.window]
            yield run, z, torch.addcmul(one, z, z).reciprocal_()

    def value(self) -> Tensor:
        """The sum, (points,)."""
        found = torch.zeros_like(self.x)
        last, fall = self.ends
        height = self.p[LORENTZ] / fall
        for run, _, bell in self.cells():
            found[run.points] = (bell - last).clamp_(0, fall).mul_(bell) @ height[run.window]
        for at, which in self.near():
            p = self.p[:, which]
            z = (self.x[at] - p[POSITION]).mul_(2 / p[FWHM])
            bell = (1 + z * z).reciprocal_()
            found.index_add_(0, at, _Core(p, z, bell, self.skewed).value())
        return found

    def near(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Point and peak of every pair within the peak's core, some thousands at a time."""
        points, at = self.x.numpy(), self.p[POSITION].numpy()
        reach = self.reach * self.p[FWHM].numpy()
        first = np.searchsorted(points, at - reach, side="right")
        count = np.searchsorted(points, at + reach, side="left") - first
        behind = np.concatenate([[0], np.cumsum(count)])
        cuts = np.searchsorted(behind, np.arange(0, behind[-1], PAIRS))
        for a, b in itertools.pairwise([*np.unique(cuts).tolist(), len(at)]):
            each = np.repeat(np.arange(a, b), count[a:b])
            place = np.arange(behind[a], behind[b]) - behind[each] + first[each]
            yield torch.from_numpy(place), torch.from_numpy(each)

    def columns(self) -> Iterator[tuple[_Run, list[Tensor], list[Tensor]]]:
        """Per run: the columns of the peaks of its window, by height, by width and by position,
        times `fall`; and those of the peaks of its core, three or six.
        """
        last, fall = self.ends
        for run, z, bell in self.cells():
            core: list[Tensor] = []
            if len(run.near):
                near = (self.p[:, run.core], z[:, run.near], bell[:, run.near])
                core = _Core(*near, self.skewed).columns()
            level = (bell - last).clamp_(0, fall)
            falling = (level - fall).mul_(level).sign_()  # −1 where the window ends, else 0
            slope = torch.addcmul(level, falling, bell, value=-1).mul_(bell)
            steep = slope * bell  # z²·steep is slope − steep
            yield run, [level.mul_(bell), slope.sub_(steep), z.mul_(steep)], core

    def push(self, v: Tensor) -> Tensor:
        """The derivative of the sum along v (t, 6, n): (t, points)."""
        position, area, gauss, lorentz, odd, cubic = v.permute(1, 2, 0).contiguous()  # (n, t)
        wider, tall, dense = self.shape.push(area, gauss, lorentz)
        fwhm = self.p[FWHM].unsqueeze(1)
        steep = 2 * self.p[LORENTZ].unsqueeze(1) / fwhm
        far = [tall, steep * wider, 2 * steep * position]
        far = [column / self.ends[1] for column in far]
        near = [dense, position * (-2 / fwhm), wider / -fwhm, tall, odd, cubic]
        found = self.x.new_zeros(len(self.x), len(v))
        for run, wide, narrow in self.columns():
            out = found[run.points]
            for column, by in zip(wide, far, strict=True):
                out.addmm_(column, by[run.window])
            for column, by in zip(narrow, near, strict=False):
                out.addmm_(column, by[run.core])
        return found.T

    def pull(self, u: Tensor) -> Tensor:
        """The transpose of `push`: u (t, points) gives (t, 6, n)."""
        far = self.x.new_zeros(3, self.p.shape[1], len(u))
        near = self.x.new_zeros(6, self.p.shape[1], len(u))
        u = u.T.contiguous()
        for run, wide, narrow in self.columns():
            given = u[run.points]
            for column, into in zip(wide, far, strict=True):
                into.index_add_(0, run.window, column.T @ given)
            for column, into in zip(narrow, near, strict=False):
                into.index_add_(0, run.core, column.T @ given)
        far /= self.ends[1]
        fwhm = self.p[FWHM].unsqueeze(1)
        steep = 2 * self.p[LORENTZ].unsqueeze(1) / fwhm
        position = 2 * (steep * far[2] - near[1] / fwhm)
        shape = self.shape.pull(steep * far[1] - near[2] / fwhm, far[0] + near[3], near[0])
        return torch.stack([position, *shape, near[4], near[5]]).permute(2, 0, 1)


class _Core:
    """Near their positions, what peaks p have beside the plain Lorentzian: a Gaussian, and
    (Lorentzian + Gaussian) × asymmetry. `z`, `bell`: a pair of point and peak each, of any
    shape that the peaks' numbers broadcast to; the papers' z is half of this one.
    """

    def __init__(self, p: Tensor, z: Tensor, bell: Tensor, skewed: bool) -> None:
        self.p, self.z, self.bell, self.skewed = p, z, bell, skewed
        self.square = z * z
        # farther out it is nothing anyhow, and subnormal numbers are slow
        self.gauss = (self.square * -LOG2).clamp_(min=NOTHING).exp_()
        self.high = self.gauss * p[GAUSS]

    def _skew(self) -> tuple[Tensor, Tensor, Tensor]:
        """F_a, F_b/F_a and exp(−z²/4)."""
        fade = (self.square * -0.25).clamp_(min=NOTHING).exp_()
        return fade * self.z, self.square - 6, fade

    def value(self) -> Tensor:
        """What each pair adds."""
        if not self.skewed:
            return self.high
        odd, ratio, _ = self._skew()
        skew = odd.mul_(ratio.mul_(self.p[CUBIC]).add_(self.p[ODD]))
        return (self.bell * self.p[LORENTZ]).add_(self.high).mul_(skew).add_(self.high)

    def columns(self) -> list[Tensor]:
        """The derivatives by the Gaussian height, by z and by z, times z; with asymmetry also
        by the Lorentzian height, and by its two coefficients.
        """
        slope = (self.high * self.z).mul_(-2 * LOG2)
        if not self.skewed:
            return [self.gauss, slope, slope * self.z]
        odd, ratio, fade = self._skew()
        cubic = odd * ratio
        skew = (odd * self.p[ODD]).addcmul_(cubic, self.p[CUBIC])
        lorentz = self.bell * self.p[LORENTZ]
        both = lorentz + self.high
        falling = (lorentz.mul_(self.bell).mul_(self.z).mul_(-2)).add_(slope)
        odd_slope = fade.mul_(1 - 0.5 * self.square)
        cubic_slope = (ratio.mul_(odd_slope)).add_(self.z * odd, alpha=2)
        tilt = odd_slope.mul_(self.p[ODD]).add_(cubic_slope.mul_(self.p[CUBIC]))
        slope = slope.addcmul_(falling, skew).addcmul_(both, tilt)
        return [
            torch.addcmul(self.gauss, self.gauss, skew),
            slope,
            slope * self.z,
            self.bell * skew,
            odd.mul_(both),
            cubic.mul_(both),
        ]


def _applied(function: Any, *given: Any) -> Tensor:
    found: Tensor = function.apply(*given)
    return found


class _Sum(torch.autograd.Function):
    """The sum of peaks p (6, n) at x, with its derivatives as products with a band."""

    @staticmethod
    def forward(x: Tensor, p: Tensor, width: float, skewed: bool) -> Tensor:
        band = _Band.of(x, p, width, skewed)
        return torch.full_like(x, torch.nan) if band is None else band.value()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dp: Tensor, *_: Any) -> Tensor:
        x, p = ctx.saved_tensors
        return _applied(_Push, x, p, dp, *ctx.constants)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, p = ctx.saved_tensors
        return None, _applied(_Pull, x, p, g, *ctx.constants), None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _each(_Sum, info.batch_size, dims, given)


class _Along(torch.autograd.Function):
    """What is linear in its third argument, which may have a dimension of its own before."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "peaks are differentiated once, not twice; take the second derivative of what "
            "follows from them without them, or by differences"
        )


class _Push(_Along):
    """J v for v (6, n), or (t, 6, n)."""

    @staticmethod
    def forward(x: Tensor, p: Tensor, v: Tensor, width: float, skewed: bool) -> Tensor:
        band = _Band.of(x, p, width, skewed)
        every = v.reshape(-1, *v.shape[-2:])
        if band is None:
            return x.new_full((*v.shape[:-2], len(x)), torch.nan)
        return band.push(every).reshape(*v.shape[:-2], len(x))

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _together(_Push, info.batch_size, dims, given)


class _Pull(_Along):
    """Jᵀu for u (points,), or (t, points)."""

    @staticmethod
    def forward(x: Tensor, p: Tensor, u: Tensor, width: float, skewed: bool) -> Tensor:
        band = _Band.of(x, p, width, skewed)
        if band is None:
            return p.new_full((*u.shape[:-1], *p.shape), torch.nan)
        return band.pull(u.reshape(-1, u.shape[-1])).reshape(*u.shape[:-1], *p.shape)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        return _together(_Pull, info.batch_size, dims, given)


def _keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
    x, p, *ctx.constants = inputs
    ctx.save_for_backward(x, p)
    ctx.save_for_forward(x, p)


def _each(
    function: Any, size: int, dims: tuple[int | None, ...], given: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """One after another: the bands differ."""
    found = [
        function.apply(
            *(v if d is None else v.select(d, i) for v, d in zip(given, dims, strict=True))
        )
        for i in range(size)
    ]
    return torch.stack(found), 0


def _together(
    function: Any, size: int, dims: tuple[int | None, ...], given: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """All directions through one band; one after another where the bands differ."""
    if dims[0] is not None or dims[1] is not None:
        return _each(function, size, dims, given)
    x, p, v, *constants = given
    return function.apply(x, p, v.movedim(dims[2], 0), *constants), 0
