"""Checkpoints: a model's free values and its record in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from eadem import bind
from eadem._plan import Declaration, resolve
from eadem.errors import EademError, RecordError, Unsupported
from eadem.maps.constant import on_cpu
from eadem.store.layout import DTYPES, Stored, TensorFile, loads, write
from eadem.store.records import PREFIX, Record, declarations, declare, record_and_arrays
from eadem.store.schema import FORMAT, checked, digests

__all__ = ["load", "metadata", "read_record", "record_in", "save"]


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write θ and the record to a safetensors file, all of it or nothing.

    Raises RecordError where the file cannot be written or a map not recorded, Unsupported
    where the state dict holds what safetensors cannot.
    """
    bind.refuse_split(model.named_parameters(), "a file of the whole model")
    found, arrays = record_and_arrays(model)
    tensors = _tensors(model) | arrays
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        write(partial, tensors, metadata(found))
        os.replace(partial, target)
    except OSError as error:
        raise RecordError(
            f"cannot write {target}: {error}; choose a folder that exists and can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def metadata(found: Record) -> dict[str, str]:
    """What a safetensors file with this record has as metadata, besides its tensors.

    `format` is what transformers asks for.
    """
    return {FORMAT: json.dumps(found, separators=(",", ":")), "format": "pt"}


@on_cpu()
def load(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file that `save` wrote: tie the model as the file says, then fill in θ.

    A model that has the file's plan already is only filled in. The file's bytes go straight
    into the parameters; no copy of θ is made. Raises RecordError where the file is
    truncated, foreign or newer, or does not fit the model, in its sites, its shapes or its
    plan, Unsupported where the model has extra state; the model is then unchanged. A model
    with loading code of its own (`_load_from_state_dict`, state-dict hooks) is loaded by
    `load_state_dict`, from a copy, and put back as it was if that raises.
    """
    with TensorFile(path) as file:
        found = record_in(file)
        arrays = {
            digest: file.tensor(PREFIX + digest)
            for digest in dict.fromkeys(digests(found))
            if PREFIX + digest in file.tensors
        }
        declared = declarations(model, found, arrays)
        named = {PREFIX + digest for digest in arrays}
        theta = {k: s for k, s in file.tensors.items() if k not in named}
        _fits(model, declared, theta, file.path)
        _fill(model, found, declared, list(theta), file)


def _fill(
    model: nn.Module,
    found: Record,
    declared: Sequence[Declaration],
    theta: Sequence[str],
    file: TensorFile,
) -> None:
    if not bind.loads_by_itself(model):
        file.prefetch()
        declare(model, found, declared, start="empty")
        bind.fill(model, theta, file.fill)
        return
    values = {name: file.tensor(name) for name in theta}
    try:
        with bind.undone_on_error(model, values=True):
            declare(model, found, declared, start="empty")
            model.load_state_dict(values, strict=True)
    except EademError:
        raise
    except Exception as error:
        raise RecordError(
            f"{file.path} was not taken by this {type(model).__name__}'s own loading code, and "
            f"the model is as it was: {error}"
        ) from error


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record of a file that `save` wrote. Raises RecordError."""
    with TensorFile(path) as file:
        return record_in(file)


def record_in(file: TensorFile) -> Record:
    """The record of an open file. Raises RecordError."""
    text = file.metadata.get(FORMAT)
    if text is None:
        raise RecordError(
            f"{file.path} has no record of ties: it was not written by eadem.save; read plain "
            "weights with safetensors and model.load_state_dict"
        )
    return checked(loads(text, f"the record in {file.path}"), str(file.path))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, each value a tensor that can be written."""
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        _no_extra_state(key, value)
        if value.is_meta:
            raise Unsupported(
                f"{key!r} is on the meta device and has no value to save; call "
                "model.to_empty(device=…) and initialise it first"
            )
        found[key] = value.detach()
    return found


def _no_extra_state(key: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise Unsupported(
            f"{key!r} in the state dict is a {type(value).__name__}, and safetensors holds "
            "tensors only; keep extra state apart"
        )


def _fits(
    model: nn.Module,
    declared: Sequence[Declaration],
    stored: Mapping[str, Stored],
    path: Path,
) -> None:
    """Whether the file's θ is that of the model once tied. Raises RecordError."""
    here = bind.resolved(model)
    try:
        plan = resolve(here.shapes, declared)
    except Exception as error:
        # what a file declares is resolved as it stands: anything may come out
        raise RecordError(f"the ties recorded in {path} cannot be: {error}") from error
    held = model.state_dict()
    for key, value in held.items():
        _no_extra_state(key, value)
    wanted = {k: tuple(v.shape) for k, v in held.items() if k not in here.shapes}
    wanted |= {name: owner.shape for name, owner in plan.owners.items()}
    given = {k: s.shape for k, s in stored.items()}
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(given.keys() - wanted.keys())
    odd = [
        f"{k} is {given[k]}, not {wanted[k]}"
        for k in sorted(wanted.keys() & given.keys())
        if given[k] != wanted[k]
    ]
    odd += [
        f"{k} {why}"
        for k in sorted(wanted.keys() & given.keys())
        if k in held and (why := _cannot_take(held[k], stored[k]))
    ]
    parts = [
        f"{what}: " + ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        for what, names in (("missing", missing), ("not in the model", extra), ("", odd))
        if names
    ]
    if parts:
        raise RecordError(
            f"{path} does not fit this {type(model).__name__}: " + "; ".join(parts).lstrip(": ")
        )


def _cannot_take(value: Tensor, stored: Stored) -> str | None:
    """Why a model's tensor cannot take a stored one, of the right shape; None if it can."""
    if value.is_meta:
        return "is on the meta device: call model.to_empty(device=…) first"
    given = DTYPES.get(stored.dtype)
    if given == value.dtype or (
        given is not None and given.is_floating_point and value.dtype.is_floating_point
    ):
        return None
    return f"is stored as {stored.dtype}, which {value.dtype} cannot take"
