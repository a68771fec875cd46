"""A layer that multiplies by the factors of its weight, which is then never built."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from eadem.bind.group import LINKS, Link
from eadem.maps.factored import product

__all__ = ["multiplies", "multiply", "prepare"]

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
    link.factors = _found(base, link)


def multiply(self: Any, x: Tensor) -> Tensor:
    """The layer's forward, by the factors. Where θ is no plain parameter (parts of it, or what
    functional_call gave in a transform), by the weight itself.
    """
    link: Link = self.__dict__[LINKS]["weight"]
    base = type(self)._eadem_class[0]
    module, attr, owner = link.sources[0]
    theta = module._parameters.get(attr)
    if link.factors is None:  # it has been pickled
        prepare(base, link)
    if type(theta) is not Parameter or theta.shape != owner.shape:
        whole: Tensor = base.forward(self, x)
        return whole
    value: Tensor = link.factors(theta, x, self.bias)  # type: ignore[misc]
    return value
