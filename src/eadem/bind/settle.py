"""Values made elsewhere for several sites of a tie, taken over together or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from eadem.bind.group import LINKS, Place, TieGroup
from eadem.bind.load import lifted
from eadem.bind.names import Sites
from eadem.errors import TieBroken, TieConflict

__all__ = ["names_of", "settle"]


def names_of(group: TieGroup) -> dict[str, str]:
    """Today's names of a group's sites, by key, in the outermost model that was tied."""
    return Sites(group.scope[0]).named(group)


@torch.inference_mode(False)
@torch.no_grad()
def settle(
    groups: Iterable[TieGroup], values: Mapping[Place, Tensor], doing: str, way_out: str
) -> None:
    """Set the free values of groups from the values at some of their sites.

    Sites that are not among `values` keep theirs. Raises TieBroken, before anything is
    written, where the values do not satisfy a tie; `doing` says who made them, `way_out` what
    to do instead.
    """
    written = []
    for group in groups:
        new = {k: values[p] for k, p in group.places.items() if p in values}
        before = {k: _now(p) for k, p in group.places.items()} if new else {}
        if all(torch.equal(v, before[k].to(v)) for k, v in new.items()):
            continue
        like = next(iter(new.values()))
        given = {k: new[k] if k in new else before[k].to(like) for k in before}
        names = names_of(group)
        try:
            thetas, worst = lifted(group, given)
        except TieConflict as e:
            thetas, why = {}, str(e)
        else:
            if worst is None:
                written.append((group, thetas))
                continue
            away, key = worst
            why = f"at {names[key]!r} they are {away:.3g} from what it gives"
        raise group.refuse(
            TieBroken(
                f"{doing} would give the tied sites {', '.join(list(names.values())[:4])} "
                f"values that their tie cannot hold: {why}. Nothing was changed. {way_out}"
            )
        )
    for group, thetas in written:
        for key, p in group.owner_parameters():
            p.copy_(thetas[key].reshape(p.shape))


def _now(place: Place) -> Tensor:
    link = place.module.__dict__.get(LINKS, {}).get(place.attr)
    value = place.parameter if link is None else link.compute()
    assert value is not None
    return value.detach()
