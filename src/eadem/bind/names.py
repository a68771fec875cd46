"""The sites of a model by name, in traversal order, and the patterns that choose them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from eadem._plan.site import parse
from eadem.bind.group import LINKS, MARK, ORDER, Place, TieGroup, gone
from eadem.bind.split import refuse_split
from eadem.errors import NoSuchSite, TieBroken, Unsupported, nearest
from eadem.maps.base import Shape

__all__ = ["Sites", "forget", "is_pattern", "match"]


#: Attribute of a module class whose parameters, and those below it, carry no tie: the reason
#: and the way out.
UNSUPPORTED = "_eadem_unsupported"


class _Registrations:
    """Counts when torch registers modules or parameters anywhere, so that a model need not
    be walked again while nothing has been.
    """

    def __init__(self) -> None:
        self._count = 0
        self._more = False
        register_module_module_registration_hook(self._note)
        register_module_parameter_registration_hook(self._note)

    def _note(self, *args: Any) -> None:
        # Only written here: torch.compile would guard on a value that was read, and compile
        # a forward that slices a ModuleList, as Llama's does, at every call.
        self._more = True

    @property
    def count(self) -> int:
        """A number that is another after every registration."""
        if self._more:
            self._more = False
            self._count += 1
        return self._count


_registrations = _Registrations()


class _Walk:
    """What one walk over a model's modules finds: the groups it contains (those marked on it,
    and those whose sites are all in it, though it was made after they were tied), the groups
    of which it has derived sites but not all, and whether every module and every parameter
    has one name.
    """

    _held: list[ref[TieGroup]]
    _parts: list[ref[TieGroup]]

    def __init__(self, model: nn.Module) -> None:
        self.version = _registrations.count
        groups: list[TieGroup] = []
        linked: list[TieGroup] = []
        modules, held = [], []
        seen: set[int] = set()
        stack: list[nn.Module | None] = [model]
        while stack:
            module = stack.pop()
            if module is None:
                continue
            modules.append(module)
            contents = module.__dict__
            if contents["_parameters"]:
                held += contents["_parameters"].values()
            if contents["_modules"]:
                stack += contents["_modules"].values()
            if MARK in contents:
                for g in contents[MARK].groups:
                    if module not in g.scope:  # a copy of one that the group knows
                        g.scope.append(module)
                    if id(g) not in seen:
                        seen.add(id(g))
                        groups.append(g)
            if LINKS in contents:
                linked += [link.group for link in contents[LINKS].values()]
        inside = set(modules)
        parts: list[TieGroup] = []
        for g in linked:
            if id(g) not in seen:
                seen.add(id(g))
                (groups if g.within(inside) else parts).append(g)
        self.groups = groups
        self._parts = [ref(g) for g in parts]
        present = [id(p) for p in held if p is not None]
        self.simple = len(modules) == len(inside) and len(present) == len(set(present))

    @property
    def groups(self) -> list[TieGroup]:
        """The groups; held weakly, since a group holds the model that this is kept for."""
        return [g for r in self._held if (g := r()) is not None]

    @groups.setter
    def groups(self, groups: list[TieGroup]) -> None:
        self._held = [ref(g) for g in groups]

    @property
    def parts(self) -> list[TieGroup]:
        """The groups of which some derived site is here, but not every site."""
        return [g for r in self._parts if (g := r()) is not None]


_walked: WeakKeyDictionary[nn.Module, _Walk] = WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Walk a model again when it is next asked: it was changed behind torch's back."""
    _walked.pop(model, None)


