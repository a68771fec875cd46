"""The maps of a tie by expression: a site that follows from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.maps import Affine, Function, Gather, Map, Same
from eadem.project.expression import Expression

__all__ = ["maps"]


def maps(site: str, expression: Expression, starts: Mapping[str, Tensor]) -> dict[str, Map]:
    """The map of each site of a tie by expression, from one θ for each name in it."""
    names = expression.names
    if len(names) == 1 and expression.linear is not None:
        slope, level = expression.linear[0][names[0]], expression.linear[1]
        if slope:
            return {names[0]: Same(), site: Affine(slope, level)}
    value = _Value(expression)
    theta = torch.stack([starts[n] for n in names])
    if len(names) == 1:
        return {names[0]: Same(), site: Function(value, _Inverse(value, theta[0]))}
    maps: dict[str, Map] = {n: Gather(torch.tensor(i)) for i, n in enumerate(names)}
    return maps | {site: Function(value, _Inverse(value, theta), in_shape=(len(names),))}


@dataclass(frozen=True)
class _Value:
    """An expression as a function of the values of its names, in a tensor."""

    expression: Expression

    def __call__(self, theta: Tensor) -> Tensor:
        each = theta.reshape(-1).unbind()
        return self.expression(dict(zip(self.expression.names, each, strict=True)))


@dataclass(frozen=True, eq=False)
class _Inverse:
    """Values of the names for which an expression has a value, by steps from where they start
    (Newton's, the least in length, halved where the misfit grows).
    """

    value: _Value
    start: Tensor

    def __call__(self, wanted: Tensor) -> Tensor:
        theta = self.start.clone()
        for _ in range(50):
            rest = wanted - self.value(theta)
            if not float(rest.abs()) > 1e-14 * (1.0 + float(wanted.abs())):
                break
            slope = torch.func.grad(self.value)(theta)
            step = slope * rest / slope.square().sum()
            for halvings in range(30):
                tried = theta + step / 2**halvings
                if float((wanted - self.value(tried)).abs()) < float(rest.abs()):
                    break
            else:
                break
            theta = tried
        return theta
