"""Reading and writing at a site: a property on a generated subclass of the module's class.

The subclass has the name, module and behaviour of the class it stands for. A site that only
views another parameter's axes is read straight from it; any other is computed, once per
forward of the model that was tied (bind/forward.py), whose class is generated too.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from eadem.bind.forward import called, enter_forward, leave_forward, reader
from eadem.bind.group import LINKS, ORDER, Link, refuse_alone
from eadem.bind.guard import freeze, refuse_replicas, refuse_script, register
from eadem.bind.product import multiplies, multiply, prepare
from eadem.bind.split import checked, is_split, place_split, refuse_full, refuse_sharder
from eadem.bind.written import assign, refuse_swap
from eadem.errors import TieBroken, Unsupported
from eadem.maps.view import View, ViewMap

__all__ = [
    "base_class",
    "begin_at",
    "begins_at",
    "class_for",
    "class_with",
    "computed",
    "dress",
    "end_at",
]

OWNER = "_eadem_owner_"
#: Where torch.func.functional_call sets attributes, and sets them back.
_SWAPS = "torch.nn.utils._named_member_accessor"


class Spec(NamedTuple):
    """One property of a generated class; `view` None: computed through the link. `product`:
    the module multiplies by the site's factors.
    """

    attr: str
    owner: str | None = None
    view: View | None = None
    product: bool = False


def _getter(spec: Spec, key: str) -> Callable[[nn.Module], Tensor]:
    attr, owner, view, _ = spec
    if owner is None or view is None:
        get = reader(attr, _broken)

    elif view.is_identity:

        def get(self: nn.Module) -> Tensor:
            try:
                p: Tensor = self.__dict__[key]._parameters[owner]
            except (AttributeError, KeyError) as e:
                raise _broken(self, attr) from e
            return p if type(p) is Parameter else _other(self, attr, p)

    elif view.perm == (1, 0):

        def get(self: nn.Module) -> Tensor:
            try:
                p: Tensor = self.__dict__[key]._parameters[owner]
                return p.t() if type(p) is Parameter else _other(self, attr, p).t()
            except (AttributeError, KeyError) as e:
                raise _broken(self, attr) from e

    else:
        perm = view.perm

        def get(self: nn.Module) -> Tensor:
            try:
                p: Tensor = self.__dict__[key]._parameters[owner]
                p = p if type(p) is Parameter else _other(self, attr, p)
                return p.permute(perm)
            except (AttributeError, KeyError) as e:
                raise _broken(self, attr) from e

    return get


def _other(module: nn.Module, attr: str, p: Tensor) -> Tensor:
    """An owner that is no plain parameter: a subclass, what functional_call gave, or a part."""
    return checked(module.__dict__[LINKS][attr], module, p)


def _broken(module: nn.Module, attr: str) -> TieBroken:
    link: Link | None = module.__dict__.get(LINKS, {}).get(attr)
    what = f"{type(module).__name__}.{attr}" if link is None else repr(link.key)
    owners = "" if link is None else f" ({', '.join(link.expression.owners)})"
    return TieBroken(
        f"the value of {what} cannot be read: a parameter that it is tied to{owners} is gone. "
        "Something deleted or replaced it; untie before removing a parameter"
    )


def _set(self: Any, name: str, value: Any) -> None:
    link = self.__dict__.get(LINKS, {}).get(name)
    if link is None:
        base_class(self).__setattr__(self, name, value)
        return
    if sys._getframe(1).f_globals.get("__name__") == _SWAPS:
        refuse_swap(link)
    own = self._parameters.get(name)
    if own is not None and isinstance(value, nn.Parameter) and value.shape == own.shape:
        if is_split(value) and not is_split(own):
            refuse_sharder(link)
        self._parameters[name] = value
        return
    assign(link, value)


def _register(self: Any, name: str, value: Any) -> None:
    link = self.__dict__.get(LINKS, {}).get(name)
    if link is None:
        register(base_class(self), self, name, value)
    elif is_split(value):
        spec = _spec(name, link)
        place_split(link, spec.view, value)
    else:
        _set(self, name, value)


def _delete(self: Any, name: str) -> None:
    link = self.__dict__.get(LINKS, {}).get(name)
    if link is not None:
        raise link.group.refuse(
            TieBroken(f"{link.key!r} is tied and cannot be deleted; untie it first")
        )
    base_class(self).__delattr__(self, name)


def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    base: Any = base_class(self)
    moved = base._apply(self, fn, recurse)
    probed: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    for link in self.__dict__[LINKS].values():
        if link.like is not None:
            link.like = fn(link.like)
        for key in link.group.resolved.owners:
            module, attr = link.group.places[key]
            p = module._parameters.get(attr)
            if p is None or module is self:
                continue
            before = (p.dtype, p.device)
            if before not in probed:
                probed[before] = fn(torch.empty(0, dtype=p.dtype, device=p.device))
            after = probed[before]
            if (after.dtype, after.device) != before:
                alone = nn.Module()
                alone._parameters[attr] = p
                nn.Module._apply(alone, fn, False)
                module._parameters[attr] = alone._parameters[attr]
        link.warm()
    return moved


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    links: dict[str, Link] = self.__dict__[LINKS]
    inside = all(
        any(m is self for m in link.group.scope) or link.group.copied_whole(memo)
        for link in links.values()
    )
    if not inside:
        _alone(self, links, memo)
    kind: Any = type(self) if inside else base_class(self)
    new = object.__new__(kind)
    memo[id(self)] = new
    if inside:
        for key, value in self.__dict__.items():
            new.__dict__[key] = copy.deepcopy(value, memo)
        return new
    kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_eadem")}
    flat = kept.pop("_flat_weights", None)
    own = kept.pop("_parameters")
    new.__dict__["_parameters"] = {}
    for key, value in kept.items():
        new.__dict__[key] = copy.deepcopy(value, memo)
    for attr in _ordered(self):
        link = links.get(attr)
        if link is None:
            new._parameters[attr] = copy.deepcopy(own[attr], memo)
        else:
            with torch.no_grad():
                value = link.compute().detach()
                value = value.clone(memory_format=torch.contiguous_format)
            grad = any(p.requires_grad for p in link.parameters()) or not link.sources
            new._parameters[attr] = nn.Parameter(value, requires_grad=grad)
    if flat is not None or isinstance(new, nn.RNNBase):
        new._init_flat_weights()
    return new


def _alone(module: nn.Module, links: dict[str, Link], memo: dict[int, Any]) -> None:
    """Raise Unsupported where a copy takes several sites of a tie, but not all of them."""
    for link in links.values():
        if link.key not in link.group.resolved.expressions:
            continue  # its values are its own
        if any(m is module for m in link.group.scope) or link.group.copied_whole(memo):
            continue
        others = [
            k
            for k, p in link.group.places.items()
            if k != link.key and (p.module is module or id(p.module) in memo)
        ]
        if others:
            raise link.group.refuse(
                Unsupported(
                    f"this copy takes {others[0]!r} and {link.key!r}, but not all of their "
                    "tie, which it would lose; copy a module that contains the whole tie and "
                    "take the part from the copy, or untie first"
                )
            )


def _ordered(module: nn.Module) -> list[str]:
    names = list(module.__dict__.get(ORDER, ()))
    return names + [a for a in module._parameters if a not in names]


def _copy(self: Any) -> Any:
    """A shallow copy shares what the module holds, its sites too; `copy.copy` would go by
    the way of pickling.
    """
    new = object.__new__(type(self))
    new.__setstate__(dict(self.__dict__))
    return new


def _reduce(self: Any, protocol: Any) -> Any:
    link = next(iter(self.__dict__[LINKS].values()))
    if not any(m is self for m in link.group.scope):
        refuse_alone(link)
    return _reduce_begun(self, protocol)


def _reduce_begun(self: Any, protocol: Any) -> Any:
    state = self.__dict__
    if getattr(base_class(self), "__getstate__", None) is not getattr(
        object, "__getstate__", None
    ):
        state = self.__getstate__()
    return (_rebuild, type(self)._eadem_class, state)


def _rebuild(base: Any, specs: tuple[Spec, ...], begins: bool = False) -> nn.Module:
    rebuilt: nn.Module = object.__new__(_generated(base, specs, begins))
    return rebuilt


def _new(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`type(module)(...)` makes another module of that class, which is tied to nothing."""
    return cls._eadem_class[0](*args, **kwargs)


