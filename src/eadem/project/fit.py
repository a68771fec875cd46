"""Fitting a project: its stages, what came out, and the files that say so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from eadem.errors import EademError
from eadem.evidence import EvidenceError, ScoreTest
from eadem.evidence._release import directions
from eadem.fits import Fit, least_squares
from eadem.fits.fit import RankWarning
from eadem.project.build import Built, Declared, build, matches
from eadem.project.errors import ProjectError
from eadem.project.spec import Project
from eadem.report import page as pages

__all__ = ["Outcome", "Stage", "Verdict", "fit_project", "solve"]

#: Below this p-value a tie is doubtful, and rejected below that.
DOUBT, REJECT = 0.05, 0.01
#: The state of a number that its structure's symmetry gives.
SYMMETRY = "by symmetry"
FROZEN = "everything tied is fixed"
#: Offsets (see `eadem.least_squares`) at which a fit ends: of curves, of powder patterns, and
#: of the latter in stages before the last.
CURVES, FINE, ROUGH = 1e-8, 3e-4, 5e-2
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """What one stage came to."""

    free: tuple[str, ...]
    chi2: float
    dof: int
    iterations: int
    converged: bool
    message: str


@dataclass(frozen=True)
class Verdict:
    """What the score test says of one tie, let go alone.

    `pvalue` treats the residuals as independent, `robust_pvalue` only the clusters (single
    residuals where none are asked for). `changes`: the expected change of each value.
    `problem`: why there is no test, if so.
    """

    tie: str
    sites: tuple[str, ...]
    statistic: float = math.nan
    df: int = 0
    pvalue: float = math.nan
    robust_pvalue: float = math.nan
    changes: dict[str, float] | None = None
    problem: str = ""

    def word(self, clustered: bool) -> str:
        """The verdict in a word, by the robust p-value where residuals were clustered."""
        p = (
            self.robust_pvalue
            if clustered and not math.isnan(self.robust_pvalue)
            else self.pvalue
        )
        if math.isnan(p):
            return self.problem or "not tested"
        return "rejected" if p < REJECT else "doubtful" if p < DOUBT else "nothing against it"


@dataclass(frozen=True, eq=False)
class Outcome:
    """A fitted project. `serial`: the lag-one autocorrelation of each data set's residuals;
    `state` of every number by name: free, tied, fixed, at its bound or by symmetry.
    """

    built: Built
    fit: Fit
    stages: tuple[Stage, ...]
    verdicts: tuple[Verdict, ...]
    clusters: tuple[Mapping[str, float], ...]
    serial: dict[str, float]
    state: dict[str, str]
    notes: tuple[str, ...]

    @property
    def project(self) -> Project:
        """What was asked."""
        return self.built.project

    def value(self, name: str) -> tuple[float, float]:
        """A number and its standard error."""
        e = self.built.entries[name]
        value, error = (
            v[e.site].reshape(-1)[e.place] for v in (self.fit.values, self.fit.stderr)
        )
        return float(value), float(error)

    def free_names(self) -> dict[str, int]:
        """The free values that moved, by the number that shows each, with their places in the
        fit's correlations.
        """
        shown = {e.columns[0]: n for n, e in self.built.entries.items() if e.leads}
        return {
            n: column
            for column in range(len(self.fit.names))
            if self.state.get(n := shown.get(column, "")) == "free"
        }


def fit_project(project: Project, folder: Path, say: Say | None = None) -> Outcome:
    """Fit a project, and leave the report in a folder that exists.

    `report.html`, `fit.json`, `values.csv`, and for each data set `NAME.csv` with x, y, σ,
    curve and weighted residual; of powder patterns `PHASE.cif` and `NAME.reflections.csv` too.
    `say` is given a line for each iteration. Raises ProjectError
    with the place of what is wrong, and MissingPackage without jinja2.
    """
    from eadem.project.files import write  # needs what is above

    pages.ready()
    outcome = solve(project, say)
    write(outcome, folder)
    return outcome


def solve(project: Project, say: Say | None = None) -> Outcome:
    """Fit a project stage by stage. Raises as `fit_project`."""
    built = build(project)
    speak = say or (lambda _: None)
    asked = project.stages or ((("**",), ("stage",)),)
    stages, fit = [], None
    for i, (patterns, path) in enumerate(asked, 1):
        sites: dict[str, None] = {}
        for pattern in patterns:
            found = matches(pattern, built.sites())
            if not found:
                raise project.document.error(path, f"{pattern!r:.80} is no parameter")
            if built.held.issuperset(found):
                raise project.document.error(
                    path,
                    f"{pattern!r:.80} is refined only where refine = […] of its data set "
                    "says so",
                )
            sites |= dict.fromkeys(found)
        built.free_only(sites)
        if len(asked) > 1:
            speak(f"stage {i} of {len(asked)}: {', '.join(patterns)}")
        fit = _fitted(built, speak, last=i == len(asked))
        stages.append(
            Stage(
                patterns,
                fit.chi2,
                fit.dof,
                len(fit.history) - 1,
                fit.converged,
                fit.message,
            )
        )
    assert fit is not None
    serial = {name: _lag_one(r) for name, r in fit.residuals.items()}
    verdicts, clusters, said = _verdicts(built, fit)
    return Outcome(
        built,
        fit,
        tuple(stages),
        verdicts,
        clusters,
        serial,
        _states(built, fit),
        (*_notes(built, fit, serial), *said),
    )


def _fitted(built: Built, speak: Say, last: bool) -> Fit:
    options = built.project.options
    bounds = {built.entries[n].part: b for n, b in built.bounds.items()}
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = (FINE if last else ROUGH) if built.powder else CURVES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # it is in the fit's notes
        try:
            return least_squares(
                built.joint,
                bounds=bounds or None,
                loss=options.loss,
                loss_scale=options.loss_scale,
                absolute_sigma=options.absolute_sigma,
                starts=options.starts if last else 0,
                seed=options.seed,
                tolerance=tolerance,
                max_iterations=options.max_iterations,
                progress=lambda step: speak(str(step)),
            )
        except EademError as error:
            raise ProjectError(f"{built.project.document.file}: {error}") from error


def _lag_one(residual: Tensor) -> float:
    r = residual.reshape(-1)
    squares = float(r.square().sum())
    return float(r[1:] @ r[:-1]) / squares if squares > 0 else 0.0


def _states(built: Built, fit: Fit) -> dict[str, str]:
    frozen = {n for n, p in built.joint.named_parameters() if not p.requires_grad}
    found = {}
    for name, e in built.entries.items():
        value = float(fit.values[e.site].reshape(-1)[e.place])
        if built.powder and (e.constant or (e.follows and not e.leads)):
            found[name] = SYMMETRY
        elif e.owners <= frozen:
            found[name] = "fixed"
        elif any(
            b is not None and abs(value - b) <= 1e-9 * max(1.0, abs(b))
            for b in built.bounds.get(name, ())
        ):
            found[name] = "at its bound"
        else:
            found[name] = "free" if e.leads else "tied"
    return found


def _clusters(built: Built, fit: Fit) -> list[int] | None:
    """One id per residual: pieces of `cluster` residuals that never span two data sets."""
    size = built.project.options.cluster
    if size is None:
        return None
    ids: list[int] = []
    for name in built.joint:
        first = ids[-1] + 1 if ids else 0
        ids += [first + i // size for i in range(fit.residuals[name].numel())]
    return ids


def _verdicts(
    built: Built, fit: Fit
) -> tuple[tuple[Verdict, ...], tuple[Mapping[str, float], ...], tuple[str, ...]]:
    """The score test of every tie, of all of them by size of the clusters, and its notes."""
    if not built.ties:
        return (), (), ()
    problem = ""
    tested = [t for t in built.ties if not built.frozen(built.owners_of(t))]
    if not fit.converged:
        problem = "the fit did not converge"
    elif built.project.options.loss != "linear":
        problem = "not tested with a robust loss"
    elif not tested:
        problem = FROZEN
    if problem:
        return tuple(Verdict(t.text, t.sites, problem=problem) for t in built.ties), (), ()
    try:
        moves = [directions(built.joint, t.tie).dense() for t in tested]
        test = fit.score_test(release=torch.cat(moves, 1), cluster=_clusters(built, fit))
    except EvidenceError as error:
        return tuple(Verdict(t.text, t.sites, problem=str(error)) for t in built.ties), (), ()
    found = [
        _verdict(test, built, t) if t in tested else Verdict(t.text, t.sites, problem=FROZEN)
        for t in built.ties
    ]
    notes = tuple(f"the ties together: {n}" for n in test.notes)
    return tuple(found), tuple(asdict(row) for row in test.clusters), notes


def _verdict(test: ScoreTest, built: Built, tied: Declared) -> Verdict:
    text, sites = tied.text, tied.sites
    try:
        one = test.again(tied.tie)
    except EademError as error:
        return Verdict(text, sites, problem=str(error))
    changes = {
        n: float(one.changes[e.site].reshape(-1)[e.place])
        for n, e in built.entries.items()
        if (e.site in sites or n in sites) and not e.constant
    }
    return Verdict(
        text,
        sites,
        one.statistic,
        one.df,
        one.pvalue if one.df else math.nan,
        math.nan if one.robust is None else one.robust.pvalue,
        changes,
        "" if one.df else "the data do not tell",
    )


def _notes(built: Built, fit: Fit, serial: Mapping[str, float]) -> list[str]:
    notes = list(fit.notes)
    for name, lag in serial.items():
        n = fit.residuals[name].numel()
        if abs(lag) > 2 / math.sqrt(n) and n > 4:
            how = "follow one another" if lag > 0 else "alternate"
            text = (
                f"{name}: the residuals {how} (lag-one autocorrelation {lag:+.2f}, "
                f"±{2 / math.sqrt(n):.2f} would be chance), so standard errors and p-values "
                f"that treat them as independent are too {'small' if lag > 0 else 'large'}: "
            )
            if built.project.options.cluster is None:
                text += (
                    "mend the curve, or set cluster = … in [options] to the length over which "
                    "they hang together and read the robust p-values"
                )
            else:
                text += "read the robust p-values"
            notes.append(text)
    if fit.absolute_sigma and fit.dof > 0:
        spread = 3 * math.sqrt(2 / fit.dof)
        if fit.reduced_chi2 > 1 + spread:
            notes.append(
                f"χ²/dof is {fit.reduced_chi2:.3g}: the curves do not fit within the errors "
                "given, so standard errors from them are too small"
            )
    for f in built.project.functions:
        if f.site in built.project.starts:
            notes.append(f"the start of {f.site} is not used: it follows from {f.text}")
    for site, bound in built.bounds.items():
        e = built.entries[site]
        start = float(built.starts[e.site].reshape(-1)[e.place])
        low, high = bound
        if (low is not None and start < low) or (high is not None and start > high):
            notes.append(f"{site} started at {start:g}, out of its bounds; it was moved inside")
    return notes
