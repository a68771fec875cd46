"""The sites of a model by name, in traversal order, and the patterns that choose them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from eadem._plan.site import parse
from eadem.bind.group import LINKS, MARK, ORDER, Place, TieGroup
from eadem.errors import NoSuchSite, Unsupported, nearest
from eadem.maps.base import Shape

__all__ = ["Sites", "is_pattern", "match"]


class Sites:
    """Every parameter place of a model, in the order of `named_parameters()`.

    `places`: name → place, derived sites included; `names`: place → name; `aliases`: the
    names of places that hold a parameter which an earlier place holds too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: dict[str, Place] = {}
        self.modules: dict[nn.Module, str] = {}
        self.parents: dict[nn.Module, list[nn.Module]] = {}
        self.groups: list[TieGroup] = []
        self.aliases: dict[str, str] = {}
        seen_groups: set[int] = set()
        seen_parameters: dict[int, str] = {}
        stack: list[tuple[str, nn.Module]] = [("", model)]
        while stack:
            prefix, module = stack.pop()
            if module in self.modules:
                continue
            self.modules[module] = prefix
            contents = module.__dict__
            mark = contents.get(MARK)
            if mark is not None:
                for g in mark.groups:
                    if id(g) not in seen_groups:
                        seen_groups.add(id(g))
                        self.groups.append(g)
            parameters = contents["_parameters"]
            links = contents.get(LINKS)
            if links:
                names = list(contents.get(ORDER, ()))
                names += [a for a in parameters if a not in names]
            else:
                links, names = (), parameters
            for attr in names:
                p = parameters.get(attr)
                if p is None and attr not in links:
                    continue
                name = f"{prefix}.{attr}" if prefix else attr
                self.places[name] = Place(module, attr)
                if p is not None:
                    first = seen_parameters.setdefault(id(p), name)
                    if first != name:
                        self.aliases[name] = first
            children = contents["_modules"]
            if children:
                dot = f"{prefix}." if prefix else ""
                for child_name, child in reversed(children.items()):
                    if child is not None:
                        self.parents.setdefault(child, []).append(module)
                        stack.append((dot + child_name, child))

    @cached_property
    def names(self) -> dict[Place, str]:
        """The name of every place."""
        return {place: name for name, place in self.places.items()}

    @cached_property
    def order(self) -> dict[str, int]:
        """The position of every name in traversal order."""
        return {name: i for i, name in enumerate(self.places)}

    def name(self, place: Place) -> str:
        """The name of a place, by its module's path."""
        prefix = self.modules[place.module]
        return f"{prefix}.{place.attr}" if prefix else place.attr

    def shape(self, name: str) -> Shape:
        """The shape of the site (not of the θ that its parameter may hold)."""
        place = self.places[name]
        links = place.module.__dict__.get(LINKS)
        if links and place.attr in links:
            shape: Shape = links[place.attr].shape
            return shape
        found = place.parameter
        assert found is not None
        return tuple(found.shape)

    def find(self, text: str) -> list[tuple[str, object]]:
        """The names that a site text or pattern means, each with its index.

        Raises NoSuchSite (nearest names listed) or Unsupported (with the reason).
        """
        name, index = parse(text)
        if is_pattern(name):
            found = match(name, self.places)
            if not found:
                raise NoSuchSite(
                    f"the pattern {name!r} matches no parameter of "
                    f"{type(self.model).__name__}; {nearest(name, self.places)}"
                )
            return [(n, index) for n in found]
        if name in self.places:
            return [(name, index)]
        return [(self._other_name(name), index)]

    def _other_name(self, name: str) -> str:
        """A name through a module that is registered twice, or the reason there is none."""
        prefix, _, attr = name.rpartition(".")
        try:
            module = self.model.get_submodule(prefix)
        except AttributeError:
            module = None
        if module is not None:
            if module in self.modules and Place(module, attr) in self.names:
                return self.names[Place(module, attr)]
            if parametrize.is_parametrized(module, attr):
                raise Unsupported(
                    f"{name!r} already has a parametrization "
                    f"({', '.join(type(p).__name__ for p in module.parametrizations[attr])}); "  # type: ignore[index]
                    "remove it with torch.nn.utils.parametrize.remove_parametrizations, or tie "
                    "through a map instead"
                )
            if attr in module._buffers:
                raise Unsupported(
                    f"{name!r} is a buffer, not a parameter; a tie holds learned values. "
                    "Register it as nn.Parameter to tie it"
                )
            if isinstance(getattr(module, attr, None), torch.Tensor):
                raise Unsupported(
                    f"{name!r} is a plain tensor (as weight_norm computes it), not a "
                    "parameter; tie the parameters it is computed from, or remove that first"
                )
        raise NoSuchSite(
            f"{type(self.model).__name__} has no parameter {name!r}; "
            + nearest(name, self.places)
        )

    def ancestors(self, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """The modules of this model that contain all of `modules`, outermost first."""
        common: set[nn.Module] | None = None
        for m in modules:
            above: set[nn.Module] = set()
            todo = [m]
            while todo:
                at = todo.pop()
                if at not in above:
                    above.add(at)
                    todo.extend(self.parents.get(at, ()))
            common = above if common is None else common & above
            if len(common) == 1:
                break
        found = common or {self.model}
        return [m for m in self.modules if m in found]

    def supported(self, names: Iterable[str]) -> None:
        """Raise Unsupported where a place cannot carry a tie, or the places do not agree."""
        first: tuple[str, torch.Tensor] | None = None
        for name in names:
            module, attr = self.places[name]
            _supported_module(name, module)
            p = module._parameters.get(attr)
            if p is None:
                p = next(
                    (q for _, q in module.__dict__[LINKS][attr].group.owner_parameters()), None
                )
                if p is None:
                    continue
            if isinstance(p, UninitializedParameter):
                raise Unsupported(
                    f"{name!r} has no shape yet (lazy module); run the model once on an input, "
                    "then tie"
                )
            if not (p.dtype.is_floating_point or p.dtype.is_complex):
                raise Unsupported(
                    f"{name!r} holds {p.dtype}; a tie learns its values, so they must be "
                    "floating point"
                )
            if first is None:
                first = (name, p)
                continue
            for what, a, b in (
                ("dtype", first[1].dtype, p.dtype),
                ("device", first[1].device, p.device),
                ("requires_grad", first[1].requires_grad, p.requires_grad),
            ):
                if a != b:
                    raise Unsupported(
                        f"{first[0]!r} and {name!r} differ in {what} ({a} and {b}); one θ has "
                        f"one {what}: make them agree before tying"
                    )


def _supported_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise Unsupported(
            f"{name!r} is in a scripted module, whose attributes are fixed; tie the eager "
            "model and use torch.compile or torch.export"
        )
    if isinstance(module, parametrize.ParametrizationList):
        raise Unsupported(
            f"{name!r} belongs to a parametrization of another library; remove it with "
            "torch.nn.utils.parametrize.remove_parametrizations, then tie"
        )


def is_pattern(name: str) -> bool:
    """Whether a name has a `*`."""
    return "*" in name


def match(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern matches: `*` within a dotted part, `**` across parts.

    >>> match("blocks.*.w", ["blocks.0.w", "blocks.1.w", "blocks.0.mlp.w", "w"])
    ['blocks.0.w', 'blocks.1.w']
    >>> match("**.w", ["blocks.0.w", "blocks.0.mlp.w"])
    ['blocks.0.w', 'blocks.0.mlp.w']
    """
    pieces = re.split(r"(\*\*|\*)", pattern)
    kinds = {"**": ".+", "*": "[^.]*"}
    expression = re.compile("".join(kinds.get(p) or re.escape(p) for p in pieces))
    return [n for n in names if expression.fullmatch(n)]


def iterate_groups(model: nn.Module) -> Iterator[TieGroup]:
    """The groups inside a model, each once."""
    yield from Sites(model).groups
