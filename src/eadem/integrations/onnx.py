"""ONNX files in which each θ is one initializer, whatever its size and map.

`torch.onnx.export` keeps the ties of a model, but then optimizes the graph: an expression of
at most 8192 constants is computed and stored, so a small transposed or gathered θ would be
stored once for each site. `export` has the same optimization done around the θs.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.onnx import ONNXProgram

from eadem.bind import ties
from eadem.errors import MissingPackage, Unsupported

__all__ = ["export"]


def export(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    f: str | os.PathLike[str] | None = None,
    *,
    optimize: bool = True,
    external_data: bool = True,
    **options: Any,
) -> ONNXProgram:
    """`torch.onnx.export(model, args, f, dynamo=True, ...)`, with each θ one initializer.

    The initializers of free values have the names that `model.state_dict()` gives them. All
    `options` are those of torch's function. Raises Unsupported for anything but a module (an
    exported program no longer says what is tied) and MissingPackage without the extra
    `export`.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(
                f"an ONNX export needs the package {package!r}, which is not installed: "
                'pip install "eadem[export]"'
            )
    if not isinstance(model, nn.Module):
        raise Unsupported(
            f"export was given a {type(model).__name__}, which does not say what is tied; give "
            "the module itself, or use torch.onnx.export with optimize=False"
        )
    program = torch.onnx.export(model, args, dynamo=True, optimize=False, **options)
    assert program is not None
    if optimize:
        _optimize(program, model)
    if f is not None:
        program.save(f, external_data=external_data)
    return program


def _optimize(program: ONNXProgram, model: nn.Module) -> None:
    """Torch's own optimization, with the θs declared as inputs meanwhile: it computes
    nothing from an input.
    """
    graph = program.model.graph
    names = _shared(model)
    kept = [v for v in graph.initializers.values() if v.name in names]
    graph.inputs.extend(kept)
    # it says of each input that it does not look for another with the same values
    log = logging.getLogger("onnx_ir.passes.common.initializer_deduplication")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        program.optimize()
    finally:
        log.setLevel(level)
        for value in kept:
            program.model.graph.inputs.remove(value)


def _shared(model: nn.Module) -> set[str]:
    """The names of tied free values, and of parameters that stand in several places."""
    named = list(model.named_parameters(remove_duplicate=False))
    places = Counter(id(p) for _, p in named)
    free = {id(p) for tie in ties(model) for p in tie.thetas}
    return {n for n, p in named if id(p) in free or places[id(p)] > 1}
