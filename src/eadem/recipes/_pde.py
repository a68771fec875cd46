"""Two equations on a circle: their residuals, and their solutions by Fourier series.

u(t, x) on t in 0–1, x in 0–2π. Convection is solved by turning each Fourier mode; Burgers'
equation by the pseudo-spectral method with the 2/3 rule (Canuto et al., Spectral Methods,
2006, ch. 3), its modes followed by scipy's DOP853 at a tolerance of 1e-10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

__all__ = ["BURGERS", "CONVECTION", "LENGTH", "Equation", "reference"]

Floats = npt.NDArray[np.float64]
LENGTH = 2 * math.pi


@dataclass(frozen=True)
class Equation:
    """u_t + speed·u_x + steep·u·u_x = viscosity·u_xx from u = start(x) at t = 0."""

    name: str
    speed: float
    steep: float
    viscosity: float
    start: Callable[[Tensor], Tensor]

    def residual(self, u: Tensor, u_t: Tensor, u_x: Tensor, u_xx: Tensor) -> Tensor:
        """Zero at a solution."""
        return u_t + (self.speed + self.steep * u) * u_x - self.viscosity * u_xx


def _hill(x: Tensor) -> Tensor:
    """Neither 0 nor level at the ends."""
    return (x - 0.7).sin().exp() - 1


def _waves(x: Tensor) -> Tensor:
    """Two waves, of 0.6 at the ends."""
    return x.sin() + 0.6 * (2 * x).cos()


CONVECTION = Equation("convection", 2.0, 0.0, 0.0, _hill)
BURGERS = Equation("Burgers", 0.0, 1.0, 0.1, _waves)


def reference(equation: Equation, times: Floats, points: int = 256) -> Floats:
    """u at the times (ascending from 0) on `points` equal steps from x = 0: (times, points)."""
    x = np.arange(points) * LENGTH / points
    start: Floats = equation.start(torch.from_numpy(x)).numpy()
    modes = np.fft.rfft(start)
    k = np.arange(len(modes))
    whole = k <= points // 3

    def rate(t: float, flat: Floats) -> Floats:
        now = flat.view(np.complex128)
        square = np.fft.rfft(np.fft.irfft(np.where(whole, now, 0), points) ** 2)
        found = -1j * k * equation.speed * now - equation.viscosity * k**2 * now
        found = found - 0.5j * k * equation.steep * np.where(whole, square, 0)
        back: Floats = found.view(np.float64)
        return back

    if equation.steep == 0:
        turned = np.exp(np.outer(times, -1j * k * equation.speed - equation.viscosity * k**2))
        linear: Floats = np.fft.irfft(turned * modes, points, axis=1)
        return linear
    done = solve_ivp(
        rate,
        (0.0, float(times[-1])),
        modes.view(np.float64),
        "DOP853",
        times,
        rtol=1e-10,
        atol=1e-10,
    )
    along = np.ascontiguousarray(done.y.T).view(np.complex128)
    found: Floats = np.fft.irfft(along, points, axis=1)
    return found
