"""Ascent of the likelihood along its gradient, within what the plan and the simplex allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sp
import torch

from eadem._plan import Plan, PlanArrays
from eadem.bind import free_vector, resolved, set_free_vector, trainable
from eadem.hmm.data import Data, HMMError
from eadem.hmm.mstep import Affine
from eadem.maps.base import LinearMap, numel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from eadem.hmm.base import HMM, Stats

__all__ = ["climb"]

Floats = npt.NDArray[np.float64]
Expect = Callable[[Mapping[str, Floats]], "tuple[float, Stats]"]
#: A probability loses at most this share of itself in a step.
SHARE = 0.99
#: A quasi-Newton step that the simplex cuts to less than this share is not taken.
SHORT = 0.1
#: Pairs of steps and changes of the gradient that are kept.
MEMORY = 12


class _Point:
    """The likelihood at θ, with its gradient at the sites and what it curves like."""

    def __init__(self, model: HMM, expected: Expect, arrays: PlanArrays, theta: Floats) -> None:
        self.theta = theta
        self.sites = arrays.expand(torch.from_numpy(theta)).numpy()
        plan = arrays.plan
        shaped = {n: self.sites[s].reshape(plan.shapes[n]) for n, s in plan.slices.items()}
        values = {n: np.ascontiguousarray(v) for n, v in shaped.items()}
        for name, kind in model.site_constraints.items():
            if kind == "rows" and (values[name] < 0).any():
                raise HMMError(f"{name} has negative values")
        self.value, stats = expected(values)
        slopes = model._gradient(stats, values)
        curves = dict(model._curvature(stats, values))
        for name, kind in model.site_constraints.items():
            if kind == "rows":
                # Fisher's metric of a row with N counts, N/p: untied, its step is EM's.
                p = values[name]
                total = (slopes[name] * p).sum(-1, keepdims=True) + 1e-300
                curves[name] = sp.diags_array((total / np.maximum(p, 1e-200)).reshape(-1))
        self.gradient = np.concatenate([slopes[n].reshape(-1) for n in plan.shapes])
        self.curve: Any = sp.block_diag([curves[n] for n in plan.shapes], format="csr")


def climb(model: HMM, data: Data, group: ProcessGroup | None = None) -> float:
    """Raise the log-likelihood by quasi-Newton steps (L-BFGS) on θ, in the metric of the
    complete data's information; every step gains and leaves probabilities positive.

    Returns the last log-likelihood. Rows keep their sums exactly to rounding: steps are taken
    in the null space of the plan's row sums.
    """
    plan = resolved(model)
    arrays = PlanArrays(plan)
    theta = free_vector(model).double().numpy().copy()
    free = trainable(model).numpy().copy()
    for name, letter in model.letters.items():
        if letter not in model.params:
            free[_jacobian(arrays, theta)[plan.slices[name]].indices] = False
    moving = np.flatnonzero(free)
    probabilities = _probabilities(model, arrays)
    expected = _pooling(model, data, plan, group)
    here = _Point(model, expected, arrays, theta)
    if not np.isfinite(here.value):
        raise HMMError(
            "a sequence has likelihood zero under the values that the fit starts from"
        )
    model.monitor_.report(here.value)
    past: deque[tuple[Floats, Floats]] = deque(maxlen=MEMORY)
    basis: Floats | None = None
    try:
        while not model.monitor_.converged:
            jacobian = _jacobian(arrays, here.theta)[:, moving]
            if basis is None:
                basis = _basis(model, arrays, jacobian)
            phi = sp.csr_matrix(jacobian @ basis)
            slope = phi.T @ here.gradient
            inner = np.asarray((phi.T @ here.curve @ phi).todense())
            found = None
            tried = [(_solve(inner, slope), 0.0)]
            if past:
                tried.insert(0, (_direction(inner, slope, past), SHORT))
            for direction, least in tried:
                found = _search(
                    model,
                    expected,
                    arrays,
                    here,
                    moving,
                    basis @ direction,
                    probabilities,
                    float(slope @ direction),
                    least,
                )
                if found is not None:
                    break
                past.clear()
            if found is None:
                break
            pulled = (_jacobian(arrays, found.theta)[:, moving] @ basis).T @ found.gradient
            step = basis.T @ (found.theta - here.theta)[moving]
            change = slope - pulled
            if step @ change > 1e-12 * np.linalg.norm(step) * np.linalg.norm(change):
                past.append((step, change))
            here = found
            model.monitor_.report(here.value)
    finally:
        set_free_vector(model, torch.from_numpy(here.theta))
    return here.value


def _pooling(model: HMM, data: Data, plan: Plan, group: ProcessGroup | None) -> Expect:
    """Statistics at the sites' values, of all processes' data."""
    from eadem.hmm.fitting import Member, Sums

    linear = isinstance(plan, LinearMap)
    alike = Affine.of(plan).alike() if linear else np.arange(numel(plan.out_shape))
    sums = Sums.of([Member("", model, data)], dict(plan.slices), alike, group)

    def expected(values: Mapping[str, Floats]) -> tuple[float, Stats]:
        value, stats = sums.together([model._expected(data, values)])
        return value, stats[0]

    return expected


def _jacobian(arrays: PlanArrays, theta: Floats) -> Any:
    rows, columns, values = (v.numpy() for v in arrays.entries(torch.from_numpy(theta)))
    return sp.csr_matrix((values, (rows, columns)), shape=(arrays.sites, arrays.free))


def _probabilities(model: HMM, arrays: PlanArrays) -> npt.NDArray[np.int64]:
    """The flat coordinates that must stay positive: probabilities."""
    found = [np.zeros(0, dtype=np.int64)]
    for name, kind in model.site_constraints.items():
        if kind == "rows":
            s = arrays.plan.slices[name]
            found.append(np.arange(s.start, s.stop))
    return np.concatenate(found)


def _basis(model: HMM, arrays: PlanArrays, jacobian: Any) -> Floats:
    """Directions of the moving free values in which the sites keep their equations."""
    from eadem.bind.constraints import kept_rows

    rows = kept_rows(model, arrays.plan)
    if rows is None:
        return np.eye(jacobian.shape[1])
    at, weight = rows.indices().numpy(), rows.values().numpy()
    equations = sp.csr_matrix((weight, (at[0], at[1])), shape=(rows.shape[0], rows.shape[1]))
    pulled = (equations @ jacobian).toarray()
    used = np.flatnonzero((pulled != 0).any(axis=0))
    _, sizes, right = np.linalg.svd(pulled[:, used], full_matrices=True)
    rank = int((sizes > 1e-10 * sizes.max(initial=0)).sum())
    others = np.setdiff1d(np.arange(jacobian.shape[1]), used)
    found = np.zeros((jacobian.shape[1], len(used) - rank + len(others)))
    found[used, : len(used) - rank] = right[rank:].T
    found[others, len(used) - rank :] = np.eye(len(others))
    return found


def _solve(inner: Floats, slope: Floats) -> Floats:
    size = np.sqrt(np.maximum(inner.diagonal(), 1e-300))
    scaled = inner / size / size[:, None]
    found: Floats = np.linalg.lstsq(scaled, slope / size, rcond=1e-12)[0] / size
    return found


def _direction(inner: Floats, slope: Floats, past: deque[tuple[Floats, Floats]]) -> Floats:
    """Two loops of L-BFGS (Nocedal & Wright 2006, algorithm 7.4), begun from `inner`."""
    q, kept = slope.copy(), []
    for step, change in reversed(past):
        rho = 1.0 / (step @ change)
        a = rho * (step @ q)
        q -= a * change
        kept.append((a, rho, step, change))
    found = _solve(inner, q)
    for a, rho, step, change in reversed(kept):
        found += (a - rho * (change @ found)) * step
    return found


def _search(
    model: HMM,
    expected: Expect,
    arrays: PlanArrays,
    here: _Point,
    moving: npt.NDArray[np.int64],
    step: Floats,
    probabilities: npt.NDArray[np.int64],
    slope: float,
    least: float,
) -> _Point | None:
    """A point along the step that gains, probabilities positive; None if there is none."""
    if not slope > 1e-15 * max(1.0, abs(here.value)):
        return None
    length = 1.0
    whole = here.theta.copy()
    whole[moving] += step
    p = here.sites[probabilities]
    change = arrays.expand(torch.from_numpy(whole)).numpy()[probabilities] - p
    falls = (change < 0) & (p > 0)
    if falls.any():
        length = min(1.0, SHARE / float((-change[falls] / p[falls]).max()))
    if length < least:
        return None
    while length > 1e-10:
        theta = here.theta.copy()
        theta[moving] += length * step
        try:
            found = _Point(model, expected, arrays, theta)
        except (HMMError, np.linalg.LinAlgError, scipy.linalg.LinAlgError, FloatingPointError):
            found = None
        if found is not None and found.value > here.value + 1e-4 * length * slope:
            return found
        length *= 0.5
    return None
