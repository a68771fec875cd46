"""Patterns of sharing between the layers of a stack, as ties."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from eadem.bind import Start, Tie, match, plan, site_values, tie
from eadem.errors import NoSuchSite, OutOfRange, nearest

__all__ = ["share_layers"]


def share_layers(
    model: nn.Module,
    layers: str | Sequence[str],
    *parts: str,
    every: int | None = None,
    start: Start = "first",
) -> list[Tie]:
    """Tie the layers of a stack to each other: one tie for each parameter and set of layers.

    Without `parts` whole layers are shared, as in ALBERT (Lan et al., ICLR 2020); with them,
    only what they name, such as the keys and values of all attention layers. Buffers stay
    apart.

    Args:
        model: any module.
        layers: a pattern of module names, as "decoder.*" (`*` within a dotted part), in the
            order of the model; or the names themselves, in any order.
        parts: parameters or modules of a layer, by names relative to it; `*` and `**` as in
            `tie`. All by default.
        every: how many neighbours share; the last set may be smaller. All layers by default.
        start: where the shared values start, as in `tie`.

    Raises:
        NoSuchSite: fewer than two modules, a part that a layer has not, or layers whose
            parameters differ in name. The model is left as it was.
        OutOfRange: `every` is less than 2.

    >>> layer = lambda: nn.TransformerEncoderLayer(8, 2, 16)
    >>> model = nn.ModuleList(layer() for _ in range(4))
    >>> found = share_layers(model, "*", "linear1", every=2)
    >>> [t.sites for t in found][:2]
    [('0.linear1.weight', '1.linear1.weight'), ('0.linear1.bias', '1.linear1.bias')]
    >>> len(share_layers(model, "*"))
    12
    """
    if every is not None and every < 2:
        raise OutOfRange(f"every={every}; a set of layers that share has 2 or more")
    names = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
    found = [n for n in names if match(layers, [n])] if isinstance(layers, str) else [*layers]
    if unknown := [n for n in found if n not in names]:
        raise NoSuchSite(f"no module is called {unknown[0]!r}; {nearest(unknown[0], names)}")
    if len(found) < 2:
        raise NoSuchSite(
            f"{layers!r} names {len(found)} modules, and sharing needs two or more; "
            f"{nearest(str(layers), names)}"
        )
    inside = _inside(model, found)
    first = inside[found[0]]
    for layer in found[1:]:
        if set(inside[layer]) != set(first):
            odd = sorted(set(inside[layer]) ^ set(first))
            raise NoSuchSite(
                f"the layers {found[0]!r} and {layer!r} do not hold the same parameters: "
                f"{', '.join(odd[:4])}; name layers of one kind"
            )
    chosen = _chosen(first, parts, found[0])
    size = every or len(found)
    sets = [found[i : i + size] for i in range(0, len(found), size)]
    with plan(model):
        return [
            tie(model, *(f"{layer}.{name}" for layer in each), start=start)
            for each in sets
            if len(each) > 1
            for name in chosen
        ]


def _inside(model: nn.Module, layers: Sequence[str]) -> dict[str, list[str]]:
    """By layer, the names of its parameters, relative to it, tied ones too."""
    found: dict[str, list[str]] = {layer: [] for layer in layers}
    for name in site_values(model):
        for layer in layers:
            if name.startswith(layer + "."):
                found[layer].append(name[len(layer) + 1 :])
    return found


def _chosen(names: Sequence[str], parts: Sequence[str], layer: str) -> list[str]:
    """The names that the parts are, or that lie in them."""
    if not parts:
        return list(names)
    chosen: dict[str, None] = {}
    for part in parts:
        own = [n for n in names if match(part, [n]) or match(part + ".**", [n])]
        if not own:
            raise NoSuchSite(f"the layer {layer!r} has no {part!r}; {nearest(part, names)}")
        chosen.update(dict.fromkeys(own))
    return [n for n in names if n in chosen]
