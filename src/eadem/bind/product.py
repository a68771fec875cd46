"""A layer that multiplies by the factors of its weight, which is then never built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, is_grad_enabled, nn, strided
from torch.compiler import is_compiling
from torch.nn import Parameter

from eadem._plan.plan import Expression
from eadem.bind.forward import Forward, running, version_of
from eadem.bind.group import LINKS, NOTHING, Link
from eadem.maps.base import Shape, numel
from eadem.maps.factored import multiplied, picked, product, spread
from eadem.maps.near_product import NearProduct, Term, near_product
from eadem.maps.one_row import OneRow, compiled
from eadem.maps.remainder import Factors

__all__ = ["multiplies", "multiply", "prepare"]

_any_autocast = torch._C._is_any_autocast_enabled
_transforms = torch._C._functorch.peek_interpreter_stack  # vmap, jvp, …
_tracing = torch._C._is_tracing  # of torch.jit

#: GPT-2's layer, whose weight is (in, out), by name: transformers need not be there.
_TRANSPOSED = ("transformers.pytorch_utils", "Conv1D")


def _transposed(base: type[nn.Module]) -> bool | None:
    """Whether a layer of this class multiplies by W, not Wᵀ; None where it does neither."""
    if base is nn.Linear:
        return False
    return True if (base.__module__, base.__name__) == _TRANSPOSED else None


def _found(base: type[nn.Module], link: Link) -> Any:
    transposed = _transposed(base)
    if transposed is None:
        return None
    if len(link.sources) == 1:
        found = product(link.sources[0][2].source, link.expression.outer, transposed)
        if found is not None:
            return found
    owners = zip(link.expression.owners, link.sources, strict=True)
    if is_compiling() or not any(k == link.key and _loose(s) for k, s in owners):
        return None
    if link.expression not in _near:
        _near[link.expression] = _nearly(link, transposed)
    return _near[link.expression]


#: What was found of sites that are shared but for a remainder: to try it takes a while.
_near: WeakKeyDictionary[Expression, NearProduct | None] = WeakKeyDictionary()


def _loose(source: tuple[nn.Module, str, Any]) -> bool:
    return isinstance(source[2].own, Factors)


def _nearly(link: Link, transposed: bool) -> NearProduct | None:
    """The product of a site that is another matrix but for its own remainder of low rank."""
    names, owners = link.expression.owners, [s[2] for s in link.sources]
    mine = names.index(link.key)
    rest = owners[mine].own
    assert rest is not None
    base = link.expression.base
    if base is None and owners[mine].joint:
        other = mine
    elif base is not None and len(base.owners) == 1 and base.owners[0] in names:
        other = names.index(base.owners[0])
    else:
        return None
    plain = owners[other].base if owners[other].joint else owners[other]
    if plain is None or len(link.shape) != 2:
        return None
    size = rest.in_shape[0] * rest.in_shape[1]
    own = Term(mine, numel(owners[mine].shape) - size, rest.in_shape)

    def value(thetas: Sequence[Tensor]) -> Tensor:
        return link.of([Parameter(t, requires_grad=False) for t in thetas])

    shapes = [o.shape for o in owners]
    shared, outer = Term(other, 0, plain.shape), link.expression.outer
    return near_product(shapes, shared, own, outer, value, transposed)


def multiplies(base: type[nn.Module], attr: str, link: Link) -> bool:
    """Whether a module of this class can multiply by the factors at this site."""
    return attr == "weight" and _found(base, link) is not None


def prepare(base: type[nn.Module], link: Link) -> None:
    """Have the product at hand before anything is traced."""
    link.factors, link.held = _found(base, link), NOTHING


def multiply(self: Any, x: Tensor) -> Tensor:
    """The layer's forward, by the factors. Where θ is no plain parameter (parts of it, or what
    functional_call gave in a transform), and for torch.jit, by the weight itself.

    Without gradients the factors, views of θ, and the places of the pivots are kept for as
    long as θ lies where it is. Between products over weights that no cache holds, Python is
    slow: each object of this layer alone is as far away as its weights are. All this is
    written out, and looks at few of them, for a single token's sake.
    """
    link: Link = self.__dict__[LINKS]["weight"]
    own = self._parameters
    place, size, factors, common, one, attr = link.held
    if attr is None:  # nothing is held yet, or θ is another module's
        module, name, _ = link.sources[0]
        theta = module._parameters.get(name)
    else:
        theta = own.get(attr)
    if is_grad_enabled() or is_compiling() or _any_autocast() or _transforms() is not None:
        return _slowly(self, link, theta, x)
    if type(theta) is not Parameter or x.layout is not strided or _tracing():
        return _slowly(self, link, theta, x)
    if place != theta.data_ptr() or size != theta.numel() or not theta.is_contiguous():
        made = link.factors
        if made is None or isinstance(made, NearProduct):
            return _slowly(self, link, theta, x)
        module, name, owner = link.sources[0]
        if theta.shape != owner.shape or not theta.is_contiguous():
            return _slowly(self, link, theta, x)
        factors = made.held(theta)
        common = made.common
        one = compiled(factors)
        attr = name if module is self else None
        link.held = theta.data_ptr(), theta.numel(), factors, common, one, attr
    bias = own.get("bias", link)
    if bias is link:  # it is tied itself
        bias = self.bias
    if common:
        now = running()
        if now is not None:
            inner = _once(now, factors, one, theta, x)
            found = None if one is None else one(x, bias, inner)
            return spread(factors, inner, x, bias) if found is None else found
    found = None if one is None else one(x, bias)
    return multiplied(factors, x, bias) if found is None else found


def _once(now: Forward, factors: Any, one: OneRow | None, theta: Tensor, x: Tensor) -> Tensor:
    """The half of a product that several layers have in common, as the last one left it.

    Queries, keys and values are asked for one after another with one input, so the last is
    enough, and nothing stays in memory for longer than it would.
    """
    versions = version_of(x), version_of(theta)
    kept = now.half
    if kept is not None and kept[0] is x and kept[1] is theta and kept[2] == versions:
        return kept[3]
    half = None if one is None else one.half(x)
    found = picked(factors, x) if half is None else half
    now.half = None if None in versions else (x, theta, versions, found)
    return found


def _slowly(self: Any, link: Link, theta: Any, x: Tensor) -> Tensor:
    base = type(self)._eadem_class[0]
    if link.factors is None:  # it has been pickled
        prepare(base, link)
    found: Tensor
    if (
        link.factors is None
        or x.layout is not strided
        or (not is_compiling() and _tracing())  # nothing that torch.compile may ask
        or not all(_plain(m._parameters.get(a), o.shape) for m, a, o in link.sources)
    ):
        found = base.forward(self, x)
    elif isinstance(link.factors, NearProduct):
        found = link.factors(link.parameters(), x, self.bias)
    else:
        found = link.factors(theta, x, self.bias)
    return found


def _plain(theta: Any, shape: Shape) -> bool:
    return type(theta) is Parameter and theta.shape == shape
