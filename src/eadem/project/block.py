"""A data set as a block of a joint fit."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eadem.project.document import Document, Path_
from eadem.project.expression import Expression

__all__ = ["Block", "CurveBlock", "powder_block"]


@runtime_checkable
class Block(Protocol):
    """What a data set's module has, whatever its model: the data, the curve, the residual."""

    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and σ."""

    def model(self) -> Tensor:
        """The curve at x."""

    def residual(self) -> Tensor:
        """(y − model)/σ."""


class CurveBlock(nn.Module):
    """A curve in x given by an expression, with one scalar parameter for each of its names."""

    def __init__(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        sigma: NDArray[np.float64],
        expression: Expression,
        start: Mapping[str, float],
    ) -> None:
        super().__init__()
        self._x, self._y, self._sigma = (torch.from_numpy(v.copy()) for v in (x, y, sigma))
        self._curve = expression
        for name in expression.names:
            value = torch.tensor(start[name], dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))

    def at(self, x: Tensor) -> Tensor:
        """The curve at other places, in the shape of x."""
        values = {name: getattr(self, name) for name in self._curve.names}
        return self._curve(values | {"x": x}).expand(x.shape)

    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and σ."""
        return self._x, self._y, self._sigma

    def model(self) -> Tensor:
        """The curve at x."""
        return self.at(self._x)

    def residual(self) -> Tensor:
        """(y − model)/σ."""
        return (self._y - self.model()) / self._sigma


def powder_block(
    document: Document, folder: Path, name: str, table: Mapping[str, Any]
) -> nn.Module:
    """The block of a data set with `model = "powder"`, made by `eadem.powder.project_block`.

    That function is given the folder of the project, the data set's name and its table as it
    is written, and returns a module that is a `Block`; it opens files by
    `eadem.project.data.inside` and says what is wrong by ProjectError. Raises ProjectError
    where this version has no such function.
    """
    path: Path_ = ("data", name, "model")
    try:
        build = importlib.import_module("eadem.powder").project_block
    except (ModuleNotFoundError, AttributeError):
        raise document.error(
            path, "model = 'powder' is not in this version of Eadem; it fits curves only"
        ) from None
    made: nn.Module = build(folder, name, table)
    return made
