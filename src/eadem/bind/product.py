"""A layer that multiplies by the factors of its weight, which is then never built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn, strided
from torch.compiler import is_compiling
from torch.nn import Parameter

from eadem.bind.forward import Forward, running, version_of
from eadem.bind.group import LINKS, NOTHING, Link
from eadem.maps.factored import multiplied, picked, product, spread
from eadem.maps.one_row import OneRow, compiled

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
    if transposed is None or len(link.sources) != 1:
        return None
    return product(link.sources[0][2].source, link.expression.outer, transposed)


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
    slow, and all this is written out for a single token's sake.
    """
    link: Link = self.__dict__[LINKS]["weight"]
    module, attr, owner = link.sources[0]
    theta = module._parameters.get(attr)
    own = self._parameters
    if is_grad_enabled() or is_compiling() or _any_autocast() or _transforms() is not None:
        return _slowly(self, link, theta, x)
    if type(theta) is not Parameter or x.layout is not strided or _tracing():
        return _slowly(self, link, theta, x)
    place, size, factors, common, one = link.held
    if place != theta.data_ptr() or size != theta.numel() or not theta.is_contiguous():
        if link.factors is None or theta.shape != owner.shape or not theta.is_contiguous():
            return _slowly(self, link, theta, x)
        factors = link.factors.held(theta)
        common = link.factors.common
        one = compiled(factors)
        link.held = theta.data_ptr(), theta.numel(), factors, common, one
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
    owner = link.sources[0][2]
    if link.factors is None:  # it has been pickled
        prepare(base, link)
    if (
        type(theta) is not Parameter
        or theta.shape != owner.shape
        or x.layout is not strided
        or (not is_compiling() and _tracing())  # nothing that torch.compile may ask
    ):
        whole: Tensor = base.forward(self, x)
        return whole
    value: Tensor = link.factors(theta, x, self.bias)  # type: ignore[misc]
    return value
