"""Input and output embeddings that are two matrices, and could be one.

A row e of both is the word that is read and the word that is written. With Σ = E[h hᵀ] of the
hidden states h that the output embedding reads, and G = E[g gᵀ] of the loss's gradients where
the input embedding is looked up, a change δ of a word's rows costs ½·f·δᵀΣδ and ½·f·δᵀGδ where
the word is written and read about equally often, f. So the one matrix is the mean of the two,
weighed by Σ and G, as for any matrices that are tied (`factors`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eadem._share.families import HEAD, LOOKED_UP, Matrix
from eadem._share.loss import writes
from eadem._share.plans import Entry, Plan
from eadem.errors import Unsupported

__all__ = ["NAME", "apart", "checked", "plan_of", "refuse_one"]

NAME = "output embedding tied to the input's"


def _weight(model: nn.Module, which: str) -> tuple[str, Any] | None:
    """The name of an embedding's weight, and the weight."""
    ask = getattr(model, which, None)
    try:
        found = None if ask is None else ask()
    except NotImplementedError:
        return None
    kind = nn.Embedding if which == "get_input_embeddings" else nn.Linear
    if not isinstance(found, kind):
        return None
    names = (n for n, p in model.named_parameters() if p is found.weight)
    name = next(names, None)
    return None if name is None else (name, found.weight)


def refuse_one(model: nn.Module, plan: Plan) -> None:
    """Raise Unsupported where a plan ties embeddings that are one parameter already."""
    head, table = (_weight(model, f"get_{side}_embeddings") for side in ("output", "input"))
    if head is None or table is None or head[1] is not table[1]:
        return
    names = {n for n, p in model.named_parameters(remove_duplicate=False) if p is head[1]}
    for e in plan.entries:
        if e.method == "tied" and names >= set(e.sites):
            raise Unsupported(
                f"{' and '.join(e.sites)} are one parameter already; leave them out of the plan"
            )


def apart(model: nn.Module) -> tuple[Matrix, ...]:
    """The output and the input embedding of a model that writes text, where these are two
    parameters of one shape; or else none.
    """
    if writes(model) == "hidden":
        return ()
    head, table = (
        _weight(model, "get_output_embeddings"),
        _weight(model, "get_input_embeddings"),
    )
    if head is None or table is None or head[1] is table[1]:
        return ()
    if head[1].shape != table[1].shape:
        return ()
    shape = (int(head[1].shape[0]), int(head[1].shape[1]))
    return (
        Matrix(head[0], HEAD, "hidden", "embeddings", 0, shape),
        Matrix(table[0], LOOKED_UP, "words", "embeddings", 0, shape, uses=0),
    )


def plan_of(pair: tuple[Matrix, ...]) -> Plan:
    """The plan that makes them one."""
    return Plan((Entry("tied", tuple(m.site for m in pair), 0),), name=NAME)


def checked(plan: Plan, pair: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
    """Those of the pair that a plan ties. Raises Unsupported for anything else that it does
    with the input embedding, which no product multiplies by.
    """
    sites = [m.site for m in pair]
    for e in plan.entries:
        if not pair or sites[1] not in e.sites:
            continue
        if e.method != "tied" or e.rank or sorted(e.sites) != sorted(sites):
            others = ", ".join(x for x in e.sites if x != sites[1]) or "nothing"
            raise Unsupported(
                f"the plan has the input embedding {sites[1]!r} {e.method} with {others}, rank "
                f'{e.rank}; it can be one with the output embedding: method = "tied", rank = '
                f"0, sites = {sites}"
            )
        return pair
    return ()
