"""Derivatives where torch may have no rule for one, or nothing to differentiate."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NO_RULE", "slope"]

#: What torch.func raises where an operation has no batching rule or no forward derivative.
NO_RULE = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


def slope(
    value: Tensor,
    at: Tensor,
    along: Tensor | None = None,
    *,
    retain: bool = False,
    create: bool = False,
) -> Tensor:
    """The gradient at `at` of a scalar, or of `value`·`along`; zero where it does not depend.

    >>> x = torch.ones(2, requires_grad=True)
    >>> slope((x**2).sum(), x), slope(torch.tensor(1.0), x)
    (tensor([2., 2.]), tensor([0., 0.]))
    """
    if not value.requires_grad:
        return torch.zeros_like(at)
    found = torch.autograd.grad(
        value,
        at,
        along,
        retain_graph=retain or create,
        create_graph=create,
        allow_unused=True,
    )[0]
    return torch.zeros_like(at) if found is None else found
