"""NIST's Statistical Reference Datasets, nonlinear regression: files and models.

Models are written for any array module `m` (torch or numpy): response, predictors, parameters.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import log10, pi
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).with_name("nist_strd")

Model = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Dataset:
    """One file: y (n,), x (n,) or (2, n) for two predictors, starts, certified values."""

    name: str
    y: np.ndarray
    x: np.ndarray
    starts: tuple[list[float], list[float]]
    values: np.ndarray
    deviations: np.ndarray
    chi2: float


def read(name: str) -> Dataset:
    """The dataset, from the lines that the file's own header points to."""
    lines = (FOLDER / f"{name}.dat").read_text().splitlines()
    spans = {
        what: slice(int(a) - 1, int(b))
        for line in lines[:12]
        for what, a, b in re.findall(r"(Certified|Data).*\(lines\s+(\d+)\s+to\s+(\d+)\)", line)
    }
    rows = [re.match(r"\s*b\d+\s*=(.*)", line) for line in lines[spans["Certified"]]]
    table = np.array([[float(v) for v in r.group(1).split()] for r in rows if r])
    sums = next(line for line in lines if line.startswith("Residual Sum of Squares"))
    data = np.array([[float(v) for v in line.split()] for line in lines[spans["Data"]]])
    return Dataset(
        name,
        y=np.log(data[:, 0]) if name == "Nelson" else data[:, 0],
        x=data[:, 1] if data.shape[1] == 2 else data[:, 1:].T,
        starts=(table[:, 0].tolist(), table[:, 1].tolist()),
        values=table[:, 2],
        deviations=table[:, 3],
        chi2=float(sums.split()[-1]),
    )


def digits(found: np.ndarray, certified: np.ndarray) -> float:
    """The number of certified digits that the worst value agrees to, at most 11 (as stated)."""
    found = np.asarray(found, dtype=float)
    if not np.isfinite(found).all():
        return 0.0
    worst = float(np.max(np.abs(found - certified) / np.abs(certified)))
    return min(11.0, -log10(worst)) if worst > 0 else 11.0


def _gauss(m: Any, x: Any, b: Any) -> Any:
    first = b[2] * m.exp(-((x - b[3]) ** 2) / b[4] ** 2)
    second = b[5] * m.exp(-((x - b[6]) ** 2) / b[7] ** 2)
    return b[0] * m.exp(-b[1] * x) + first + second


def _lanczos(m: Any, x: Any, b: Any) -> Any:
    return b[0] * m.exp(-b[1] * x) + b[2] * m.exp(-b[3] * x) + b[4] * m.exp(-b[5] * x)


def _enso(m: Any, x: Any, b: Any) -> Any:
    found = b[0]
    for cosine, sine, period in ((b[1], b[2], 12.0), (b[4], b[5], b[3]), (b[7], b[8], b[6])):
        at = 2 * pi * x / period
        found = found + cosine * m.cos(at) + sine * m.sin(at)
    return found


def _cubic(m: Any, x: Any, b: Any) -> Any:
    above = b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3
    return above / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)


def _misra1a(m: Any, x: Any, b: Any) -> Any:
    return b[0] * (1 - m.exp(-b[1] * x))


def _chwirut(m: Any, x: Any, b: Any) -> Any:
    return m.exp(-b[0] * x) / (b[1] + b[2] * x)


MODELS: dict[str, Model] = {
    "Bennett5": lambda m, x, b: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": _misra1a,
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda m, x, b: b[0] * x ** b[1],
    "ENSO": _enso,
    "Eckerle4": lambda m, x, b: (b[0] / b[1]) * m.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Hahn1": _cubic,
    "Kirby2": lambda m, x, b: (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2),
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "MGH09": lambda m, x, b: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda m, x, b: b[0] * m.exp(b[1] / (x + b[2])),
    "MGH17": lambda m, x, b: b[0] + b[1] * m.exp(-x * b[3]) + b[2] * m.exp(-x * b[4]),
    "Misra1a": _misra1a,
    "Misra1b": lambda m, x, b: b[0] * (1 - (1 + b[1] * x / 2) ** (-2)),
    "Misra1c": lambda m, x, b: b[0] * (1 - (1 + 2 * b[1] * x) ** (-0.5)),
    "Misra1d": lambda m, x, b: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda m, x, b: b[0] - b[1] * x[0] * m.exp(-b[2] * x[1]),
    "Rat42": lambda m, x, b: b[0] / (1 + m.exp(b[1] - b[2] * x)),
    "Rat43": lambda m, x, b: b[0] / (1 + m.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda m, x, b: b[0] - b[1] * x - m.arctan(b[2] / (x - b[3])) / pi,
    "Thurber": _cubic,
}
