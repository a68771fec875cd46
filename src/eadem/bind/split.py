"""Parameters that are split over processes (DTensor): their full values, and reads that would
mix a part with the whole.

FSDP keeps a parameter split except while the module that it was wrapped with runs; tensor
parallelism keeps it split, and its modules compute on parts. Nothing here imports
torch.distributed: where no parameter is split, it may not even be loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eadem.errors import RecordError, TieBroken, Unsupported

if TYPE_CHECKING:
    from eadem.bind.group import Link
    from eadem.maps.view import View

__all__ = [
    "checked",
    "full",
    "is_split",
    "place_split",
    "put",
    "refuse_full",
    "refuse_sharder",
    "refuse_split",
    "wholes",
]

_CALL = nn.Module._call_impl.__code__


def is_split(p: Any) -> bool:
    """Whether a tensor is a DTensor."""
    found = sys.modules.get("torch.distributed.tensor")
    return found is not None and isinstance(p, found.DTensor)


def full(p: Tensor) -> Tensor:
    """The full value of a tensor, differentiable; of a split one, gathered from every process,
    which must all ask for it.
    """
    if not is_split(p):
        return p
    found: Tensor = p.full_tensor()  # type: ignore[attr-defined]
    return found


def put(p: Tensor, value: Tensor) -> None:
    """Write a full value into `p`; each process writes the part that it holds."""
    if is_split(p):
        spread: Any = sys.modules["torch.distributed.tensor"].distribute_tensor
        split: Any = p
        value = spread(
            value.to(p.dtype), split.device_mesh, split.placements, src_data_rank=None
        )
    p.copy_(value)


def wholes(link: Link, thetas: list[Tensor]) -> list[Tensor]:
    """A computed site's owners, gathered where they are split.

    Raises TieBroken within a forward that runs on whole or on split values of its own.
    """
    if torch.compiler.is_compiling():
        return thetas
    found = []
    for p in thetas:
        if is_split(p):
            module = link.group.places[link.key].module
            if _parallel(module):
                error = TieBroken(
                    f"{link.key!r} is computed from {_owners(link)}, and its module was "
                    "parallelised over tensors, where only equal and transposed sites keep "
                    "their tie. Use eadem.integrations.tensor_parallel.parallelize_module, "
                    "which refuses before anything is changed, and leave the tie's modules out"
                )
                raise link.group.refuse(error)
            _whole_forward(link)
            p = full(p)
        found.append(p)
    return found


def checked(link: Link, module: nn.Module, p: Tensor) -> Tensor:
    """The owner of a viewed site, as it is.

    Raises TieBroken where it is split in a forward that runs on whole values.
    """
    if not torch.compiler.is_compiling() and is_split(p) and not _parallel(module):
        _whole_forward(link)
    return p


def place_split(link: Link, view: View | None, value: Any) -> None:
    """A split value registered at a tied site, as tensor parallelism does.

    Where the site is its owner with its axes permuted, the owner is split accordingly, or
    must be already. Raises Unsupported otherwise.
    """
    if view is None:
        refuse_sharder(link)
        return
    module, attr, _ = link.sources[0]
    held: Any = module._parameters[attr]
    if not is_split(held):
        inverse = value.detach().permute(view.inverse().perm).contiguous()
        module.register_parameter(attr, nn.Parameter(inverse, held.requires_grad))
        return
    here = held.permute(view.perm)
    if (here.device_mesh, here.placements) != (value.device_mesh, value.placements):
        error = Unsupported(
            f"{link.key!r} is tied to {_owners(link)}, which is split so that it is "
            f"{here.placements} here; it was now split {value.placements}. Choose styles that "
            "agree: for equal weights the same, for a transpose ColwiseParallel with "
            "RowwiseParallel"
        )
        raise link.group.refuse(error)


def refuse_full(names: Sequence[str], owners: Iterable[Tensor]) -> None:
    """Raise RecordError where full sites are to be loaded and the free values are split."""
    if any(map(is_split, owners)):
        raise RecordError(
            f"the checkpoint holds the tied sites {', '.join(names[:3])} in full, and this "
            "model's free values are split over processes. Load it into the tied model before "
            "that is sharded, or load its free values alone (the tied model's own state dict). "
            "Nothing was loaded"
        )


def refuse_sharder(link: Link) -> None:
    """Raise Unsupported: something splits the parameters of a model one by one."""
    error = Unsupported(
        f"{link.key!r} is computed from the free values of its tie ({_owners(link)}), which "
        "are not to be split by the site's name. Shard with eadem.integrations.fsdp."
        "fully_shard; tensor parallelism keeps equal and transposed sites only: leave this "
        "module out of its plan, or untie it first"
    )
    raise link.group.refuse(error)


def refuse_split(parameters: Iterable[tuple[str, Tensor | None]], what: str) -> None:
    """Raise Unsupported where a parameter is split: `what` needs them whole."""
    for name, p in parameters:
        if is_split(p):
            raise Unsupported(
                f"{name!r} is split over processes, and {what} needs it whole: do it before "
                "the model is sharded, or gather the model first (torch.distributed.checkpoint"
                ".state_dict.get_model_state_dict with full_state_dict=True) and load that "
                "into an unsharded model with the same ties"
            )


def _parallel(module: nn.Module) -> bool:
    """Whether a module was parallelised over tensors, and so computes on parts."""
    return bool(getattr(module, "_distribute_module_applied", False))


def _owners(link: Link) -> str:
    return ", ".join(repr(o) for o in link.expression.owners)


def _whole_forward(link: Link) -> None:
    """Raise TieBroken where an FSDP module's forward runs in this thread: it gathered the
    parameters that it was wrapped with, and this link's owner is not among them.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    frame: FrameType | None = sys._getframe(1)
    while fsdp is not None and frame is not None:
        if frame.f_code is _CALL and isinstance(frame.f_locals.get("self"), fsdp.FSDPModule):
            error = TieBroken(
                f"{link.key!r} takes its value from {_owners(link)}, which is sharded while "
                "this module runs: torch's fully_shard wrapped the sites of the tie apart, or "
                "wrapped them with a module whose forward is not called. Shard the untouched "
                "model with eadem.integrations.fsdp.fully_shard(model, *blocks), which keeps "
                "a tie's parameters with a block that contains all of its sites"
            )
            raise link.group.refuse(error)
        frame = frame.f_back
