"""Which examples pull at which site of a tie: gradients by site and by example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eadem.evidence._likelihood import Density, Likelihood
from eadem.evidence.score import EvidenceError

__all__ = ["example_gradients"]


def example_gradients(
    model: nn.Module, loss: Density, data: Any, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The gradient that each example leaves at each tied site: by name, (n, *site).

    `loss(model, batch)` gives one value for each example of a batch, (n,), as the density of
    `score_test`; `data` is a batch or several. Examples are taken side by side
    (`torch.func.vmap`) where the operations allow, else one by one. Their sum over examples is
    what `trace` finds at the site for the summed loss. All of them are held at once.

    Raises EvidenceError where the model has no ties, or for values that are not one finite
    number for each example.

    >>> import eadem
    >>> model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    >>> _ = eadem.tie(model, "a.weight", "b.weight")
    >>> def loss(model, x):
    ...     return model["b"](model["a"](x)).square().sum(1)
    >>> found = example_gradients(model, loss, torch.randn(5, 2))
    >>> {name: tuple(g.shape) for name, g in found.items()}
    {'a.weight': (5, 2, 2), 'b.weight': (5, 2, 2)}
    """
    at = Likelihood(model, loss, data, dtype)
    tied = {name for group in at.plan.groups for name in group}
    if not tied:
        raise EvidenceError(
            f"{type(model).__name__} has no ties; declare them with eadem.tie first"
        )
    rows = at.scores()
    return {
        name: rows[:, piece].reshape(len(rows), *at.plan.shapes[name])
        for name, piece in at.plan.slices.items()
        if name in tied
    }
