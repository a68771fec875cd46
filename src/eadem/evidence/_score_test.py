"""The score test of a model's ties: what the data say of them, at the tied fit alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from eadem.bind import resolved, ties
from eadem.evidence._boundary import boundary_notes
from eadem.evidence._clusters import Cluster, ClusterRow, cluster_ids, robust_test, sensitivity
from eadem.evidence._iterative import EXACT, KEPT, ROWS, Iterative
from eadem.evidence._likelihood import Density, Information, Likelihood
from eadem.evidence._merging import refuse_merging
from eadem.evidence._release import Release, directions, trained
from eadem.evidence.score import NullFit, Projection, ScoreResult
from eadem.maps.base import LinearMap

__all__ = ["Exact", "ScoreTest", "Table", "TableRow", "Work", "score_test", "verdict"]


@dataclass(frozen=True)
class TableRow:
    """One release, tested alone: `kind` is "joint", "tie" or "site".

    `change` is the largest expected change among the values that it lets go.
    """

    kind: str
    name: str
    statistic: float
    df: int
    pvalue: float
    robust_pvalue: float
    change: float


@dataclass(frozen=True)
class Table:
    """Rows of tests; printed as a table."""

    rows: tuple[TableRow, ...]

    def __str__(self) -> str:
        width = max([*(len(r.name) for r in self.rows), 7])
        head = f"{'':6}{'release':<{width}} {'χ²':>10} {'df':>5} {'p':>9} {'robust p':>9}"
        lines = [f"{head} {'change':>10}"]
        for r in self.rows:
            lines.append(
                f"{r.kind:<6}{r.name:<{width}} {r.statistic:>10.4g} {r.df:>5} "
                f"{r.pvalue:>9.3g} {r.robust_pvalue:>9.3g} {r.change:>+10.3g}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class ScoreTest(ScoreResult):
    """The verdict of `score_test`; what it shares with ScoreResult is described there.

    `expected_change`, `stderr` are flat, in the order of the model's sites (expanded,);
    `changes` is the first by name. `robust` uses the sandwich over the clusters, or over
    single observations, and `clusters` says how it depends on their size. `information` is
    which information was used: "observed", "outer" or "expected".
    """

    information: str
    clusters: tuple[ClusterRow, ...]
    changes: dict[str, Tensor] = field(repr=False)
    _made_of: _Pieces = field(repr=False)

    def again(self, release: Release) -> ScoreTest:
        """The test of another release, from the derivatives that this one was made of."""
        model, work, n, _, cluster = self._made_of
        return verdict(model, work, n, release, cluster)

    def table(self) -> Table:
        """The joint test, then every tie let go alone, then every site let go alone."""
        return Table(tuple(_rows(*self._made_of)))

    def __str__(self) -> str:
        lines = [super().__str__(), f"information: {self.information}"]
        if self.clusters:
            lines.append("cluster size  clusters  robust χ²         p")
            lines += [
                f"{r.size:>12.4g}  {r.clusters:>8}  {r.statistic:>9.4g}  {r.pvalue:>8.3g}"
                for r in self.clusters
            ]
        return "\n".join(lines)


def score_test(
    model: nn.Module,
    log_density: Density,
    data: Any,
    release: Release = None,
    cluster: Cluster = None,
    *,
    information: Information = "observed",
) -> ScoreTest:
    """Do the data agree with the ties? Asked at the tied fit, without refitting.

    Args:
        model: a model at the maximum of its tied likelihood.
        log_density: `log_density(model, batch)` → one log density per observation, (n,), in
            torch operations. What is estimated along with the parameters, such as the
            variance of an error, should be a parameter of the model too.
        data: one batch (a tensor, tuple or mapping), or a list or DataLoader of batches in a
            fixed order.
        release: what is let go: names, patterns or parts of sites (frozen ones too); a `Tie`;
            a matrix (expanded, q) of directions in the order of the sites; None lets go every
            tie that is not frozen.
        cluster: for data that are not independent, the length of consecutive blocks, or one
            id per observation: the robust statistic then treats only clusters as independent.
        information: "observed", minus the Hessian of the log-likelihood; "outer", Σ s sᵀ over
            observations; or a function `(model, batch)` → tensor whose squared Jacobian JᵀJ is
            the expected information: mean/σ of a Gaussian with known σ, 2√μ of a Poisson
            mean, 2√p of all probabilities of a categorical variable.

    The statistic is Rao's (1948), in the form of Aitchison & Silvey (1958): χ² with as many
    degrees of freedom as the data identify among the released directions. The robust form is
    that of White (1982) and Boos (Amer. Statist. 46, 1992). Everything is computed in float64
    on an untied copy. Above 4,096 values at the sites (1,024 for "observed") nothing of their
    square is built: the information is used through products, "observed" is replaced by
    "outer" and solved by conjugate gradients, and the robust form is given for up to 128
    released directions.

    Raises EvidenceError where the densities, the release or the clusters do not fit, and where
    a tie merges states of a hidden Markov model, so that other values lose their meaning.

    Two counts, tied: is Poisson 30 against Poisson 50 one rate?

    >>> import eadem, torch
    >>> model = nn.Module()
    >>> model.rate = nn.Parameter(torch.tensor([40.0, 40.0]))
    >>> _ = eadem.tie(model, "rate[0]", "rate[1]")
    >>> data = torch.tensor([0, 1]), torch.tensor([30.0, 50.0])
    >>> def log_density(model, batch):
    ...     which, count = batch
    ...     return count * model.rate[which].log() - model.rate[which]
    >>> expected = lambda model, batch: 2 * model.rate[batch[0]].sqrt()
    >>> found = score_test(model, log_density, data, information=expected)
    >>> round(found.statistic, 6), found.df, round(found.pvalue, 4)
    (5.0, 1, 0.0253)
    >>> found.changes["rate"].round(decimals=6)
    tensor([-10.,  10.], dtype=torch.float64)
    """
    at = Likelihood(model, log_density, data)
    p = at.values.numel()
    by_rows = information != "observed" and p <= ROWS and at.n * p <= KEPT
    work: Work
    if p <= EXACT or by_rows:
        scores = at.scores()
        kind = information if isinstance(information, str) else "expected"
        work = Exact(model, scores, at.information(information, scores), kind)
    else:
        work = Iterative(model, at, information)
    return verdict(model, work, at.n, release, cluster)


def verdict(
    model: nn.Module,
    work: Work,
    n: int,
    release: Release,
    cluster: Cluster,
) -> ScoreTest:
    """The score test from its pieces, for `n` observations; arguments as in `score_test`."""
    ids = cluster_ids(cluster, n)
    released = directions(model, release)
    refuse_merging(model, released)
    found = work.project(released)
    notes = [*found.notes, *work.notes]
    along = work.along(found)
    result = found.result(robust_test(found, along, ids, notes), notes)
    return ScoreTest(
        **vars(result),
        information=work.kind,
        clusters=sensitivity(along, ids, None if cluster is None else n),
        changes=resolved(model).split(result.expected_change.reshape(-1)),
        _made_of=(model, work, n, release, cluster),
    )


class Work(Protocol):
    """How the pieces of a score test are computed."""

    kind: str
    notes: tuple[str, ...]

    def project(self, released: LinearMap) -> Projection:
        """The gradient along a release."""

    def along(self, found: Projection) -> Tensor | None:
        """(n, df): every observation's score along the projection, or None."""


