"""Curves by name: each is an expression with a meaning, and starts guessed from the data.

>>> MODELS["gaussian"].text
'height*exp(-(x - center)**2/(2*sigma**2))'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eadem.project.errors import ProjectError

__all__ = ["MODELS", "Model", "polynomial"]

Floats = NDArray[np.float64]
_Guess = Callable[[Floats, Floats], float]


@dataclass(frozen=True)
class Model:
    """An expression in x; for every parameter a start from the data x, y (sorted by x)."""

    text: str
    guesses: Mapping[str, _Guess]


def _top(x: Floats, y: Floats) -> float:
    return float(y.max() - y.min()) or 1.0


def _place(x: Floats, y: Floats) -> float:
    return float(x[y.argmax()])


def _tenth(x: Floats, y: Floats) -> float:
    return float(x[-1] - x[0]) / 10 or 1.0


def _middle(x: Floats, y: Floats) -> float:
    return float(x[len(x) // 2]) or 1.0


def _half(x: Floats, y: Floats) -> float:
    """x where y is nearest to the middle of its range."""
    return float(x[np.abs(y - (y.max() + y.min()) / 2).argmin()]) or 1.0


def _rate(x: Floats, y: Floats) -> float:
    return 3.0 / (float(x[-1] - x[0]) or 3.0)


def _slope(x: Floats, y: Floats) -> float:
    return float(np.polyfit(x, y, 1)[0]) if len(np.unique(x)) > 1 else 0.0


def _intercept(x: Floats, y: Floats) -> float:
    return float(np.mean(y)) - _slope(x, y) * float(np.mean(x))


def _steep(x: Floats, y: Floats) -> float:
    return (1.0 if _slope(x, y) >= 0 else -1.0) / _tenth(x, y)


def _low(x: Floats, y: Floats) -> float:
    return float(y.min())


def _high(x: Floats, y: Floats) -> float:
    return float(y.max())


def _mean(x: Floats, y: Floats) -> float:
    return float(np.mean(y))


def _number(value: float) -> _Guess:
    return lambda x, y: value


_PEAK = {"height": _top, "center": _place}
_GAUSS = "exp(-log(2)*((x - center)/(width/2))**2)"
_LORENTZ = "1/(1 + ((x - center)/(width/2))**2)"

MODELS: dict[str, Model] = {
    "constant": Model("level", {"level": _mean}),
    "line": Model("intercept + slope*x", {"intercept": _intercept, "slope": _slope}),
    "exponential": Model("height*exp(-rate*x)", {"height": _high, "rate": _rate}),
    "biexponential": Model(
        "height1*exp(-rate1*x) + height2*exp(-rate2*x)",
        {
            "height1": lambda x, y: 0.7 * _high(x, y),
            "rate1": lambda x, y: 3 * _rate(x, y),
            "height2": lambda x, y: 0.3 * _high(x, y),
            "rate2": lambda x, y: 0.5 * _rate(x, y),
        },
    ),
    "power": Model("scale*x**exponent", {"scale": _mean, "exponent": _number(1.0)}),
    "sine": Model(
        "amplitude*sin(2*pi*frequency*x + phase)",
        {
            "amplitude": lambda x, y: _top(x, y) / 2,
            "frequency": _rate,
            "phase": _number(0.0),
        },
    ),
    "gaussian": Model("height*exp(-(x - center)**2/(2*sigma**2))", {**_PEAK, "sigma": _tenth}),
    "lorentzian": Model(f"height*{_LORENTZ}".replace("*1/", "/"), {**_PEAK, "width": _tenth}),
    "pseudo-voigt": Model(
        f"height*(fraction*{_LORENTZ} + (1 - fraction)*{_GAUSS})",
        {**_PEAK, "width": _tenth, "fraction": _number(0.5)},
    ),
    "logistic": Model(
        "low + (high - low)*sigmoid(steepness*(x - center))",
        {"low": _low, "high": _high, "center": _half, "steepness": _steep},
    ),
    "log-logistic": Model(
        "low + (high - low)/(1 + (x/ed50)**slope)",
        {"low": _low, "high": _high, "ed50": _half, "slope": _number(2.0)},
    ),
    "michaelis-menten": Model("Vm*x/(K + x)", {"Vm": _high, "K": _half}),
    "hill": Model("Vm*x**n/(K**n + x**n)", {"Vm": _high, "K": _half, "n": _number(1.0)}),
}


def polynomial(degree: int) -> Model:
    """c0 + c1·x + … of a degree, started at the mean.

    >>> polynomial(2).text
    'c0 + x*(c1 + x*(c2))'
    """
    if not (isinstance(degree, int) and not isinstance(degree, bool) and 0 <= degree <= 20):
        raise ProjectError(
            f"the degree of a polynomial is a whole number to 20, not {degree!r}"
        )
    text = f"c{degree}"
    for i in reversed(range(degree)):
        text = f"c{i} + x*({text})"
    guesses: dict[str, _Guess] = {f"c{i}": _number(0.0) for i in range(1, degree + 1)}
    return Model(text, {"c0": _mean, **guesses})
