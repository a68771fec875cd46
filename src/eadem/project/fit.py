"""Fitting a project: its stages, what came out, and the files that say so."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eadem.bind import ties as every_tie
from eadem.errors import EademError
from eadem.evidence import EvidenceError, ScoreTest
from eadem.fits import Fit, least_squares
from eadem.fits.fit import RankWarning
from eadem.project.block import Block
from eadem.project.build import Built, build, matches
from eadem.project.errors import ProjectError
from eadem.project.spec import Project
from eadem.report import page as pages

__all__ = ["Outcome", "Stage", "Verdict", "fit_project", "solve"]

#: Below this p-value a tie is doubtful, and rejected below that.
DOUBT, REJECT = 0.05, 0.01
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
    residuals where none are asked for). `changes`: the expected change of each site.
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
    `state`: free, tied, fixed or at a bound, by site.
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


def fit_project(project: Project, folder: Path, say: Say | None = None) -> Outcome:
    """Fit a project, and leave the report in a folder that exists.

    `report.html`, `fit.json`, `values.csv`, and for each data set `NAME.csv` with x, y, σ,
    curve and weighted residual. `say` is given a line for each iteration. Raises ProjectError
    with the place of what is wrong, and MissingPackage without jinja2.
    """
    from eadem.project.page import report  # needs what is above

    pages.ready()
    outcome = solve(project, say)
    _write(folder / "fit.json", json.dumps(_plain(summary(outcome)), indent=2) + "\n")
    _write(folder / "values.csv", values_csv(outcome))
    for name in outcome.built.joint:
        _write(folder / f"{name}.csv", curve_csv(outcome, name))
    _write(folder / "report.html", report(outcome))
    return outcome


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
    bounds = built.bounds
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
                tolerance=options.tolerance,
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
    owned = {o for sites in built.owners.values() for o in sites}
    frozen = {n for n, p in built.joint.named_parameters() if not p.requires_grad}
    found = {}
    for site, owners in built.owners.items():
        bound = built.bounds.get(site)
        value = float(fit.values[site].reshape(-1)[0])
        if owners <= frozen:
            found[site] = "fixed"
        elif bound is not None and any(
            b is not None and abs(value - b) <= 1e-9 * max(1.0, abs(b)) for b in bound
        ):
            found[site] = "at its bound"
        else:
            found[site] = "free" if site in owned else "tied"
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
    if not fit.converged:
        problem = "the fit did not converge"
    elif built.project.options.loss != "linear":
        problem = "not tested with a robust loss"
    elif not every_tie(built.joint):
        problem = "everything tied is fixed"
    if problem:
        return tuple(Verdict(t.text, t.sites, problem=problem) for t in built.ties), (), ()
    try:
        test = fit.score_test(cluster=_clusters(built, fit))
    except EvidenceError as error:
        return tuple(Verdict(t.text, t.sites, problem=str(error)) for t in built.ties), (), ()
    found = [_verdict(test, t.text, t.sites, t.tie) for t in built.ties]
    notes = tuple(f"the ties together: {n}" for n in test.notes)
    return tuple(found), tuple(asdict(row) for row in test.clusters), notes


def _verdict(test: ScoreTest, text: str, sites: tuple[str, ...], tie: Any) -> Verdict:
    try:
        one = test.again(tie)
    except EademError as error:
        return Verdict(text, sites, problem=str(error))
    changes = {s: float(one.changes[s].reshape(-1)[0]) for s in sites}
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
        start = built.starts[site]
        low, high = bound
        if (low is not None and start < low) or (high is not None and start > high):
            notes.append(f"{site} started at {start:g}, out of its bounds; it was moved inside")
    return notes


def summary(outcome: Outcome) -> dict[str, Any]:
    """Everything that a program may want to read, for fit.json."""
    from eadem import __version__

    fit, built = outcome.fit, outcome.built
    free = [n for n in fit.names if outcome.state.get(n) == "free"]
    return {
        "schema": 1,
        "eadem": __version__,
        "title": outcome.project.title,
        "converged": fit.converged,
        "message": fit.message,
        "chi2": fit.chi2,
        "dof": fit.dof,
        "reduced_chi2": fit.reduced_chi2,
        "aic": fit.aic,
        "bic": fit.bic,
        "residuals": fit.size,
        "free": fit.free,
        "options": asdict(outcome.project.options),
        "values": {
            site: {
                "value": _number(fit.values[site]),
                "stderr": _number(fit.stderr[site]),
                "state": outcome.state[site],
                "start": built.starts.get(site),
                "bounds": built.bounds.get(site),
            }
            for site in built.owners
        },
        "correlation": {"names": free, "matrix": correlation(fit, free)},
        "ties": [
            asdict(v) | {"verdict": v.word(outcome.project.options.cluster is not None)}
            for v in outcome.verdicts
        ],
        "clusters": list(outcome.clusters),
        "data": {
            d.name: {
                "file": None if d.observed is None else d.observed.file,
                "curve": None if d.curve is None else d.curve.text,
                "errors": None if d.observed is None else d.observed.errors,
                "observations": fit.residuals[d.name].numel(),
                "left_out": 0 if d.observed is None else len(d.observed.left_out[0]),
                "chi2": float(fit.residuals[d.name].square().sum()),
                "lag_one": outcome.serial[d.name],
            }
            for d in outcome.project.data
        },
        "stages": [asdict(s) for s in outcome.stages],
        "notes": list(outcome.notes),
    }


def correlation(fit: Fit, names: list[str]) -> list[list[float]]:
    """The correlations of some free values; nothing where there are very many."""
    if len(names) > 512 or not names:
        return []
    at = [fit.names.index(n) for n in names]
    found: list[list[float]] = fit.correlation[at][:, at].tolist()
    return found


def values_csv(outcome: Outcome) -> str:
    """Every value with its standard error."""
    rows = [
        (s, repr(_number(outcome.fit.values[s])), repr(_number(outcome.fit.stderr[s])), state)
        for s, state in outcome.state.items()
    ]
    return _csv([("parameter", "value", "stderr", "state"), *rows])


def curve_csv(outcome: Outcome, name: str) -> str:
    """One data set: x, y, σ, the fitted curve, and (y − curve)/σ."""
    block = outcome.built.joint[name]
    if not isinstance(block, Block):
        raise ProjectError(f"the model of {name!r} has no curve")
    with torch.no_grad():
        columns = (*block.observed(), block.model(), block.residual())
    rows = zip(*(c.reshape(-1).tolist() for c in columns), strict=True)
    return _csv([("x", "y", "sigma", "curve", "residual"), *(map(repr, r) for r in rows)])


def _csv(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _number(value: Tensor) -> float:
    return float(value.reshape(-1)[0])


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes a string."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