def _load(self: Any, state: Any, prefix: str, *rest: Any) -> None:
    # Whole groups are settled by the hook on the module that contains them (bind/load.py),
    # which may be this one, and then runs only after this. What is left here is a load of
    # this one module without the rest of its group: a derived site in full.
    for attr, link in self.__dict__[LINKS].items():
        key = prefix + attr
        given = state.get(key)
        if given is None or any(m is self for m in link.group.scope):
            continue
        own = self._parameters.get(attr)
        if own is not None and given.shape == own.shape:
            continue
        refuse_full([key], link.parameters())
        assign(link, given, source=key)
        if own is None:
            del state[key]
        else:
            state[key] = own.detach()
    base_class(self)._load_from_state_dict(self, state, prefix, *rest)


def _requires_grad(self: Any, requires_grad: bool = True) -> Any:
    freeze(base_class(self), self, requires_grad)
    return self


def flat_weights(self: Any) -> list[Any]:
    """An RNN's weights, read through its attributes."""
    return [getattr(self, n, None) for n in self._flat_weights_names]


def ignore(self: Any, *args: Any) -> None:
    """cuDNN's packing of weights is left out: derived weights are not stored."""


def _generated(base: Any, specs: tuple[Spec, ...], begins: bool) -> Any:
    """The class of a module with these sites; `begins`: its forward keeps what is computed.

    The same one for as long as some module is of it; `base` itself for neither.
    """
    if not specs and not begins:
        return base
    made = _classes.setdefault(base, WeakValueDictionary())
    found = made.get((specs, begins))
    if found is None:
        found = made[specs, begins] = _make_class(base, specs, begins)
    return found


