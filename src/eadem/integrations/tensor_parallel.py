"""Tensor parallelism of a tied model.

Each process holds a part of a weight and computes with it. An equal or transposed site reads
the same parts, so its tie is kept; any other map would need values that lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import parallel

from eadem.bind import computed_sites, readers, ties
from eadem.errors import Unsupported

__all__ = ["parallelize_module"]


def parallelize_module(
    module: nn.Module,
    device_mesh: Any = None,
    parallelize_plan: Mapping[str, parallel.ParallelStyle] | None = None,
    **options: Any,
) -> nn.Module:
    """Torch's `parallelize_module`, which refuses before anything is changed.

    The plan names modules by pattern as torch's does. A tie is kept where its sites are equal
    or transposed and either all of their modules are in the plan or none is, with styles that
    split the one parameter in one way: for equal weights the same (an embedding split by rows
    and the output layer split by columns both cut the vocabulary), for a transpose
    `ColwiseParallel` with `RowwiseParallel`.

    Raises Unsupported for any other tie of a module in the plan. Returns the module.

    >>> import eadem
    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> _ = eadem.tie(model, "0.weight", via=eadem.Palindrome(dim=-1))
    >>> try:
    ...     parallelize_module(model, None, {"0": parallel.ColwiseParallel()})
    ... except Unsupported as refusal:
    ...     print(str(refusal)[:46])
    tensor parallelism of 0.weight would break Tie
    """
    plan = dict(parallelize_plan or {})
    computed = computed_sites(module)
    names = {m: n for n, m in module.named_modules()}
    for tie in ties(module):
        sites = {s: s.partition("[")[0] for s in tie.sites}
        inside = [s for s, name in sites.items() if _covered(plan, name.rpartition(".")[0])]
        outside = [s for s in sites if s not in inside]
        why = None
        if not computed.isdisjoint(sites.values()):
            why = "its sites are not equal or transposed: a part of one is no part of another"
        elif outside:
            why = f"{', '.join(outside[:3])} would be left whole; plan for its module too"
        if inside and why is not None:
            raise Unsupported(
                f"tensor parallelism of {', '.join(inside[:3])} would break {tie!r}: {why}. "
                "Leave all modules of the tie out of the plan, or untie it first"
            )
    for reader in readers(module):
        held = [f"{names[m]}.{attr}".lstrip(".") for m, attr in reader.seats]
        if len(held) > 1 and any(_covered(plan, n.rpartition(".")[0]) for n in held):
            raise Unsupported(
                f"the model holds one parameter as {', '.join(held[:3])}, and tensor "
                f"parallelism would make them several; tie them first: eadem.tie(model, "
                f"{', '.join(map(repr, held[:3]))})"
            )
    with torch.no_grad():  # a transposed site is then a leaf, as torch wants it
        return parallel.parallelize_module(module, device_mesh, plan, **options)


def _covered(plan: Mapping[str, Any], module: str) -> bool:
    return any(_covers(path, module) for path in plan)


def _covers(path: str, module: str) -> bool:
    """Whether a plan's path means a module, by torch's rule: part by part."""
    parts, names = path.split(".") if path else [], module.split(".") if module else []
    return len(parts) == len(names) and all(map(fnmatch, names, parts))
