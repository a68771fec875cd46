"""Two fits of the same sites under nested ties: Wald, likelihood ratio, F, AIC and BIC.

Whether one plan is nested in another is checked, by the inclusion of ranges; what counts as a
free parameter is the rank of φ on what the data identify.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import f as f_distribution
from torch import Tensor, nn

from eadem.bind import at_sites, resolved, trainable
from eadem.evidence._clusters import Cluster, cluster_ids, summed
from eadem.evidence._likelihood import Density, Information, Likelihood
from eadem.evidence._merging import refuse_merging
from eadem.evidence._release import fitted, picked, trained
from eadem.evidence.score import (
    NESTED,
    ChiSquare,
    EvidenceError,
    NullFit,
    chi_square,
    range_basis,
    sandwich,
)
from eadem.maps.base import LinearMap

__all__ = [
    "Comparison",
    "Fitted",
    "LikelihoodRatio",
    "Wald",
    "compare",
    "likelihood_ratio_test",
    "wald_test",
]

#: A fit under fewer ties that is worse by this much has not converged.
WORSE = 1e-6


@dataclass(frozen=True)
class Wald:
    """A Wald test: the statistic, its χ² tail, and the same with the sandwich variance."""

    statistic: float
    df: int
    pvalue: float
    robust: ChiSquare | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"Wald test: χ²({self.df}) = {self.statistic:.4g}, p = {self.pvalue:.3g}"]
        if self.robust is not None:
            r = self.robust
            lines.append(f"robust:    χ²({r.df}) = {r.statistic:.4g}, p = {r.pvalue:.3g}")
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


@dataclass(frozen=True)
class LikelihoodRatio:
    """A likelihood ratio test."""

    statistic: float
    df: int
    pvalue: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"likelihood ratio test: χ²({self.df}) = {self.statistic:.4g}, p = "
        return "\n".join([head + f"{self.pvalue:.3g}", *(f"note: {n}" for n in self.notes)])


def wald_test(
    tied: nn.Module,
    untied: nn.Module,
    log_density: Density,
    data: Any,
    cluster: Cluster = None,
    *,
    information: Information = "observed",
) -> Wald:
    """Do the fitted values of `untied` satisfy the ties of `tied`? Asked at the untied fit.

    `untied` is at its maximum; of `tied` only the plan is used (of a non-linear tie, its
    tangent at the model's values). The other arguments are those of `score_test`. With R the
    constraints within what `untied` allows and the data identify,
    W = (RŴ)ᵀ(RΣ̂Rᵀ)⁻¹RŴ (Wald 1943). Raises EvidenceError where the models are not nested, and
    where the ties merge states (see `score_test`).

    >>> import eadem
    >>> def rates(*values):
    ...     model = nn.Module()
    ...     model.rate = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    ...     return model
    >>> tied, untied = rates(40.0, 40.0), rates(30.0, 50.0)
    >>> _ = eadem.tie(tied, "rate[0]", "rate[1]")
    >>> count = torch.tensor([30.0, 50.0])
    >>> def log_density(model, count):
    ...     return count * model.rate.log() - model.rate
    >>> found = wald_test(tied, untied, log_density, count)
    >>> round(found.statistic, 6), found.df, round(found.pvalue, 4)
    (5.0, 1, 0.0253)
    """
    null, wide = _nested(tied, untied)
    refuse_merging(tied, wide)
    at = Likelihood(untied, log_density, data)
    ids = cluster_ids(cluster, at.n)
    scores = at.scores()
    fit = NullFit(wide, at.information(information, scores))
    inner = fit.tied.T @ (fit.unit.unsqueeze(1) * null.dense())
    held = range_basis(torch.cat([range_basis(inner), fit.loose], 1))
    identity = torch.eye(fit.tied.shape[1], dtype=torch.float64)
    u, s, _ = torch.linalg.svd(identity - held @ held.T)
    constraints = u[:, s > 0.5]  # a projector: its singular values are zero and one
    away = constraints.T @ (fit.tied.T @ (fit.unit * (at.values.cpu() - _values(tied))))
    spread = fit.inverse @ constraints
    variance = constraints.T @ spread
    notes = list(_stationary(fit, scores.sum(0)))
    found = _quadratic(variance, away)
    each = summed((scores / fit.unit) @ (fit.tied @ spread), ids)
    robust = sandwich(each.T @ each, away, notes)
    return Wald(**vars(found), robust=robust, notes=tuple(notes))


def _quadratic(variance: Tensor, away: Tensor) -> ChiSquare:
    if not away.numel():
        return chi_square(0.0, 0)
    return chi_square(float(away @ torch.linalg.solve(variance, away)), away.numel())


def likelihood_ratio_test(
    tied: nn.Module,
    untied: nn.Module,
    log_density: Density,
    data: Any,
    *,
    information: Information = "observed",
) -> LikelihoodRatio:
    """2(ℓ_untied − ℓ_tied), both models fitted, as χ² (Wilks 1938).

    The degrees of freedom are the difference of the free values that the data identify in
    each, by the rank of φᵀIφ at its fit. The other arguments are those of `score_test`.
    Raises EvidenceError where the models are not nested, where the wider one fits worse, and
    where the ties merge states (see `score_test`).

    >>> import eadem
    >>> def rates(*values):
    ...     model = nn.Module()
    ...     model.rate = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    ...     return model
    >>> tied, untied = rates(40.0, 40.0), rates(30.0, 50.0)
    >>> _ = eadem.tie(tied, "rate[0]", "rate[1]")
    >>> count = torch.tensor([30.0, 50.0])
    >>> def log_density(model, count):
    ...     return count * model.rate.log() - model.rate
    >>> print(likelihood_ratio_test(tied, untied, log_density, count))
    likelihood ratio test: χ²(1) = 5.053, p = 0.0246
    """
    refuse_merging(tied, _nested(tied, untied)[1])
    fits = [_fitted(m, log_density, data, information) for m in (tied, untied)]
    return _ratio(*fits)


@dataclass(frozen=True)
class _Fit:
    density: float
    free: int
    n: int
    notes: tuple[str, ...]


def _fitted(model: nn.Module, log_density: Density, data: Any, kind: Information) -> _Fit:
    at = Likelihood(model, log_density, data)
    fit = NullFit(trained(model), at.information(kind))
    notes = tuple(_stationary(fit, at.gradient()))
    return _Fit(float(at.densities.sum()), fit.identified, at.n, notes)


def _stationary(fit: NullFit, gradient: Tensor) -> Sequence[str]:
    """What `score_test` says of the fit itself."""
    return fit.project(gradient, fit.tied[:, :0]).notes[:-1]


def _ratio(tied: _Fit, untied: _Fit) -> LikelihoodRatio:
    statistic = 2 * (untied.density - tied.density)
    if statistic < -WORSE * max(1.0, abs(tied.density)):
        raise EvidenceError(
            f"the model with fewer ties fits worse, by {-statistic / 2:.3g} in log-likelihood: "
            "it is not at its maximum; start it from the tied fit and converge it"
        )
    found = chi_square(max(statistic, 0.0), untied.free - tied.free)
    return LikelihoodRatio(**vars(found), notes=tuple(dict.fromkeys(tied.notes + untied.notes)))


def _values(model: nn.Module) -> Tensor:
    return resolved(model).expand(fitted(model))


def _nested(tied: nn.Module, untied: nn.Module) -> tuple[LinearMap, LinearMap]:
    """Both models' maps, the wider at the tied values. Raises EvidenceError."""
    narrow, wider = resolved(tied), resolved(untied)
    if narrow.shapes != wider.shapes:
        other = set(narrow.shapes.items()) ^ set(wider.shapes.items())
        raise EvidenceError(
            f"the two models do not have the same sites: {sorted(n for n, _ in other)[:4]}; "
            "compare fits of one model under different ties"
        )
    here, there = _values(tied), _values(untied)
    null = trained(tied)
    if isinstance(wider, LinearMap):
        wide, away = trained(untied), here - there
    else:
        theta = wider.lift(here)
        wide = picked(wider.linearize(theta), trainable(untied))
        away = here - wider.expand(theta)
    basis = range_basis(wide.dense())
    columns = range_basis(null.dense())
    outside = columns - basis @ (basis.T @ columns)
    off = away - basis @ (basis.T @ away)
    scale = max(1.0, float(here.abs().max())) if here.numel() else 1.0
    lost = int((torch.linalg.svdvals(outside) > NESTED).sum()) if outside.numel() else 0
    if lost or (off.numel() and float(off.abs().max()) > NESTED * scale * 100):
        raise EvidenceError(
            f"the ties are not nested: the first model allows {lost} directions that the "
            "second forbids, or holds values that the second cannot; the second must have the "
            "first one's ties with some left out"
        )
    return null, wide


@dataclass(frozen=True)
class Fitted:
    """One model of a comparison.

    `free`: free values that the data identify. `ratio` and `f` test the ties that this model
    has and the next one in the table has not: (statistic, df, p-value), for F the p-value of
    F(df, n − free of the next); None for the last, or where the two are not nested.
    """

    name: str
    log_likelihood: float
    free: int
    aic: float
    bic: float
    ratio: ChiSquare | None = None
    f: ChiSquare | None = None


@dataclass(frozen=True)
class Comparison:
    """Models by AIC and BIC, in the order given; printed as a table."""

    rows: tuple[Fitted, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max([*(len(r.name) for r in self.rows), 5])
        head = f"{'model':<{width}} {'log-lik.':>12} {'free':>6} {'AIC':>12} {'BIC':>12}"
        lines = [f"{head} {'p (LR)':>9} {'p (F)':>9}"]
        for r in self.rows:
            ps = ("" if t is None else f"{t.pvalue:.3g}" for t in (r.ratio, r.f))
            left = f"{r.name:<{width}} {r.log_likelihood:>12.6g} {r.free:>6} {r.aic:>12.6g}"
            lines.append(" ".join([left, f"{r.bic:>12.6g}", *(f"{p:>9}" for p in ps)]).rstrip())
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def compare(
    models: Mapping[str, nn.Module],
    log_density: Density,
    data: Any,
    *,
    residual: Density | None = None,
    information: Information = "observed",
) -> Comparison:
    """Fits of one model under different ties: AIC (Akaike 1974), BIC (Schwarz 1978), tests.

    `models` are fitted models by name, best ordered from the most tied to the least: each is
    tested against the next where the two are nested. With `residual(model, batch)` →
    observed − predicted, in units of one unknown variance, the F test is given as well:
    F = ((RSS₀ − RSS₁)/q) / (RSS₁/(n − p₁)); p₁ is the rank of the residual's Jacobian through
    φ, so parameters of the variance do not count.

    >>> import eadem
    >>> tied, untied = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    >>> _ = eadem.tie(tied, "weight[0, 0]", "weight[0, 1]")
    >>> x, y = torch.eye(2).repeat(8, 1), torch.tensor([1.0, 3.0]).repeat(8)
    >>> with torch.no_grad():
    ...     _ = tied.weight.fill_(2.0), untied.weight.copy_(torch.tensor([[1.0, 3.0]]))
    >>> def log_density(model, batch):
    ...     return -0.5 * (batch[1] - model(batch[0]).squeeze(1)) ** 2
    >>> found = compare({"tied": tied, "untied": untied}, log_density, (x, y))
    >>> [(r.name, r.free, r.aic) for r in found.rows]
    [('tied', 1, 18.0), ('untied', 2, 4.0)]
    """
    if not isinstance(models, Mapping):
        raise EvidenceError("`models` are fitted models by name: {'tied': a, 'untied': b}")
    fits = {n: _fitted(m, log_density, data, information) for n, m in models.items()}
    residuals = {}
    if residual is not None:
        residuals = {n: _residual(m, residual, data) for n, m in models.items()}
    tests: dict[str, tuple[ChiSquare, ChiSquare | None]] = {}
    notes = []
    for a, b in itertools.pairwise(models):
        try:
            wide = _nested(models[a], models[b])[1]
        except EvidenceError:
            continue
        try:
            refuse_merging(models[a], wide)
        except EvidenceError as error:
            notes.append(f"{a}, not tested against {b}: {error}")
            continue
        found = _ratio(fits[a], fits[b])
        ratio = ChiSquare(found.statistic, found.df, found.pvalue)
        f = _f_test(residuals[a], residuals[b]) if residuals else None
        tests[a] = (ratio, f)
    rows = []
    for name, fit in fits.items():
        deviance = -2 * fit.density
        ratio_f = tests.get(name, (None, None))
        aic, bic = deviance + 2 * fit.free, deviance + math.log(fit.n) * fit.free
        rows.append(Fitted(name, fit.density, fit.free, aic, bic, *ratio_f))
    notes += [f"{n}: {note}" for n, fit in fits.items() for note in fit.notes]
    return Comparison(tuple(rows), tuple(notes))


@dataclass(frozen=True)
class _Squares:
    rss: float
    n: int
    free: int


def _residual(model: nn.Module, residual: Density, data: Any) -> _Squares:
    """The residual sum of squares and the parameters that it depends on."""
    function = at_sites(model, residual, torch.float64)
    rss, n = 0.0, 0

    def density(inner: nn.Module, batch: Any) -> Tensor:
        return -0.5 * residual(inner, batch).reshape(-1) ** 2

    at = Likelihood(model, density, data)
    for batch in at.batches():
        with torch.no_grad():
            r = function(at.values, batch).reshape(-1)
        rss, n = rss + float(r @ r), n + len(r)
    return _Squares(rss, n, NullFit(trained(model), at.gram(residual)).identified)


def _f_test(tied: _Squares, untied: _Squares) -> ChiSquare:
    q, left = untied.free - tied.free, untied.n - untied.free
    if q < 1 or left < 1 or untied.rss <= 0:
        return ChiSquare(float("nan"), q, float("nan"))
    statistic = (tied.rss - untied.rss) / q / (untied.rss / left)
    return ChiSquare(statistic, q, float(f_distribution.sf(statistic, q, left)))