#: Generated classes by the class that they stand for; neither is kept alive for this.
_classes: WeakKeyDictionary[type, WeakValueDictionary[tuple[tuple[Spec, ...], bool], type]] = (
    WeakKeyDictionary()
)


def _make_class(base: Any, specs: tuple[Spec, ...], begins: bool) -> Any:
    contents: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__new__": _new,
        "_eadem_class": (base, specs, begins),
    }
    if begins:
        contents["__call__"] = called(base.__call__)
    contents |= _dressing(base, specs) if specs else {"__reduce_ex__": _reduce_begun}
    kind: Any = type(base)
    return kind(base.__name__, (base,), contents)


def _dressing(base: Any, specs: tuple[Spec, ...]) -> dict[str, Any]:
    """What a generated class has for its sites."""
    contents: dict[str, Any] = {
        "__setattr__": _set,
        "__delattr__": _delete,
        "__copy__": _copy,
        "__deepcopy__": _deepcopy,
        "__reduce_ex__": _reduce,
        "_apply": _apply,
        "_load_from_state_dict": _load,
        "requires_grad_": _requires_grad,
        "register_parameter": _register,
        "__prepare_scriptable__": refuse_script,
        "_replicate_for_data_parallel": refuse_replicas,
    }
    for spec in specs:
        contents[spec.attr] = property(_getter(spec, OWNER + spec.attr))
    if any(spec.product for spec in specs):
        contents["forward"] = multiply
    if issubclass(base, nn.RNNBase):
        contents["_flat_weights"] = property(flat_weights, ignore)
        contents["flatten_parameters"] = ignore
    return contents


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module's generated class stands for, or its class."""
    found = getattr(type(module), "_eadem_class", None)
    return type(module) if found is None else found[0]


def bare_class(module: nn.Module) -> type[nn.Module]:
    """As `base_class`. Raises Unsupported where another library has put a class of its own
    over the generated one, as `parametrize` does: to change the ties would take that away.
    """
    kind = type(module)
    if hasattr(kind, "_eadem_held"):
        raise Unsupported("ties are not changed in eadem.expanded; do it outside of that")
    if hasattr(kind, "_eadem_class") and "_eadem_class" not in vars(kind):
        sites = ", ".join(repr(link.key) for link in module.__dict__.get(LINKS, {}).values())
        raise Unsupported(
            f"the module of {sites} was tied and then given another class, {kind.__name__}, "
            "with what belongs to that (a parametrization, for one); remove it, change the "
            "ties, and put it back"
        )
    return base_class(module)


#: A class with one of these of its own is made, copied or pickled in a way of its own.
_WAYS = {"__init_subclass__", "__new__", "__copy__", "__deepcopy__", "__reduce__"}
_WAYS |= {"__reduce_ex__"}


