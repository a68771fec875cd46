"""What a test lets go: names, a tie or directions, as a linear map into the sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from eadem._plan import Plan
from eadem.bind import (
    Tie,
    constrained,
    kept_sites,
    resolved,
    site_coordinates,
    trainable,
    whole_vector,
    without,
)
from eadem.evidence.score import EvidenceError, columns
from eadem.maps.base import LinearMap, Map, numel
from eadem.maps.dense import Dense
from eadem.maps.index import Indexed

__all__ = [
    "Release",
    "directions",
    "fitted",
    "linear_at",
    "picked",
    "tied_coordinates",
    "trained",
]

Release = str | Sequence[str] | Tie | Tensor | None


def linear_at(plan: Map, theta: Tensor) -> LinearMap:
    """A plan, linearized at θ where it is not linear."""
    return plan if isinstance(plan, LinearMap) else plan.linearize(theta)


def trained(model: nn.Module) -> LinearMap:
    """φ at the model's values, from the free values that are trained: frozen ones are fixed,
    and what the sites keep by their meaning is kept.
    """
    return constrained(model, _free(model), resolved(model))


def _free(model: nn.Module) -> LinearMap:
    plan = resolved(model)
    theta = whole_vector(model, plan).to("cpu", torch.float64)
    phi, kept = linear_at(plan, theta), trainable(model)
    return phi if bool(kept.all()) else picked(phi, kept)


def picked(phi: LinearMap, kept: Tensor) -> LinearMap:
    """φ of some of its free values, the others zero."""
    place = torch.where(kept, kept.cumsum(0) - 1, -1)
    some = Indexed(place, (int(kept.sum()),)).bind(phi.in_shape)
    found = (phi @ some).bind(phi.out_shape)
    assert isinstance(found, LinearMap)
    return found


def fitted(model: nn.Module) -> Tensor:
    """The model's free values, flat, in float64 on the CPU. Raises EvidenceError on meta."""
    theta = whole_vector(model, resolved(model))
    if theta.is_meta:
        raise EvidenceError("the model is on the meta device and has no values; load it first")
    return theta.to("cpu", torch.float64)


def units(n: int, where: Tensor) -> LinearMap:
    """The map that puts k values at the coordinates `where` (k,) of n."""
    place = torch.full((n,), -1, dtype=torch.int64)
    place[where] = torch.arange(len(where))
    return Indexed(place, (len(where),)).bind((n,))


def directions(model: nn.Module, release: Release) -> LinearMap:
    """The released directions as a map (q,) → (expanded,); they may overlap range(φ).

    Where the sites keep equations (rows of probabilities sum to one), a direction counts only
    together with what the tied values do to keep them.
    Raises EvidenceError, and NoSuchSite for a name that the model does not have.
    """
    found = _directions(model, release)
    if not kept_sites(model):
        return found
    free = _free(model)
    columns = torch.cat([free.dense(), found.dense()], dim=1)
    both = Dense(columns).bind((numel(found.out_shape),))
    return constrained(model, both, resolved(model))


def _directions(model: nn.Module, release: Release) -> LinearMap:
    plan = resolved(model)
    n = numel(plan.out_shape)
    if release is None:
        return units(n, tied_coordinates(model))
    if isinstance(release, Tensor):
        return Dense(columns(release, n)).bind((n,))
    if isinstance(release, Tie):
        return _without(model, plan, release)
    if not isinstance(release, str | Iterable):
        raise EvidenceError(
            f"release={release!r}; name sites, or give a tie, a matrix of directions, or None "
            "to let every tie go"
        )
    names = [release] if isinstance(release, str) else release
    return units(n, site_coordinates(model, *names))


def tied_coordinates(model: nn.Module) -> Tensor:
    """The coordinates of every site of a tie, those of frozen ties left out."""
    plan = resolved(model)
    frozen = _frozen(model)
    found = [torch.zeros(0, dtype=torch.int64)]
    for group in plan.groups:
        if frozen.isdisjoint(group):
            found += [torch.arange(s.start, s.stop) for s in (plan.slices[n] for n in group)]
    if len(found) == 1:
        raise EvidenceError(
            f"{type(model).__name__} has no tie that could be released; declare ties with "
            "eadem.tie, or name in `release` what should be let go"
        )
    every: Tensor = torch.cat(found).sort().values  # groups share no site
    return every


def _frozen(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _without(model: nn.Module, plan: Plan, tie: Tie) -> LinearMap:
    """What the values of the tie's connected group may do once it is not declared."""
    wider = without(model, tie)
    values = plan.expand(fitted(model))
    phi = wider if isinstance(wider, LinearMap) else wider.linearize(wider.lift(values))
    own = {s.partition("[")[0] for s in tie.sites}
    group = {n for g in plan.groups if own & set(g) for n in g}
    kept = torch.cat(
        [torch.full((numel(o.shape),), n in group) for n, o in wider.owners.items()]
    )
    return picked(phi, kept)