#: A model, its pieces, the number of observations, a release and the clusters.
_Pieces = tuple[nn.Module, Work, int, Release, Cluster]


class Exact:
    """With the sites' information as a matrix: `scores` (n, sites) of every observation, and
    `information` (sites, sites).
    """

    def __init__(
        self, model: nn.Module, scores: Tensor, information: Tensor, kind: str
    ) -> None:
        self.kind, self.scores = kind, scores
        self.gradient = scores.sum(0)
        null = trained(model)
        self.fit = NullFit(null, information)
        self.notes = boundary_notes(model, null, information)

    def project(self, released: LinearMap) -> Projection:
        columns = self.fit.directions(release=released.dense())
        return self.fit.project(self.gradient, columns)

    def along(self, found: Projection) -> Tensor | None:
        return self.scores @ found.along


def _listed(sites: Sequence[str]) -> str:
    """The sites' names, the first of many.

    >>> _listed(["a", "b", "c", "d", "e"])
    'a, b, c, … (5 sites)'
    """
    if len(sites) <= 4:
        return ", ".join(sites)
    return ", ".join(sites[:3]) + f", … ({len(sites)} sites)"


def _rows(
    model: nn.Module, work: Work, n: int, release: Release, cluster: Cluster
) -> Iterator[TableRow]:
    ids = cluster_ids(cluster, n)
    every = ties(model)
    yield _row("joint", "", work.project(directions(model, release)), work, ids)
    for t in every:
        yield _row("tie", _listed(t.sites), work.project(directions(model, t)), work, ids)
    for s in dict.fromkeys(s for t in every for s in t.sites):
        yield _row("site", s, work.project(directions(model, s)), work, ids)


def _row(kind: str, name: str, found: Projection, work: Work, ids: Tensor) -> TableRow:
    robust = robust_test(found, work.along(found), ids, [])
    change = found.change
    largest = float(change[change.abs().argmax()]) if change.numel() else 0.0
    result = found.result(robust, [])
    p = float("nan") if robust is None else robust.pvalue
    return TableRow(kind, name, result.statistic, result.df, result.pvalue, p, largest)