def _begun(module: nn.Module) -> bool:
    """Whether a module's own class begins a forward."""
    found = vars(type(module)).get("_eadem_class")
    return found is not None and found[2]


def _plain(base: Any) -> bool:
    """Whether a class may be stood in for where it has no site."""
    own = (k for k in base.__mro__ if k not in (object, nn.Module))
    return type(base) is type and not any(_WAYS & vars(k).keys() for k in own)


def begins_at(module: nn.Module) -> bool:
    """Whether this module's forward keeps what its sites compute."""
    kind: Any = type(module)
    own = getattr(kind, "_eadem_class", None)
    begun = own is not None and own[2]
    return begun or enter_forward in module._forward_pre_hooks.values()


def begin_at(module: nn.Module) -> None:
    """From now on this module's forward keeps what its sites compute."""
    if begins_at(module):
        return
    own: Any = vars(type(module)).get("_eadem_class")
    if own is None and not (base_class(module) is type(module) and _plain(type(module))):
        module.register_forward_pre_hook(enter_forward)
        module.register_forward_hook(leave_forward, always_call=True)
        return
    base, specs = (type(module), ()) if own is None else own[:2]
    object.__setattr__(module, "__class__", _generated(base, specs, True))


def end_at(module: nn.Module) -> None:
    """Take back what `begin_at` did."""
    if _begun(module):
        base, specs, _ = vars(type(module))["_eadem_class"]
        object.__setattr__(module, "__class__", _generated(base, specs, False))
    for hooks, ours in (
        (module._forward_pre_hooks, enter_forward),
        (module._forward_hooks, leave_forward),
    ):
        for key in [k for k, h in hooks.items() if h is ours]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def _spec(attr: str, link: Link) -> Spec:
    outer = link.expression.outer
    if len(link.sources) == 1 and isinstance(outer, ViewMap):
        owner = link.sources[0][2]
        view = outer.view()
        plain = view.scale == 1.0 and view.shift == 0.0 and not any(view.flips)
        if owner.source is None and owner.whole and plain:
            return Spec(attr, link.sources[0][1], view)
    return Spec(attr)


def computed(link: Link) -> bool:
    """Whether a site is computed, not read straight from its owner."""
    return _spec("", link).owner is None


def class_for(module: nn.Module, links: dict[str, Link]) -> type[nn.Module]:
    """The class of a module with exactly these derived sites. Raises Unsupported, and what
    making a subclass of the module's class raises.
    """
    base: Any = bare_class(module)
    begins = _begun(module) and (bool(links) or _plain(base))
    return _generated(base, _specs_of(links, base), begins)  # type: ignore[no-any-return]


def class_with(module: nn.Module, attr: str, link: Link) -> type[nn.Module]:
    """The class of a module with one more derived site. Raises as `class_for`."""
    return class_for(module, {**module.__dict__.get(LINKS, {}), attr: link})


def _specs_of(links: dict[str, Link], base: type[nn.Module]) -> tuple[Spec, ...]:
    found = (_spec(a, links[a]) for a in sorted(links))
    return tuple(s._replace(product=multiplies(base, s.attr, links[s.attr])) for s in found)


def dress(module: nn.Module, links: dict[str, Link]) -> None:
    """Give a module exactly these derived sites (none: its own class back)."""
    contents = module.__dict__
    kind = class_for(module, links)
    for attr in contents.get(LINKS, {}):
        contents.pop(OWNER + attr, None)
    if not links:
        _undress(module, kind)
        return
    for spec in _specs_of(links, base_class(module)):
        if spec.product:
            prepare(base_class(module), links[spec.attr])
        if spec.owner is not None:
            contents[OWNER + spec.attr] = links[spec.attr].sources[0][0]
    contents[LINKS] = links
    if isinstance(module, nn.RNNBase):
        contents.pop("_flat_weights", None)
    # past nn.Module's own __setattr__, which looks for parameters and submodules
    object.__setattr__(module, "__class__", kind)


def _undress(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module without sites its own class back, or one that only begins a forward."""
    contents = module.__dict__
    begun = _begun(module)
    if contents.pop(LINKS, None) is None:
        return
    contents.pop(ORDER, None)
    object.__setattr__(module, "__class__", kind)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    if begun:
        begin_at(module)
