"""The result of a fit: values, errors, and what else it can be asked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from eadem.bind import Tie, free_vector, set_free_vector, site_coordinates
from eadem.errors import NoSuchSite, TooLarge
from eadem.evidence._clusters import Cluster
from eadem.evidence._iterative import EXACT
from eadem.evidence._score_test import Exact, ScoreTest, score_test, verdict
from eadem.evidence.score import EvidenceError
from eadem.fits._rank import Weak, combination, weak_directions
from eadem.fits._setup import Setup, free_names
from eadem.fits.profile import Interval, profile
from eadem.fits.report import Report, report
from eadem.joint import Joint
from eadem.maps.base import DENSE_LIMIT
from eadem.solvers.arrow import Arrow, Factor, Part
from eadem.solvers.levenberg import Found, Settings

__all__ = ["Fit", "RankWarning"]


class RankWarning(UserWarning):
    """The data do not determine some combination of the free values."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What `eadem.least_squares` found. The model was left at these values.

    `chi2` is Σr² over the `size` residuals, `dof` their number less the free values that the
    data determine. `converged`, and in words `message`. `values` and `stderr` are by site, in
    shape, derived sites included: a tied site's standard error is that of φ Cov φᵀ. `theta`
    (free,) are the free values, called `names`. `starts`: the cost and outcome of each start.
    `notes` says what a reader must know. Everything else is computed when it is asked for.

    Of data that several processes hold, `residuals` are this process's own; `profile` must be
    asked by all processes together.
    """

    model: nn.Module = field(repr=False)
    chi2: float
    size: int
    dof: int
    converged: bool
    message: str
    theta: Tensor = field(repr=False)
    history: tuple[float, ...] = field(repr=False)
    evaluations: int
    absolute_sigma: bool
    starts: tuple[tuple[float, str], ...] = field(repr=False)
    notes: tuple[str, ...]
    _made: Setup = field(repr=False)
    _found: Found = field(repr=False)
    _settings: Settings = field(repr=False)
    _weak: Weak = field(repr=False)

    @classmethod
    def of(
        cls,
        made: Setup,
        found: Found,
        settings: Settings,
        absolute_sigma: bool,
        starts: tuple[tuple[float, str], ...],
    ) -> Fit:
        """The result of a solver's run. Warns with RankWarning where J is singular."""
        weak = weak_directions(found.arrow, found.held | made.frozen)
        names = free_names(made.plan)
        notes = list(_rank_notes(weak, names, found.arrow.norms))
        for text in notes[: weak.unknown.shape[1]]:
            warnings.warn(text, RankWarning, stacklevel=3)
        at = found.held.nonzero().reshape(-1).tolist()
        if at:
            where = ", ".join(names[i] for i in at[:5])
            notes.append(f"held by a bound, without a standard error: {where}")
        if found.kind != "converged":
            notes.append(found.message)
        size = made.problem.size
        free = int((~made.frozen).sum()) - weak.unknown.shape[1]
        if size <= free and not absolute_sigma:
            notes.append(
                f"{size} residuals for {free} free values: nothing is left to estimate their "
                "variance from; standard errors need absolute_sigma=True"
            )
        return cls(
            model=made.model,
            chi2=made.problem.chi2(found.point),
            size=size,
            dof=size - free,
            converged=found.kind == "converged",
            message=found.message,
            theta=found.point.theta,
            history=found.history,
            evaluations=made.problem.evaluations,
            absolute_sigma=absolute_sigma,
            starts=starts,
            notes=tuple(notes),
            _made=made,
            _found=found,
            _settings=settings,
            _weak=weak,
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the free values are called: the parameter that holds each, and its place."""
        return free_names(self._made.plan)

    @property
    def free(self) -> int:
        """The number of free values that the data determine."""
        return self.size - self.dof

    @property
    def reduced_chi2(self) -> float:
        """χ²/dof; NaN without degrees of freedom."""
        return self.chi2 / self.dof if self.dof > 0 else math.nan

    @property
    def variance(self) -> float:
        """What multiplies (JᵀJ)⁻¹: 1 for known errors, otherwise χ²/dof.

        With a robust loss, Huber's Σψ²/dof / (mean of ψ′)², ψ = ρ′(z)·r (Huber, Robust
        Statistics, 1981, eq. 7.6.5).
        """
        if not self._made.problem.loss.linear:
            return self._huber()
        return 1.0 if self.absolute_sigma else self.reduced_chi2

    def _huber(self) -> float:
        loss = self._made.problem.loss
        r = torch.cat([x.reshape(-1) for x in self._found.point.residuals])
        first, second = loss.slopes(r)
        mean = float((first + 2 * second * (r / loss.scale).square()).mean())
        squares = float((first * r).square().sum())
        return squares / self.dof / mean**2 if self.dof > 0 else math.nan

    @property
    def _penalty(self) -> float:
        """−2·log-likelihood, up to a constant of the data."""
        if self.absolute_sigma:
            return self.chi2
        return self.size * math.log(self.chi2 / self.size) if self.chi2 > 0 else -math.inf

    @property
    def aic(self) -> float:
        """−2ℓ + 2·free, less a constant of the data: −2ℓ is χ² for known errors, otherwise
        n·log(χ²/n) (Akaike 1974; the definition of lmfit).
        """
        return self._penalty + 2 * self.free

    @property
    def bic(self) -> float:
        """−2ℓ + log(n)·free (Schwarz 1978), as `aic`."""
        return self._penalty + math.log(self.size) * self.free

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """The value at every site."""
        return self._made.plan.split(self._found.point.values)

    @property
    def residuals(self) -> dict[str, Tensor]:
        """The weighted residuals of every block, flat, by name; those of a module that is no
        Joint are called "".
        """
        found = {}
        for piece, every in zip(
            self._made.problem.pieces, self._found.point.residuals, strict=True
        ):
            found.update({piece.name(i): r for i, r in enumerate(every)})
        return found

    @cached_property
    def _held(self) -> Tensor:
        """The free values left out of the factor: frozen, at a bound, or one for each unknown
        direction (its value then is any; what the data determine does not depend on it).
        """
        held = self._found.held | self._made.frozen
        rest = self._weak.unknown.clone()
        norms = self._found.arrow.norms
        rest *= torch.where(norms > 0, norms, 1.0).unsqueeze(1)
        for i in range(rest.shape[1]):
            pivot = int(rest[:, i].abs().argmax())
            held[pivot] = True
            others = rest[:, i + 1 :]
            others -= rest[:, i : i + 1] * (others[pivot] / rest[pivot, i])
        return held

    @cached_property
    def _factor(self) -> Factor:
        arrow, problem = self._found.arrow, self._made.problem
        if not problem.loss.linear:
            parts = []
            for p, jacobian, r in zip(
                problem.pieces, self._found.jacobians, self._found.point.residuals, strict=True
            ):
                l = p.at_own.shape[1]
                part = Part(p.at_own, p.at_shared, jacobian[..., :l], jacobian[..., l:], r)
                parts.append(part)
            arrow = Arrow(parts, arrow.n)
        return arrow.factor(torch.zeros(arrow.n, dtype=torch.float64), self._held)

    @cached_property
    def stderr(self) -> dict[str, Tensor]:
        """The standard error at every site, √diag(φ Cov φᵀ): infinite where the data do not
        determine the value, zero where it is fixed, frozen or held by a bound.
        """
        made = self._made
        entries = made.arrays.entries(self.theta)
        found = torch.zeros(made.arrays.sites, dtype=torch.float64)
        covered = torch.zeros_like(found, dtype=torch.bool)
        moving = ~self._held
        # of data in several processes there is one triangle, and no blocks to go by
        alone = made.problem.pieces if made.problem.group is None else ()
        for i, piece in enumerate(alone):
            at = torch.cat([piece.at_own, piece.at_shared], 1)
            phi = piece.phi(entries[2]) * moving[at].unsqueeze(1)
            variance = ((phi @ self._factor.block_covariances(i)) * phi).sum(-1)
            found[piece.sites] = variance
            covered[piece.sites] = True
        missing = (~covered).nonzero().reshape(-1)
        if missing.numel():
            found[missing] = self._spread(missing).diagonal()
        error = (found.clamp(min=0) * self.variance).sqrt()
        error[self._undetermined(entries)] = torch.inf
        return made.plan.split(error)

    def _undetermined(self, entries: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The sites whose value moves along a direction that the data do not determine."""
        unknown = self._weak.unknown
        if not unknown.shape[1]:
            return torch.zeros(0, dtype=torch.int64)
        rows, columns, slopes = entries
        norms = self._found.arrow.norms
        unit = torch.where(norms > 0, norms, 1.0)
        moved = torch.zeros(self._made.arrays.sites, unknown.shape[1], dtype=torch.float64)
        moved.index_add_(0, rows, slopes.unsqueeze(1) * unknown[columns])
        scale = torch.zeros_like(moved[:, 0])  # how far a site goes with its own free values
        scale.index_add_(0, rows, slopes.abs() / unit[columns])
        found = (moved.abs() > 1e-6 * scale.unsqueeze(1)).any(1)
        return found.nonzero().reshape(-1)

    def _rows(self, at: Tensor) -> Tensor:
        """φ's rows at some coordinates of the sites, dense: (k, free)."""
        rows, columns, slopes = self._made.arrays.entries(self.theta)
        each, again = torch.unique(at, return_inverse=True)
        place = torch.full((self._made.arrays.sites,), -1)
        place[each] = torch.arange(len(each))
        kept = place[rows] >= 0
        found = torch.zeros(len(each), self.theta.numel(), dtype=torch.float64)
        found.index_put_((place[rows[kept]], columns[kept]), slopes[kept], accumulate=True)
        return found[again]

    def _spread(self, at: Tensor) -> Tensor:
        phi = self._rows(at) * ~self._held
        return phi @ self._factor.solve(phi.T)

    def covariance(self, names: str | Sequence[str] | None = None) -> Tensor:
        """φ Cov φᵀ at the named sites (patterns and parts too), in the order given; without
        names, Cov of the free values, (JᵀJ)⁻¹ times `variance`.

        Rows of what the data do not determine are infinite on the diagonal, NaN off it.
        Raises NoSuchSite, and TooLarge above DENSE_LIMIT values.
        """
        if names is None:
            _refuse(len(self.theta))
            found = self._factor.solve(torch.diag((~self._held).double()))
            found[self._held] = 0.0
            unknown = self._weak.unknown
            norms = self._found.arrow.norms
            share = (unknown * torch.where(norms > 0, norms, 1.0).unsqueeze(1)).abs()
            lost = (share > 1e-6).any(1)
        else:
            every = [names] if isinstance(names, str) else list(names)
            if not every:
                raise NoSuchSite("`names` is empty; name sites, or leave it out")
            at = torch.cat([site_coordinates(self.model, n) for n in every])
            _refuse(len(at))
            found = self._spread(at)
            loose = self._undetermined(self._made.arrays.entries(self.theta))
            lost = torch.isin(at, loose)
        found = found * self.variance
        found[lost] = torch.nan
        found[:, lost] = torch.nan
        found[lost.nonzero().reshape(-1), lost.nonzero().reshape(-1)] = torch.inf
        return found

    @cached_property
    def correlation(self) -> Tensor:
        """The correlations of the free values, (free, free), in the order of `names`."""
        covariance = self.covariance()
        error = covariance.diagonal().sqrt()
        found = covariance / error.unsqueeze(0) / error.unsqueeze(1)
        found.fill_diagonal_(1.0)
        return found

    @contextmanager
    def _at_fit(self) -> Iterator[None]:
        """While active, the model has the values of this fit."""
        before = free_vector(self.model)
        set_free_vector(self.model, self.theta)
        try:
            yield
        finally:
            set_free_vector(self.model, before)

    def score_test(
        self,
        release: str | Sequence[str] | Tie | Tensor | None = None,
        cluster: Cluster = None,
    ) -> ScoreTest:
        """Do the data agree with the ties? `eadem.score_test` at this fit.

        The log-likelihood is that of Gaussian errors: of variance 1 with `absolute_sigma`,
        otherwise of the variance χ²/dof of this fit. The information is J_WᵀJ_W over it.
        `cluster` counts residuals in the order of `Joint.residual()`: residuals that follow
        one another in a pattern are seldom independent, and blocks of some length say so.

        Raises EvidenceError where the residuals leave no variance, and where several processes
        hold them; else as `score_test`.
        """
        if self._made.problem.group is not None:
            raise EvidenceError(
                "a score test needs every residual, and several processes hold them: fit the "
                "gathered data in one process from these values, and ask there"
            )
        variance = self._known(1.0 if self.absolute_sigma else self.reduced_chi2)
        with self._at_fit():
            if self._made.arrays.sites <= EXACT:
                j, r = self._sites()
                scores = -(j * r.unsqueeze(1)) / variance
                work = Exact(self.model, scores, j.T @ j / variance, "expected")
                return verdict(self.model, work, len(r), release, cluster)
            return score_test(
                self.model,
                lambda model, _: -0.5 * model.residual().reshape(-1).square() / variance,
                (),
                release,
                cluster,
                information=lambda model, _: model.residual() / variance**0.5,
            )

    def _sites(self) -> tuple[Tensor, Tensor]:
        """J_W (size, sites) and r, in the order of `Joint.residual()`."""
        problem = self._made.problem
        rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        each = zip(
            problem.pieces,
            problem.site_jacobians(self._found.point),
            self._found.point.residuals,
            strict=True,
        )
        for p, jacobian, r in each:
            for i, at in enumerate(p.sites):
                rows[p.name(i)] = (at, jacobian[i], r[i])
        order = list(self.model) if isinstance(self.model, Joint) else list(rows)
        wide = []
        for name in order:
            at, jacobian, r = rows[name]
            spread = jacobian.new_zeros(len(r), self._made.arrays.sites)
            wide.append(spread.index_add_(1, at, jacobian))
        return torch.cat(wide), torch.cat([rows[name][2] for name in order])

    def profile(self, site: str, level: float = 0.95) -> Interval:
        """The profile-likelihood interval of one value: `eadem.fits.profile`.

        Raises EvidenceError where the residuals leave no variance to compare with.
        """
        return profile(self._made, self._found, self._settings, site, level, self._levels())

    def _levels(self) -> tuple[float, float, int | None]:
        dof = None if self.absolute_sigma else self.dof
        return self._found.point.cost, self._known(self.variance), dof

    def _known(self, variance: float) -> float:
        """A variance, where there is one to weigh the data by."""
        if not 0 < variance < math.inf:
            raise EvidenceError(
                f"χ² = {self.chi2:.3g} with {self.dof} degrees of freedom does not say how "
                "large the errors are; fit with absolute_sigma=True if they are known"
            )
        return variance

    def report(self, title: str | None = None) -> Report:
        """The fit as tables and residual plots, for a terminal, a notebook or a page."""
        return report(self, title)

    def __str__(self) -> str:
        return str(self.report())


def _refuse(size: int) -> None:
    if size > DENSE_LIMIT:
        raise TooLarge(
            f"a covariance of {size} values is {size}² numbers; Eadem builds at most "
            f"{DENSE_LIMIT}²: name fewer, fit.covariance(names); fit.stderr has all of them"
        )


def _rank_notes(weak: Weak, names: Sequence[str], norms: Tensor) -> Iterator[str]:
    unknown = weak.unknown.shape[1]
    order = weak.strength.argsort()
    for count, i in enumerate(order.tolist()):
        text = combination(weak.directions[:, i], names, norms)
        if count < unknown:
            yield (
                f"the data do not determine the combination {text}: it was left where it "
                "started, and what depends on it has an infinite standard error; tie or fix one"
            )
        elif count - unknown < 3:
            yield (
                f"nearly degenerate: the data hardly determine the combination {text} "
                f"(relative singular value {float(weak.strength[i]):.1e})"
            )
