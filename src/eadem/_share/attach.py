"""A plan put onto a model: as ties, or for a moment as plain values, to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eadem._share.factors import factored, made
from eadem._share.families import Matrix
from eadem._share.plans import Plan
from eadem._share.scratch import mapped
from eadem._share.statistics import Moments
from eadem.bind import plan as one_plan
from eadem.bind import tie, ties
from eadem.errors import Unsupported

__all__ = ["Standing", "attach", "refuse_tied", "replaced", "standing", "values"]


def refuse_tied(model: nn.Module, found: Sequence[Matrix]) -> None:
    """Raise Unsupported where matrices are in ties of Eadem's already."""
    tied = {site.partition("[")[0] for t in ties(model) for site in t.sites}
    both = [m.site for m in found if m.site in tied]
    if both:
        raise Unsupported(
            f"{both[0]!r} is tied already ({len(both)} of these matrices are); eadem.untie "
            "the model first, or give a plan that leaves them out"
        )


def _groups(plan: Plan, found: Sequence[Matrix]) -> Iterator[tuple[int, list[Matrix]]]:
    by_site = {m.site: m for m in found}
    for i, entry in enumerate(plan.entries):
        yield i, [by_site[s] for s in entry.sites]


def values(
    model: nn.Module, moments: Moments | None, plan: Plan, found: Sequence[Matrix]
) -> dict[str, Tensor]:
    """What a plan puts at its sites, in the sites' shapes and dtype; in scratch files."""
    new: dict[str, Tensor] = {}
    for i, group in _groups(plan, found):
        one = made(model, moments, plan.entries[i], group, plan.metric)
        new.update({s: mapped(v.to(model.get_parameter(s))) for s, v in one.values.items()})
    return new


@contextmanager
def replaced(model: nn.Module, new: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other values at some parameters, for a while."""
    held = {site: model.get_parameter(site).data for site in new}
    try:
        for site, value in new.items():
            model.get_parameter(site).data = value
        yield
    finally:
        for site, value in held.items():
            model.get_parameter(site).data = value


@torch.no_grad()
def attach(
    model: nn.Module,
    moments: Moments | None,
    plan: Plan,
    found: Sequence[Matrix],
    said: Callable[[int, int], None] | None = None,
) -> None:
    """Tie the model as the plan says; θ from its weights and the moments, group by group, in
    scratch files until something writes to it.
    """
    thetas = []
    with one_plan(model):
        for i, group in _groups(plan, found):
            entry = plan.entries[i]
            make = made if entry.method == "tied" else factored
            one = make(model, moments, entry, group, plan.metric)
            like = model.get_parameter(entry.sites[0])
            held = [mapped(theta.to(like)) for theta in one.thetas]
            thetas.append((tie(model, one.maps, start="empty"), held))
            if said is not None:
                said(i + 1, len(plan.entries))
    for declared, held in thetas:
        for p, theta in zip(declared.thetas, held, strict=True):
            p.data = theta


@dataclass(frozen=True)
class Standing:
    """What a model shares before anything is done to it.

    `stored` values in `matrices`, which one forward multiplies by `uses` times each; `untied`:
    the values that as many matrices of their own would have.
    """

    matrices: int
    stored: int
    uses: int
    untied: int

    @property
    def shared(self) -> bool:
        """Whether some matrix is used more than once."""
        return self.untied > self.stored

    def __str__(self) -> str:
        if not self.shared:
            return f"{self.matrices} matrices, {self.stored} values, each used once"
        return (
            f"shared already: {self.matrices} matrices of {self.stored} values serve "
            f"{self.matrices * self.uses} uses; untied these would be {self.untied} values, "
            f"{self.untied - self.stored} more"
        )


def standing(found: Sequence[Matrix]) -> Standing:
    """What the matrices of a model share by its class alone."""
    stored = sum(m.size for m in found)
    return Standing(
        len(found),
        stored,
        max((m.uses for m in found), default=1),
        sum(m.size * m.uses for m in found),
    )
