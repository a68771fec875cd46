"""What a connected set of ties is, once bound: places in modules, and what they resolve to.

Groups live on the modules themselves (in the `__dict__` of every module that contains the
whole group), so they follow a model into wrappers, copies and pickles, and names are always
those of the model that is asked.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from eadem._plan import Expression, Group, Owner
from eadem._plan.site import Item
from eadem.bind.split import wholes
from eadem.errors import EademError, TieBroken, Unsupported
from eadem.maps.algebra import Added
from eadem.maps.base import Map, Shape, numel
from eadem.maps.factored import Product
from eadem.maps.index import Index, IndexMap
from eadem.maps.near_product import NearProduct
from eadem.maps.view import Same, Viewed, ViewMap

__all__ = [
    "BoundEntry",
    "BoundTie",
    "Link",
    "Mark",
    "Place",
    "TieGroup",
    "groups_at",
    "living",
    "marks",
    "note_living",
]

#: Key in a module's `__dict__` for the groups that it contains.
MARK = "_eadem_scope"
#: Key in a module's `__dict__` for its sites that are computed from elsewhere.
LINKS = "_eadem_sites"
#: Key in a module's `__dict__` for the order its parameters had before any tie.
ORDER = "_eadem_order"
#: What a product keeps of a parameter that it has not met.
NOTHING: tuple[int, int, Any, bool, Any, str | None] = (-1, -1, None, False, None, None)
#: How many refusals a group remembers.
REFUSALS = 3

Refusal = TypeVar("Refusal", bound=EademError)


class Place(NamedTuple):
    """Where a parameter is: a module and an attribute of it."""

    module: nn.Module
    attr: str

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter held there, if any."""
        return self.module._parameters.get(self.attr)


def gone(name: str) -> TieBroken:
    """The error for an owner that is not there any more."""
    return TieBroken(
        f"the parameter {name!r}, which holds the free values of a tie, is gone: something "
        "deleted it or set it to None; untie before removing a parameter"
    )


@dataclass(eq=False)
class BoundEntry:
    """One site of a bound tie: a place in the group, an index into it, the map, and how far
    the site was from the tie's range when it was tied.
    """

    key: str
    index: tuple[Item, ...] | None
    map: Map
    residual: float = 0.0


@dataclass(eq=False)
class BoundTie:
    """A declaration on modules."""

    entries: list[BoundEntry]