class Sites:
    """Every parameter place of a model, in the order of `named_parameters()`.

    All names are made only where a pattern, a listing, a module registered twice or a
    parameter held twice asks for them, and a model is walked again only after torch has
    registered something. So a call that names its sites costs little on a large model.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise Unsupported(
                f"a tie is declared on an nn.Module; this is a {type(model).__name__}"
            )
        self.model = model
        known = _walked.get(model)
        if known is None or known.version != _registrations.count:
            known = _walked[model] = _Walk(model)
        self.groups: list[TieGroup] = known.groups
        #: the groups that reach outside of the model
        self.parts: list[TieGroup] = known.parts
        #: whether every module and every parameter has one name
        self.simple = known.simple
        self._named: dict[str, Place] = {}
        self._shapes: dict[str, Shape] = {}

    def keep(self, old: list[TieGroup], new: list[TieGroup]) -> None:
        """Note that ties have replaced some groups by others."""
        known = _walked.get(self.model)
        if known is not None:
            gone = {id(g) for g in old}
            known.groups = [g for g in known.groups if id(g) not in gone] + new
            if not known.simple:  # aliases may have become ties
                del _walked[self.model]
        for other in [m for m in list(_walked) if m is not self.model]:
            _walked.pop(other, None)  # it may contain this one, or be part of it

    @cached_property
    def _scan(self) -> _Scan:
        return _Scan(self.model)

    @property
    def places(self) -> dict[str, Place]:
        """Every place by name, derived sites included."""
        return self._scan.places

    @property
    def modules(self) -> dict[nn.Module, str]:
        """Every module with its name."""
        return self._scan.modules

    @property
    def aliases(self) -> dict[str, str]:
        """Names of places that hold a parameter which an earlier place (the value) holds."""
        return {} if self.simple else self._scan.aliases

    def place(self, name: str) -> Place | None:
        """The place called `name`, or None."""
        if not self.simple:
            return self.places.get(name)
        found = self._named.get(name)
        if found is None and "_scan" in self.__dict__:
            found = self.places.get(name)
            if found is not None:
                self._named[name] = found
        if found is None:
            chain = self._chain(name)
            attr = name.rpartition(".")[2]
            if chain is None or not _holds(chain[-1], attr):
                return None
            found = self._named[name] = Place(chain[-1], attr)
        return found

    def _chain(self, name: str) -> list[nn.Module] | None:
        """The modules on the way to a site, from the model itself."""
        chain = [self.model]
        for part in name.split(".")[:-1]:
            child = chain[-1]._modules.get(part)
            if child is None:
                return None
            chain.append(child)
        return chain

    def __getitem__(self, name: str) -> Place:
        found = self.place(name)
        if found is None:
            raise NoSuchSite(f"{type(self.model).__name__} has no parameter {name!r}")
        return found

    def rank(self, name: str) -> tuple[int, ...]:
        """What sorts names in traversal order."""
        if not self.simple or "_scan" in self.__dict__:
            return (self.order[name],)
        at, where = self.model, []
        *path, attr = name.split(".")
        for part in path:
            where.append(list(at._modules).index(part))
            at = at._modules[part]  # type: ignore[assignment]
        # a module's own parameters come before those of its children
        own = _attributes(at)
        return (*where, own.index(attr) - len(own))

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
        return self._full_name(place)

    def named(self, group: TieGroup) -> dict[str, str]:
        """Today's name of every place of a group, by the group's key."""
        found = {}
        for key, place in group.places.items():
            same = self.simple and self.place(key) == place
            found[key] = key if same else self._full_name(place)
        return found

    def _full_name(self, place: Place) -> str:
        prefix = self.modules.get(place.module)
        if prefix is None:
            raise TieBroken(
                f"a {type(place.module).__name__} whose {place.attr!r} is tied is no longer in "
                f"this {type(self.model).__name__}; put it back and untie it before removing it"
            )
        name = f"{prefix}.{place.attr}" if prefix else place.attr
        if not _holds(*place):
            raise gone(name)
        return name

    def shape(self, name: str) -> Shape:
        """The shape of the site (not of the θ that its parameter may hold)."""
        known = self._shapes.get(name)
        if known is None:
            known = self._shapes[name] = self._shape(name)
        return known

    def _shape(self, name: str) -> Shape:
        place = self[name]
        links = place.module.__dict__.get(LINKS)
        if links and place.attr in links:
            shape: Shape = links[place.attr].shape
            return shape
        found = place.parameter
        assert found is not None
        if isinstance(found, UninitializedParameter):
            raise Unsupported(
                f"{name!r} has no shape yet (lazy module); run the model once, then tie"
            )
        return tuple(found.shape)

    def find(self, text: str) -> list[tuple[str, object]]:
        """The names that a site text or pattern means, each with its index.

        Raises NoSuchSite (nearest names listed) or Unsupported (with the reason).
        """
        if not isinstance(text, str):
            raise NoSuchSite(
                f"a site is named by text such as 'encoder.weight', not by a "
                f"{type(text).__name__}"
            )
        name, index = parse(text)
        if is_pattern(name):
            found = match(name, self.places)
            if not found:
                raise NoSuchSite(
                    f"the pattern {name!r} matches no parameter of "
                    f"{type(self.model).__name__}; {nearest(name, self.places)}"
                )
            return [(n, index) for n in found]
        if self.place(name) is not None:
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

    def ancestors(self, places: Mapping[str, Place]) -> list[nn.Module]:
        """The modules of this model that contain all of some places, outermost first."""
        if self.simple and all(self.place(n) == p for n, p in places.items()):
            common: list[nn.Module] | None = None
            for name in places:
                chain = self._chain(name)
                assert chain is not None
                if common is None:
                    common = chain
                while common[-1] is not chain[min(len(common), len(chain)) - 1]:
                    common = common[:-1]
                    if len(common) > len(chain):
                        common = common[: len(chain)]
                if len(common) == 1:
                    break
            return common or [self.model]
        return self._scan.ancestors(p.module for p in places.values())

    def bindable(self, names: Iterable[str]) -> None:
        """Raise Unsupported where a module on the way to a place says it carries no tie."""
        for name in names:
            for module in self._chain(name) or self.modules:
                why = getattr(type(module), UNSUPPORTED, None)
                if why is not None:
                    kind = type(module).__name__
                    raise Unsupported(f"{name!r} is in the {kind} of another library: {why}")

    def supported(self, names: Iterable[str]) -> None:
        """Raise Unsupported where a place cannot carry a tie, or the places do not agree."""
        first: tuple[str, torch.Tensor] | None = None
        names = list(names)
        self.bindable(names)
        for name in names:
            module, attr = self[name]
            _supported_module(name, module)
            p = module._parameters.get(attr)
            if p is None:
                p = next(
                    (q for _, q in module.__dict__[LINKS][attr].group.owner_parameters()), None
                )
                if p is None:
                    continue
            refuse_split([(name, p)], "a tie")
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


class _Scan:
    """All names of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: dict[str, Place] = {}
        self.modules: dict[nn.Module, str] = {}
        self.parents: dict[nn.Module, list[nn.Module]] = {}
        self.aliases: dict[str, str] = {}
        seen: dict[int, str] = {}
        stack: list[tuple[str, nn.Module]] = [("", model)]
        while stack:
            prefix, module = stack.pop()
            if module in self.modules:
                continue
            self.modules[module] = prefix
            for attr in _attributes(module):
                name = f"{prefix}.{attr}" if prefix else attr
                self.places[name] = Place(module, attr)
                p = module._parameters.get(attr)
                if p is not None:
                    first = seen.setdefault(id(p), name)
                    if first != name:
                        self.aliases[name] = first
            dot = f"{prefix}." if prefix else ""
            for child_name, child in reversed(module._modules.items()):
                if child is not None:
                    self.parents.setdefault(child, []).append(module)
                    stack.append((dot + child_name, child))

    def ancestors(self, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """The modules that contain all of `modules`, outermost first."""
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


def _attributes(module: nn.Module) -> list[str]:
    """The attributes that are places, in the order they had before any tie."""
    held = module._parameters
    links = module.__dict__.get(LINKS)
    if not links:
        return [a for a, p in held.items() if p is not None]
    names = list(module.__dict__.get(ORDER, ()))
    names += [a for a in held if a not in names]
    return [a for a in names if held.get(a) is not None or a in links]


def _holds(module: nn.Module, attr: str) -> bool:
    return module._parameters.get(attr) is not None or attr in module.__dict__.get(LINKS, ())


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
