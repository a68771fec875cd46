"""Data sets fitted together: blocks with a weighted residual each, in one model.

>>> class Line(nn.Module):
...     def __init__(self, x, y):
...         super().__init__()
...         self.x, self.y = torch.tensor(x), torch.tensor(y)
...         self.slope = nn.Parameter(torch.zeros(1))
...     def residual(self):
...         return self.y - self.slope * self.x
>>> joint = Joint({"first": Line([1.0, 2.0], [2.0, 4.5]), "second": Line([3.0], [5.5])})
>>> import eadem
>>> _ = eadem.tie(joint, "*.slope")
>>> joint.residual().tolist(), eadem.counts(joint).free
([2.0, 4.5, 5.5], 1)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eadem.errors import EademError, Unsupported

__all__ = ["Joint", "NotABlock", "has_slope", "residual_of", "slope_or_value"]


class NotABlock(EademError, TypeError):
    """A block of a `Joint` has no usable residual."""


class Joint(nn.Module):
    """Blocks that are fitted together, by name; each is a module with a `residual()`.

    `residual()` takes nothing and returns a tensor of any shape: (observed − model)/σ, in
    torch operations, from the block's own parameters and the data that it holds. A block is a
    sub-module under its name, so the sites of a block `a` are `a.…`, and the whole is tied as
    any model. Blocks of one class whose data have one shape are evaluated together.

    A block may have its own derivative beside that, where it knows a faster one than torch's:
    `residual_jvp(along)` is given t directions at once, by name of the block's parameter
    (t, *shape), every parameter with one, and returns the derivative of `residual()` along
    each, (t, …), for the block's present values; or NotImplemented, and torch's is taken.
    `eadem.least_squares` gives it the columns of the ties, and compares it once per fit with
    torch's derivative of `residual()`.

    Raises NotABlock where a block has no `residual`, Unsupported for a name that no module
    can have.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not isinstance(blocks, Mapping) or not blocks:
            raise NotABlock(
                "a Joint needs at least one block, with a name: Joint({name: module})"
            )
        for name, block in blocks.items():
            if not isinstance(block, nn.Module) or not callable(
                getattr(block, "residual", None)
            ):
                raise NotABlock(
                    f"block {name!r} is a {type(block).__name__} without residual(); a block "
                    "is an nn.Module whose residual() gives (observed − model)/σ"
                )
            try:
                self.add_module(name, block)
            except (KeyError, TypeError) as error:
                raise Unsupported(
                    f"a block cannot be called {name!r}: {error.args[0]}; names are those of "
                    "sub-modules, without dots"
                ) from None

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks by name."""
        return {name: m for name, m in self._modules.items() if m is not None}

    def __getitem__(self, name: str) -> nn.Module:
        found = self._modules.get(name)
        if found is None:
            raise KeyError(f"no block {name!r}; there are {list(self._modules)}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def residual(self) -> Tensor:
        """The residuals of all blocks, flat, block after block."""
        return torch.cat([residual_of(m).reshape(-1) for m in self.blocks.values()])

    def forward(self) -> Tensor:
        """The same as `residual()`."""
        return self.residual()


def residual_of(block: Any) -> Tensor:
    """A block's residual. Raises NotABlock where that is no tensor."""
    found = block.residual()
    if not isinstance(found, Tensor):
        raise NotABlock(
            f"residual() of a {type(block).__name__} gave a {type(found).__name__}, not a "
            "tensor; return (observed − model)/σ in torch operations"
        )
    return found


def has_slope(block: Any) -> bool:
    """Whether a block brings a derivative of its own."""
    return callable(getattr(block, "residual_jvp", None))


def slope_or_value(block: Any, along: Mapping[str, Tensor] | None = None) -> Any:
    """A block's residual, or with directions its derivative along them."""
    return residual_of(block) if along is None else block.residual_jvp(along)