@dataclass(eq=False)
class TieGroup:
    """A connected set of ties: `places` and `shapes` by a key that never changes."""

    places: dict[str, Place]
    shapes: dict[str, Shape]
    ties: list[BoundTie]
    resolved: Group
    scope: list[nn.Module] = field(default_factory=list)

    @cached_property
    def keys(self) -> dict[Place, str]:
        """The key of every place."""
        return {place: key for key, place in self.places.items()}

    @cached_property
    def views(self) -> bool:
        """Whether every site is a stored parameter or a view of one."""
        owners = self.resolved.owners.values()
        derived = self.resolved.expressions.values()
        return all(o.whole and o.source is None for o in owners) and all(
            isinstance(e.outer, Viewed) for e in derived
        )

    @cached_property
    def refusals(self) -> list[str]:
        """What was refused over these ties in this process, latest last."""
        return []

    def refuse(self, error: Refusal) -> Refusal:
        """Note an error that is about to be raised over these ties, so that `explain` can
        repeat it where the user sees it late or not at all.
        """
        self.refusals.append(f"{type(error).__name__}: {error}")
        del self.refusals[:-REFUSALS]
        return error

    @property
    def equality(self) -> bool:
        """Whether every site is one and the same parameter."""
        return self.views and all(
            e.outer.view().is_identity  # type: ignore[attr-defined]
            for e in self.resolved.expressions.values()
        )

    def __getstate__(self) -> dict[str, Any]:
        derived = ("keys", "views", "refusals")
        return {k: v for k, v in self.__dict__.items() if k not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with _changing:
            _living.add(self)

    def owner_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that hold free values; raises TieBroken for one taken away."""
        for key in self.resolved.owners:
            found = self.places[key].parameter
            if found is None:
                raise self.refuse(gone(key))
            yield key, found

    @property
    def bound(self) -> Iterator[str]:
        """The sites whose modules carry a link: those that other parameters have a say in.
        An owner of all its values is one of them where it is not the only owner.
        """
        for key in self.places:
            if key in self.resolved.expressions or len(self.resolved.owners) > 1:
                yield key

    def link(self, key: str) -> Link:
        """How the value of the site `key` comes about."""
        e = self.resolved.expressions.get(key)
        if e is None:
            e = Expression((key,), Same().bind(self.shapes[key]))
        sources = [(*self.places[o], self.resolved.owners[o]) for o in e.owners]
        return Link(self, key, e, sources, self.shapes[key])

    def within(self, modules: Container[nn.Module]) -> bool:
        """Whether every site is in one of these modules."""
        return all(place.module in modules for place in self.places.values())

    def copied_whole(self, memo: dict[int, Any]) -> bool:
        """Whether the deepcopy that keeps this memo is copying all of the group: a module
        that was known to contain it when it was tied, or one made later.
        """
        if id(self) in memo:
            return memo[id(self)] is not None
        if any(id(m) in memo for m in self.scope):
            return True
        return any(self.within(set(root.modules())) for root in _being_copied(memo))

    def __deepcopy__(self, memo: dict[int, Any]) -> TieGroup | None:
        if not self.copied_whole(memo):
            return None  # part of the group is being copied without the rest
        new = TieGroup({}, dict(self.shapes), [], self.resolved)
        memo[id(self)] = new
        new.scope = [memo[id(m)] for m in self.scope if id(m) in memo]
        for key, place in self.places.items():
            new.places[key] = Place(copy.deepcopy(place.module, memo), place.attr)
        for tie in self.ties:
            new.ties.append(BoundTie([copy.copy(e) for e in tie.entries]))
        with _changing:
            _living.add(new)
        return new


class Link:
    """One derived site on its module: where its value comes from."""

    __slots__ = (
        "added",
        "direct",
        "expression",
        "factors",
        "group",
        "held",
        "key",
        "like",
        "same",
        "shape",
        "sources",
    )

    def __init__(
        self,
        group: TieGroup,
        key: str,
        expression: Expression,
        sources: list[tuple[nn.Module, str, Owner]],
        shape: Shape,
    ) -> None:
        self.group, self.key, self.expression = group, key, expression
        self.sources, self.shape = sources, shape
        self.like: Tensor | None = None
        #: (θ, x, bias) ↦ x·Wᵀ + bias, where the site's layer multiplies by factors
        self.factors: Product | NearProduct | None = None
        #: what the product keeps of θ: its address, its length, the factors there, whether
        #: other layers may have the first half of it, one row's, its name in this module
        self.held: tuple[int, int, Any, bool, Any, str | None] = NOTHING
        self.ready()

    def ready(self) -> None:
        """Build what the maps build on first use: a trace must find it there."""
        outer = self.expression.outer
        outer.ready()
        for _, _, owner in self.sources:
            if owner.source is not None:
                owner.source.ready()
        plain = len(self.sources) == 1 and self.sources[0][2].source is None
        #: whether the site is its owner's parameter, of whatever kind (it may be quantised)
        self.same = (
            plain
            and self.sources[0][2].whole
            and isinstance(outer, ViewMap)
            and outer.view().is_identity
        )
        #: the maps of a site that is a sum of one for each of its owners
        self.added: tuple[Map, ...] = ()
        if isinstance(outer, Added) and len(outer.parts) == len(self.sources):
            sizes = [numel(owner.roots) for _, _, owner in self.sources]
            if [numel(part.in_shape) for part in outer.parts] == sizes:
                self.added = outer.parts
        #: the value of a site picked from one parameter, without a source
        self.direct: Callable[[Tensor], Tensor] | None = None
        if plain and isinstance(outer, IndexMap) and not isinstance(outer, ViewMap):
            self.direct = _picked(outer.index(), self.sources[0][2].shape, self.shape)

    def warm(self) -> None:
        """Have the constants on the device and in the dtype of the values, before anything is
        compiled: a copy made later would be found missing by the compiled code's guards.
        """
        like = next((m._parameters[a] for m, a, _ in self.sources), self.like)
        if like is None or like.is_meta or not (self._constants or like.device.type != "cpu"):
            return
        with torch.inference_mode(False), torch.no_grad():
            self.compute()

    @property
    def _constants(self) -> bool:
        """Whether the site's value takes constants that have a dtype."""
        outer = self.expression.outer
        if self.direct is not None:
            assert isinstance(outer, IndexMap)
            index = outer.index()
            return index.scale is not None or index.shift is not None
        plain = isinstance(outer, ViewMap)
        return not plain or any(owner.source is not None for _, _, owner in self.sources)

    def owners(self) -> Iterator[tuple[str, Owner]]:
        """The owners it reads, by key."""
        for key, (_, _, owner) in zip(self.expression.owners, self.sources, strict=True):
            yield key, owner

    def parameters(self) -> list[Tensor]:
        """The owners' parameters now. Raises KeyError where one is gone."""
        return [m._parameters[a] for m, a, _ in self.sources]  # type: ignore[misc]

    def compute(self) -> Tensor:
        """The site's value now; where its owners are split over processes, gathered."""
        return self.of(self.parameters())

    def of(self, thetas: list[Tensor]) -> Tensor:
        """The site's value for its owners' `parameters()`."""
        for p, (_, _, owner) in zip(thetas, self.sources, strict=True):
            if type(p) is not Parameter or p.shape != owner.shape:
                thetas = self._foreign(thetas)
                break
        if self.same:
            return thetas[0]
        if self.direct is not None:
            return self.direct(thetas[0])
        outer = self.expression.outer
        if not thetas:
            assert self.like is not None
            return outer.expand(self.like)
        roots = [s[2].values(t) for s, t in zip(self.sources, thetas, strict=True)]
        if len(roots) == 1:
            return outer.expand(roots[0].reshape(outer.in_shape))
        if self.added:
            first, *rest = zip(self.added, roots, strict=True)
            total = first[0].expand(first[1].reshape(first[0].in_shape))
            for part, root in rest:
                total = total + part.expand(root.reshape(part.in_shape))
            return total
        return outer.expand(torch.cat([r.reshape(-1) for r in roots]))

    def _foreign(self, thetas: list[Tensor]) -> list[Tensor]:
        """Owners that are not the plain parameters that were tied: parts of them, what
        functional_call put in their place. Raises TieBroken for one of another shape.
        """
        for p, name, (_, _, owner) in zip(
            thetas, self.expression.owners, self.sources, strict=True
        ):
            if p is not None and tuple(p.shape) != owner.shape:
                raise self.group.refuse(
                    TieBroken(
                        f"{name!r} holds free values of shape {owner.shape}, from which "
                        f"{self.key!r} is computed, and was given shape {tuple(p.shape)}; give "
                        "functional_call what model.state_dict() holds, or use "
                        "eadem.twin(model), which takes the values of every site"
                    )
                )
        return wholes(self, thetas)

    def __getstate__(self) -> dict[str, Any]:
        state = {
            k: getattr(self, k)
            for k in self.__slots__
            if k not in ("added", "direct", "factors", "held", "same")
        }
        held = [m._parameters.get(a) for m, a, _ in self.sources]
        return state | {"dtypes": [None if p is None else p.dtype for p in held]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        dtypes = state.pop("dtypes")
        for k, v in state.items():
            setattr(self, k, v)
        self.factors, self.held = None, NOTHING
        self.ready()
        if self._constants and dtypes and None not in dtypes:
            # the parameters may not be there yet: their constants are made all the same
            with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
                for dtype, (_, _, owner) in zip(dtypes, self.sources, strict=True):
                    owner.values(torch.zeros(owner.shape, dtype=dtype))


def _picked(index: Index, theta: Shape, site: Shape) -> Callable[[Tensor], Tensor]:
    """A site's value from a parameter of shape `theta`, in as little Python as that takes."""
    source = index.gathered()
    if source is None or len(theta) != 1:
        return lambda p: index.expand(p.reshape(-1)).view(site)

    def gather(p: Tensor) -> Tensor:
        at = source.master if p.is_cpu else source.on(p.device)
        found = p.index_select(0, at)
        return found if flat else found.view(site)

    flat = len(site) == 1
    return gather


def _being_copied(memo: dict[int, Any]) -> Iterator[nn.Module]:
    """The modules that the deepcopy with this memo was asked for, outermost last: a memo
    holds no more than the numbers of what is being copied.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is copy.deepcopy.__code__:
            found = frame.f_locals
            if found.get("memo") is memo and isinstance(found["x"], nn.Module):
                yield found["x"]
        frame = frame.f_back


_living: WeakSet[TieGroup] = WeakSet()
_changing = threading.Lock()


def living() -> list[TieGroup]:
    """Every group that is on some module now, of whatever model."""
    with _changing:
        return list(_living)


def note_living(gone: list[TieGroup], new: list[TieGroup]) -> None:
    """Note that some groups were taken off their modules and others put on."""
    with _changing:
        _living.difference_update(gone)
        _living.update(new)


def groups_at(modules: Iterable[nn.Module]) -> list[TieGroup]:
    """The groups with a site directly in one of these modules, whatever model was tied."""
    wanted = set(modules)
    found = [g for g in living() if any(p.module in wanted for p in g.places.values())]
    return sorted(found, key=lambda g: next(iter(g.places)))


class _Token:
    """Pickled before some groups. A pickler keeps what it has pickled alive, so a live token
    means that those groups are being pickled whole; a failed pickle leaves none behind.
    """

    __slots__ = ("__weakref__", "groups")

    def __init__(self, groups: Iterable[TieGroup] = ()) -> None:
        self.groups = {id(g) for g in groups}

    def __reduce__(self) -> tuple[Any, ...]:
        _tokens.add(self)
        return (_Token, ())


_tokens: WeakSet[_Token] = WeakSet()


def refuse_alone(link: Link) -> None:
    """Raise Unsupported unless a whole group is being pickled: a derived site pickled alone
    would drag its owner along unseen.
    """
    if not any(id(link.group) in token.groups for token in _tokens):
        raise link.group.refuse(
            Unsupported(
                f"{link.key!r} is tied to a parameter elsewhere and cannot be "
                "pickled alone; pickle the model that was tied (a module made later must hold "
                "it ahead of its parts), or copy.deepcopy the part first (the copy is "
                "independent)"
            )
        )


class Mark:
    """The groups that a module contains. It is the first thing in the module's `__dict__`,
    so that a pickle meets the groups before their sites.
    """

    def __init__(self, groups: list[TieGroup]) -> None:
        self.groups = groups

    def __deepcopy__(self, memo: dict[int, Any]) -> Mark:
        new = Mark([])
        memo[id(self)] = new
        for group in self.groups:
            copied = copy.deepcopy(group, memo)
            if copied is None:
                continue
            new.groups.append(copied)
            # the module that carries this mark may be copied after the group was; it may also
            # be a shallow copy of one that the group knows, whose copy is found when asked
            here = [m for m in group.scope if m.__dict__.get(MARK) is self and id(m) in memo]
            if here and not any(m is memo[id(here[0])] for m in copied.scope):
                copied.scope.append(memo[id(here[0])])
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unmark, (_Token(self.groups), self.groups))


def _unmark(_token: _Token, groups: list[TieGroup]) -> Mark:
    return Mark(groups)


def marks(module: nn.Module) -> list[TieGroup]:
    """The groups marked on one module."""
    mark: Mark | None = module.__dict__.get(MARK)
    return [] if mark is None else mark.groups


def set_marks(module: nn.Module, groups: list[TieGroup]) -> None:
    """Mark a module with exactly these groups."""
    contents = module.__dict__
    mark: Mark | None = contents.get(MARK)
    if not groups:
        contents.pop(MARK, None)
    elif mark is not None:
        mark.groups = groups
    else:
        rest = list(contents.items())
        contents.clear()
        contents[MARK] = Mark(groups)
        contents.update(rest)
