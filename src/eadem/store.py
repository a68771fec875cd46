"""Records and checkpoints: what a model's ties are, as plain data, and its free values.

A record is a dict that is ready for JSON: the declarations, canonical, so that one plan has
one record whatever the order in which it was declared. A checkpoint is a safetensors file:
the model's own state dict (each free value once), the record in its metadata, and the arrays
that are too large for the record as tensors `eadem/<sha256>`.

>>> import eadem
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
>>> _ = eadem.tie(model, "*.weight")
>>> record(model)["ties"]
[[{'sites': ['0.weight', '1.weight'], 'map': {'kind': 'Same', 'args': {}}}]]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eadem import bind
from eadem._plan import Declaration, Entry, Plan, Site, resolve
from eadem.bind.load import ARRAYS as PREFIX
from eadem.errors import EademError, RecordError, Unsupported
from eadem.maps.base import Map, Shape, on_cpu
from eadem.maps.spec import from_spec, to_spec

__all__ = [
    "PREFIX",
    "VERSION",
    "apply",
    "checked",
    "load",
    "materialize",
    "read_record",
    "record",
    "record_and_arrays",
    "save",
]

#: The version of the record's layout. A file with a higher one is refused.
VERSION = 1
#: Arrays of more bytes than this are kept outside the record, under their hash.
INLINE_BYTES = 64 * 1024

_FORMAT = "eadem"
Record = dict[str, Any]
Arrays = Mapping[str, Tensor]


@on_cpu()
def record(model: nn.Module) -> Record:
    """The ties of a model as a JSON-ready dict; arrays above 64 KB appear by hash only.

    `version`; `sites`: the shape of every tied parameter; `ties`: for each tie, its sites in
    order, those of one map together, with that map. Raises RecordError for a map that cannot
    be recorded (a function that no module defines).
    """
    return _encode(model)[0]


@on_cpu()
def record_and_arrays(model: nn.Module) -> tuple[Record, dict[str, Tensor]]:
    """The record, and the arrays that it names by hash, as they are stored beside θ: by
    "eadem/" and the hash. Raises what `record` raises.
    """
    found, arrays = _encode(model)
    return found, {PREFIX + digest: value for digest, value in arrays.items()}


@on_cpu()
def apply(
    model: nn.Module, record: Mapping[str, Any], arrays: Arrays | None = None
) -> list[bind.Tie]:
    """Tie an untied model as `record` says, each free value starting from its own place.

    `arrays` holds what the record names by hash, by that hash. A model that has the same
    plan already is left as it is. Raises RecordError where the record is malformed, of a
    newer version, in want of arrays, not of this model, or of another plan than the model
    has; the model is then unchanged.
    """
    _declare(model, checked(record), {} if arrays is None else arrays)
    return bind.ties(model)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write θ and the record to a safetensors file, all of it or nothing.

    Raises RecordError where the file cannot be written or a map not recorded, Unsupported
    where the state dict holds what safetensors cannot.
    """
    bind.refuse_split(model.named_parameters(), "a file of the whole model")
    found, arrays = record_and_arrays(model)
    tensors = _tensors(model) | arrays
    # one entry only: safetensors writes several in no fixed order, and a file is to be
    # the same to the byte
    metadata = {_FORMAT: json.dumps(found, separators=(",", ":"))}
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.touch()  # with the mode that the umask gives; safetensors' own is 0600
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(mode)
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise RecordError(
            f"cannot write {target}: {error}; choose a folder that exists and can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@on_cpu()
def load(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file that `save` wrote: tie the model as the file says, then fill in θ.

    A model that has the file's plan already is only filled in. Raises RecordError where the
    file is truncated, foreign or newer, or does not fit the model, in its sites, its shapes
    or its plan; the model is then unchanged.
    """
    found, arrays, tensors = _read(Path(path))
    _fits(model, _declarations(model, found, arrays), tensors, Path(path))
    _declare(model, found, arrays)
    model.load_state_dict(tensors, strict=True)


def materialize(model: nn.Module) -> dict[str, Tensor]:
    """A plain state dict for the stock class: every site's full value, under its own name.

    The tensors are copies; the order is the stock class's; buffers are there too.
    """
    state = bind.twin(model).state_dict()
    return {
        k: v.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(v, Tensor)
        else v
        for k, v in state.items()
    }


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record of a file that `save` wrote. Raises RecordError."""
    return _read(Path(path))[0]


# a record from a model


def _encode(model: nn.Module) -> tuple[Record, dict[str, Tensor]]:
    declarations = bind.declarations(model)
    shapes = bind.resolved(model).shapes if declarations else {}
    tied = {name for d in declarations for name in d.names}
    arrays: dict[str, Tensor] = {}
    ties = [_encode_tie(d, arrays) for d in declarations]
    found = {
        "format": _FORMAT,
        "version": VERSION,
        "sites": {name: list(shape) for name, shape in shapes.items() if name in tied},
        "ties": ties,
    }
    return found, arrays


def _encode_tie(declaration: Declaration, arrays: dict[str, Tensor]) -> list[Record]:
    runs: list[Record] = []
    specs: dict[int, Any] = {}  # thousands of sites share one map object
    for e in declaration.entries:
        if id(e.map) not in specs:
            specs[id(e.map)] = _encode_value(to_spec(e.map), arrays)
        spec = specs[id(e.map)]
        if runs and (runs[-1]["map"] is spec or runs[-1]["map"] == spec):
            runs[-1]["sites"].append(str(e.site))
        else:
            runs.append({"sites": [str(e.site)], "map": spec})
    return runs


def _encode_value(value: Any, arrays: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return {"array": _encode_array(value, arrays)}
    if isinstance(value, Mapping):
        return {k: _encode_value(v, arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode_value(v, arrays) for v in value]
    return value


def _encode_array(value: Tensor, arrays: dict[str, Tensor]) -> Record:
    value = value.detach().cpu().contiguous()
    about: Record = {"dtype": _name(value.dtype), "shape": list(value.shape)}
    if value.numel() * value.element_size() > INLINE_BYTES:
        digest = _digest(value)
        arrays[digest] = value
        return about | {"sha256": digest}
    numbers = value.reshape(-1).tolist()
    if value.is_floating_point():
        numbers = [n if math.isfinite(n) else str(n) for n in numbers]
    return about | {"values": numbers}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest(value: Tensor) -> str:
    """The hash of an array's type, shape and bytes."""
    found = hashlib.sha256(f"{_name(value.dtype)}{tuple(value.shape)}".encode())
    found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, with what torch itself shares between names written for each."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise Unsupported(
                f"{key!r} in the state dict is a {type(value).__name__}, and safetensors holds "
                "tensors only; keep extra state apart"
            )
        if value.is_meta:
            raise Unsupported(
                f"{key!r} is on the meta device and has no value to save; call "
                "model.to_empty(device=…) and initialise it first"
            )
        value = value.detach()
        storage = value.untyped_storage()
        whole = value.numel() * value.element_size() == storage.nbytes()
        if storage.data_ptr() in storages or not whole or not value.is_contiguous():
            value = value.clone(memory_format=torch.contiguous_format)
        storages.add(storage.data_ptr())
        found[key] = value
    return found


# a model from a record


def checked(found: Any, where: str = "the record") -> Record:
    """A record of a version that is known. Raises RecordError."""
    if not isinstance(found, Mapping) or found.get("format") != _FORMAT:
        raise RecordError(f"{where} is no record of Eadem's; eadem.record(model) makes one")
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise RecordError(f"{where} has no version that any Eadem wrote: {version!r:.50}")
    if version > VERSION:
        raise RecordError(
            f"{where} has version {version}, and this Eadem reads up to {VERSION}; install a "
            "newer Eadem"
        )
    sites, ties = found.get("sites"), found.get("ties")
    if not isinstance(sites, Mapping) or not isinstance(ties, Sequence):
        raise RecordError(f"{where} is damaged: it has no list of sites and ties")
    return dict(found)


def _declarations(model: nn.Module, found: Record, arrays: Arrays) -> list[Declaration]:
    """What a record declares, checked against the model's sites. Raises RecordError."""
    shapes = bind.resolved(model).shapes
    for name, recorded in found["sites"].items():
        if name not in shapes:
            raise RecordError(
                f"the record ties {name!r}, which this {type(model).__name__} does not have; "
                "load it into the model that it was made from"
            )
        if list(shapes[name]) != recorded:
            raise RecordError(
                f"the record was made with {name!r} of shape {recorded}; this model's has "
                f"{list(shapes[name])}"
            )
    try:
        return [_decode_tie(runs, shapes, arrays) for runs in found["ties"]]
    except RecordError:
        raise
    except (EademError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"the record is damaged: {error}") from error


def _decode_tie(runs: Any, shapes: Mapping[str, Shape], arrays: Arrays) -> Declaration:
    entries: list[Entry] = []
    for run in runs:
        phi: Map = from_spec(_decode_value(run["map"], arrays))
        entries += [Entry(Site.at(site, shapes), phi) for site in run["sites"]]
    if not entries:
        raise RecordError("the record is damaged: it has a tie without sites")
    return Declaration(tuple(entries))


def _decode_value(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, Mapping):
        if "array" in value:
            return _decode_array(value["array"], arrays)
        return {k: _decode_value(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_decode_value(v, arrays) for v in value]
    return value


def _decode_array(about: Mapping[str, Any], arrays: Arrays) -> Tensor:
    dtype = getattr(torch, str(about["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise RecordError(f"the record holds an array of unknown type {about['dtype']!r:.50}")
    if "sha256" not in about:
        numbers = [float(n) if isinstance(n, str) else n for n in about["values"]]
        return torch.tensor(numbers, dtype=dtype).reshape(about["shape"])
    digest = str(about["sha256"])
    if digest not in arrays:
        raise RecordError(
            f"the record names an array of shape {tuple(about['shape'])} by its hash "
            f"{digest[:12]}…, which is not given; eadem.load(model, path) finds it in the "
            "file, apply(model, record, arrays) takes it from you"
        )
    value = arrays[digest].detach().cpu()
    if list(value.shape) != list(about["shape"]) or _digest(value) != digest:
        raise RecordError(f"the array {digest[:12]}… is not the one that was recorded")
    return value


def _declare(model: nn.Module, found: Record, arrays: Arrays) -> None:
    """Tie the model as the record says, unless it has that plan. Raises RecordError."""
    declarations = _declarations(model, found, arrays)
    present = bind.declarations(model)
    if present:
        if _encode(model)[0]["ties"] == found["ties"] and bind.ties(model):
            return
        here = bind.resolved(model)
        there = resolve(here.shapes, declarations)
        if bind.ties(model):
            if _same(here, there):
                return
            raise RecordError(_difference(found["ties"], _encode(model)[0]["ties"]))
        # parameters shared by torch's own aliasing: the record must know of them
        if not _same(resolve(here.shapes, [*declarations, *present]), there):
            raise RecordError(_difference(found["ties"], _encode(model)[0]["ties"]))
    if not declarations:
        return
    try:
        bind.declare(model, declarations, start="first")
    except EademError as error:
        raise RecordError(f"the recorded ties do not fit this model: {error}") from error


def _same(here: Plan, there: Plan) -> bool:
    """Whether two plans of the same sites are one, perhaps in other words."""
    shapes = {n: o.shape for n, o in here.owners.items()}
    if shapes != {n: o.shape for n, o in there.owners.items()}:
        return False
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(here.in_shape, generator=generator, dtype=torch.float64) + 0.5
    return torch.allclose(here.expand(theta), there.expand(theta), rtol=1e-9, atol=1e-12)


def _difference(file: Any, model: Any) -> str:
    """What ties one has and the other has not, in a sentence or two."""
    parts = []
    for who, mine, theirs in (("the file", file, model), ("the model", model, file)):
        only = [_tie_text(t) for t in mine if t not in theirs]
        if only:
            more = f" and {len(only) - 3} more" if len(only) > 3 else ""
            parts.append(f"only {who} has " + "; ".join(only[:3]) + more)
    return (
        "the model is tied, but by another plan: "
        + "; ".join(parts)
        + ". Load into an untied model, or call eadem.untie(model) first"
    )


def _tie_text(tie: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for run in tie:
        sites = run["sites"]
        shown = ", ".join(sites[:3]) + (f", … ({len(sites)})" if len(sites) > 3 else "")
        parts.append(f"{shown} = {run['map']['kind']}(θ)")
    return "[" + "; ".join(parts) + "]"


# files


def _read(path: Path) -> tuple[Record, dict[str, Tensor], dict[str, Tensor]]:
    """Record, arrays by hash, and θ by its state-dict key. Raises RecordError."""
    if not path.is_file():
        raise RecordError(f"there is no file {path}; eadem.save(model, path) writes one")
    try:
        with safe_open(path, "pt") as f:
            text = (f.metadata() or {}).get(_FORMAT)
            tensors = {key: f.get_tensor(key) for key in list(f.keys())}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise RecordError(
            f"{path} cannot be read as safetensors ({error}); it is cut short, or of another "
            "kind"
        ) from error
    if text is None:
        raise RecordError(
            f"{path} has no record of ties: it was not written by eadem.save; read plain "
            "weights with safetensors and model.load_state_dict"
        )
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecordError(f"the record in {path} is damaged: {error}") from error
    arrays = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    theta = {k: v for k, v in tensors.items() if not k.startswith(PREFIX)}
    return checked(found, str(path)), arrays, theta


def _fits(
    model: nn.Module, declarations: Sequence[Declaration], tensors: Arrays, path: Path
) -> None:
    """Whether the file's θ is that of the model once tied. Raises RecordError."""
    here = bind.resolved(model)
    try:
        plan = resolve(here.shapes, declarations)
    except EademError as error:
        raise RecordError(f"the ties recorded in {path} cannot be: {error}") from error
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in here.shapes}
    wanted |= {name: owner.shape for name, owner in plan.owners.items()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    if given == wanted:
        return
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{k} is {given[k]}, not {wanted[k]}"
        for k in sorted(wanted.keys() & given.keys())
        if given[k] != wanted[k]
    ]
    parts = [
        f"{what}: " + ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        for what, names in (("missing", missing), ("not in the model", extra), ("", shapes))
        if names
    ]
    raise RecordError(
        f"{path} does not fit this {type(model).__name__}: " + "; ".join(parts).lstrip(": ")
    )
