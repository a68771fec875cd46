"""Fitting by EM: one model, or several that share parts; data of one process, or of several.

What an M-step needs of the data are sums over the sites that show the same values. So sums are
what travels between processes: statistics of sites with one row of [φ | b] are added up first,
and put back at the first of these sites, with zeros at the others.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from eadem.bind import free_vector, resolved, set_free_vector, trainable, whole_vector
from eadem.bind.access import base_class
from eadem.hmm.data import Data, HMMError, observations
from eadem.hmm.monitor import ConvergenceMonitor
from eadem.hmm.mstep import Affine, Simplex
from eadem.maps.base import LinearMap
from eadem.solvers._reduce import agreed, pooled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from eadem.hmm.base import HMM, Stats

__all__ = [
    "Fitting",
    "Member",
    "begin",
    "centred",
    "distributions",
    "fit",
    "normalize",
    "write",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A model, its observations, and the prefix of its sites in the module that is fitted."""

    prefix: str
    model: HMM
    data: Data

    def own(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """The values of its sites."""
        return {n: values[self.prefix + n] for n in self.model.letters}


def fit(
    models: nn.Module,
    data: Mapping[str, Any],
    *,
    n_iter: int = 10,
    tol: float = 1e-2,
    verbose: bool = False,
    group: ProcessGroup | None = None,
) -> ConvergenceMonitor:
    """Fit several hidden Markov models in one module together, under the module's ties.

    Args:
        models: a module (an `nn.ModuleDict`, say) with HMMs somewhere in it. They must be of
            one class, and emit the same kind of observations; their states may differ in
            number. Whatever else the module has stays as it is.
        data: by the name of each HMM in the module, what its `fit` would take: a list of
            sequences, or a pair (X, lengths).
        n_iter: the most steps.
        tol: a gain of the total log-likelihood below which steps end.
        verbose: whether to print each step.
        group: processes that the data are spread over, as in `HMM.fit`.

    Sites in a model's `init_params`, and those never set, are drawn from its own data first;
    those in its `params` are fitted. Returns a monitor with the total log-likelihood before
    every step. Raises HMMError for names that are not the module's models, models that differ
    in kind, and observations that a model cannot have.

    >>> import eadem
    >>> from eadem.hmm import GaussianHMM
    >>> low, high = (GaussianHMM(1, n_features=1, covars_prior=0.0) for _ in range(2))
    >>> models = nn.ModuleDict({"low": low, "high": high})
    >>> _ = eadem.tie(models, "*.covars")
    >>> data = {"low": [np.array([0.0, 2.0])], "high": [np.array([10.0, 14.0])]}
    >>> _ = fit(models, data)
    >>> low.means_.item(), high.means_.item(), low.covars_.item(), high.covars_.item()
    (1.0, 12.0, 2.5, 2.5)
    """
    members = _members(models, data)
    for member in members:
        member.model._allocate()
    monitor = ConvergenceMonitor(tol, n_iter, verbose)
    members = centred(members, group)
    begin(models, members, group)
    Fitting(models, members, group).run(monitor)
    return monitor


def _members(models: nn.Module, data: Mapping[str, Any]) -> list[Member]:
    from eadem.hmm.base import HMM

    found = {n: m for n, m in models.named_modules() if isinstance(m, HMM)}
    if set(found) != set(data):
        raise HMMError(
            f"the module's models are {sorted(found)}, and there are data for {sorted(data)}; "
            "give observations for each model, by its name"
        )
    if not found:
        raise HMMError("the module has no hidden Markov models to fit")
    members = [
        Member(f"{n}." if n else "", m, m._data(*observations(data[n])))
        for n, m in found.items()
    ]
    kinds = {_kind(m) for m in found.values()}
    if len(kinds) > 1:
        raise HMMError(
            "models that are fitted together must be of one class, with the same "
            f"emissions; these are {sorted(map(str, kinds))}"
        )
    return members


def _kind(model: HMM) -> tuple[Any, ...]:
    name = base_class(model).__name__
    return name, getattr(model, "covariance_type", None), model.n_features


def centred(members: list[Member], group: ProcessGroup | None) -> list[Member]:
    """The same with all observations about one centre, where they are about any."""
    alone = len(members) == 1 and group is None
    if alone or not isinstance(members[0].data.centre, np.ndarray):
        return members
    count = sum(m.data.present() for m in members)
    total = sum(m.data.rows.sum(0) + m.data.present() * m.data.centre for m in members)
    sums = pooled(torch.from_numpy(np.stack([count, total])), group).numpy()
    centre = sums[1] / np.maximum(sums[0], 1.0)
    return [replace(m, data=m.data.about(centre)) for m in members]


def begin(root: nn.Module, members: Sequence[Member], group: ProcessGroup | None) -> None:
    """Draw what is to be drawn. Several processes begin where the first of them does."""
    starts: dict[str, Floats] = {}
    for member in members:
        model = member.model
        _same_shapes(model, group)
        wanted = [
            n
            for n, c in model.letters.items()
            if c in model.init_params or n not in model._known
        ]
        if wanted:
            drawn = model._start_values(member.data, wanted)
            starts.update({member.prefix + n: v for n, v in drawn.items()})
    if starts:
        write(root, starts)
    for member in members:
        member.model._known.update(member.model.letters)
    normalize(root, members)
    if group is not None:
        theta = free_vector(root).clone()
        if starts:
            distributed.broadcast(theta, group=group, group_src=0)
            set_free_vector(root, theta)
        agreed(theta, group)
    for member in members:
        member.model._values()


def _same_shapes(model: HMM, group: ProcessGroup | None) -> None:
    if group is None:
        return
    own = torch.tensor([float(model.n_features or 0)], dtype=torch.float64)
    size = distributed.get_world_size(group)
    if float(pooled(own, group)) != size * float(own):
        raise HMMError(
            "the processes' observations suggest different numbers of features (this one's "
            f"{model.n_features}); give n_features when the model is made"
        )


@torch.no_grad()
def write(root: nn.Module, values: Mapping[str, Floats]) -> None:
    """Values at sites; through the ties, the nearest that they allow."""
    plan = resolved(root)
    if not plan.groups:
        for name, value in values.items():
            root.get_parameter(name).copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return
    present: dict[str, Tensor] = {}
    for name in plan.shapes:
        if name in values:
            present[name] = torch.from_numpy(np.ascontiguousarray(values[name]))
        else:
            present[name] = operator.attrgetter(name)(root).detach().clone()
    set_free_vector(root, plan.lift(plan.cat(present)))


@torch.no_grad()
def normalize(root: nn.Module, members: Sequence[Member]) -> None:
    """Make every row of probabilities sum to one, under the ties; see `HMM.normalize`."""
    rows = [
        m.model._value(n)
        for m in members
        for n, k in m.model.site_constraints.items()
        if k == "rows" and getattr(m.model, n) is not None
    ]
    if all(_whole(p) for p in rows):
        return
    plan = resolved(root)
    if not isinstance(plan, LinearMap):
        return
    affine, theta = Affine.of(plan), whole_vector(root, plan).double().numpy()
    values = affine.expand(theta)
    simplex = Simplex(affine, distributions(affine, members), theta, ~trainable(root).numpy())
    set_free_vector(root, torch.from_numpy(simplex.feasible(values, theta)))


def _whole(p: Floats) -> bool:
    """Whether every row is probabilities that sum to one."""
    return bool((np.abs(p.sum(-1) - 1) < 1e-12).all() and (p >= 0).all())


def distributions(affine: Affine, members: Sequence[Member]) -> list[Ints]:
    """The flat coordinates of each distribution whose length is known."""
    found: list[Ints] = []
    for member in members:
        for name, kind in member.model.site_constraints.items():
            if kind == "rows" and member.prefix + name in affine.where:
                at = affine.where[member.prefix + name]
                shape = affine.shapes[member.prefix + name]
                found += list(np.arange(at.start, at.stop).reshape(-1, shape[-1]))
    return found


class Fitting:
    """EM on a module's free values, made ready for many steps. The module's ties are linear."""

    def __init__(
        self, root: nn.Module, members: Sequence[Member], group: ProcessGroup | None
    ) -> None:
        self.root, self.members, self.group = root, list(members), group
        plan = resolved(root)
        self.theta: Floats = whole_vector(root, plan).double().numpy().copy()
        self.affine = Affine.of(plan)
        self.fixed = self._fixed()
        rows = distributions(self.affine, members)
        self.simplex = Simplex(self.affine, rows, self.theta, self.fixed)
        #: The same with the models' sites of one name next to each other, under that name.
        self.joined = self._joined() if any(m.prefix for m in members) else self.affine
        alike = self.joined.alike() if group is not None else np.zeros(0, np.int64)
        self.sums = Sums.of(self.members, self.joined.where, alike, group)

    def _fixed(self) -> npt.NDArray[np.bool_]:
        """Free values that are frozen, or that a site uses which is not to be fitted."""
        fixed: npt.NDArray[np.bool_] = ~trainable(self.root).numpy()
        free = {
            m.prefix + n
            for m in self.members
            for n, letter in m.model.letters.items()
            if letter in m.model.params
        }
        for name in self.affine.where:
            if name not in free:
                fixed[self.affine.columns(name)] = True
        return fixed

    def _joined(self) -> Affine:
        return self.affine.joined(
            {
                n: [m.prefix + n for m in self.members if m.prefix + n in self.affine.where]
                for n in self.members[0].model.letters
            }
        )

    def expected(self) -> tuple[float, list[Stats], list[dict[str, Floats]]]:
        """The log-likelihood, each model's statistics, and the values of its sites."""
        values = self.affine.split(self.affine.expand(self.theta))
        own = [m.own(values) for m in self.members]
        found = [m.model._expected(m.data, v) for m, v in zip(self.members, own, strict=True)]
        return *self.sums.together(found), own

    def run(self, monitor: ConvergenceMonitor) -> float:
        """Steps until the monitor has converged; the last log-likelihood."""
        reached = -np.inf
        try:
            for _ in range(monitor.n_iter):
                reached, stats, values = self.expected()
                if not np.isfinite(reached):
                    raise HMMError(
                        "a sequence has likelihood zero under the values that the fit started "
                        "from or came to: some observation, or move, is impossible in it"
                    )
                self.step(stats, values)
                monitor.report(reached)
                if monitor.converged:
                    break
        finally:
            set_free_vector(self.root, torch.from_numpy(self.theta))
        return float(reached)

    def step(self, stats: list[Stats], values: list[dict[str, Floats]]) -> None:
        """The M-step."""
        counts = np.zeros(self.affine.phi.shape[0])
        for member, own, given in zip(self.members, stats, values, strict=True):
            for name, found in member.model._counts(own, given).items():
                counts[self.affine.where[member.prefix + name]] = found.reshape(-1)
        theta = self.simplex.maximise(counts, self.theta)
        models = [m.model for m in self.members]
        free = ~self.fixed
        self.theta = models[0]._emissions(models, stats, self.joined, theta, free)


@dataclass(frozen=True)
class Sums:
    """How statistics become sums that travel. By name of a statistic, `labels` are the sites'
    kinds for all models, flat one after the other.
    """

    labels: dict[str, Ints]
    group: ProcessGroup | None

    @staticmethod
    def of(
        members: Sequence[Member],
        where: Mapping[str, slice],
        alike: Ints,
        group: ProcessGroup | None,
    ) -> Sums:
        """`alike` (sites,) are equal for sites that show the same value; `where` has the place
        of the members' sites of one name among them.
        """
        if group is None:
            return Sums({}, None)
        models = [m.model for m in members]
        model = models[0]
        sites = {name: alike[where[name]] for name in model.letters}
        labels = {k: _small(v) for k, v in model._alike(models, sites).items()}
        for name, prior in model._linear.items():
            if any(np.min(getattr(m, prior)) < 1 for m in models):
                # Counts less than nothing are cut off at each site: not linear in the counts.
                labels[name] = np.arange(len(labels[name]))
        return Sums(labels, group)

    def together(self, found: list[Stats]) -> tuple[float, list[Stats]]:
        """The log-likelihood and the statistics, of all processes."""
        value = float(sum(s["log_likelihood"] for s in found))
        if self.group is None:
            return value, found
        own = {
            name: np.concatenate([np.asarray(s[name]).reshape(-1) for s in found])
            for name in self.labels
        }
        parts = [np.bincount(label, own[name]) for name, label in self.labels.items()]
        sent = torch.from_numpy(np.concatenate([[value], *parts]))
        total = pooled(sent, self.group).numpy()
        result, at = [dict(s) for s in found], 1
        for name, label in self.labels.items():
            size = int(label.max()) + 1
            whole = np.zeros(len(label))
            first = np.unique(label, return_index=True)[1]
            whole[first] = total[at : at + size]
            at, low = at + size, 0
            for stats in result:
                shape = np.shape(stats[name])
                high = low + int(np.prod(shape))
                stats[name], low = whole[low:high].reshape(shape), high
        return float(total[0]), result


def _small(labels: Ints) -> Ints:
    found: Ints = np.unique(labels.reshape(-1), return_inverse=True)[1].astype(np.int64)
    return found
