"""Records: what a model's ties are, as plain data, and a model tied by one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import eadem.groups  # noqa: F401  (a record may name its maps)
from eadem import bind
from eadem._plan import Declaration, Entry, Plan, Site, resolve
from eadem.errors import EademError, RecordError
from eadem.maps.algebra import Blocks, LinearBlocks, LinearStack, Stack
from eadem.maps.base import Composed, LinearComposed, Map, Shape, numel
from eadem.maps.constant import on_cpu
from eadem.maps.spec import from_spec, to_spec
from eadem.maps.view import View, Viewed
from eadem.store.schema import FORMAT, INLINE_BYTES, VERSION, checked

__all__ = [
    "PREFIX",
    "apply",
    "declarations",
    "declare",
    "materialize",
    "record",
    "record_and_arrays",
]

#: What the keys of a record's arrays begin with, where they are stored beside θ.
PREFIX = bind.ARRAYS
#: A map of a record may take more free values than its model has, but not without limit.
SPARE_VALUES = 1 << 20

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
    found = checked(record)
    declare(model, found, declarations(model, found, {} if arrays is None else arrays))
    return bind.ties(model)


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


# a record from a model


def _encode(model: nn.Module) -> tuple[Record, dict[str, Tensor]]:
    declarations = bind.declarations(model)
    shapes = bind.resolved(model).shapes if declarations else {}
    tied = {name for d in declarations for name in d.names}
    arrays: dict[str, Tensor] = {}
    ties = [_encode_tie(d, arrays) for d in declarations]
    found = {
        "format": FORMAT,
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


# a model from a record


def declarations(model: nn.Module, found: Record, arrays: Arrays) -> list[Declaration]:
    """What a checked record declares, with `arrays` by hash, for this model's sites.

    Raises RecordError where it is of another model, or says what cannot be.
    """
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
    most = SPARE_VALUES + 4 * sum(numel(shape) for shape in shapes.values())
    try:
        return [_decode_tie(runs, shapes, arrays, most) for runs in found["ties"]]
    except RecordError:
        raise
    except Exception as error:
        # maps, a user's own too, are built from what a file says: anything may come out
        raise RecordError(
            f"the record is damaged: {str(error) or type(error).__name__}"
        ) from error


def _decode_tie(
    runs: Any, shapes: Mapping[str, Shape], arrays: Arrays, most: int
) -> Declaration:
    entries: list[Entry] = []
    for run in runs:
        phi: Map = from_spec(_decode_value(run["map"], arrays))
        sites = [Site.at(site, shapes) for site in run["sites"]]
        for part in dict.fromkeys(site.shape(shapes[site.name]) for site in sites):
            _bounded(phi, part, most)
        entries += [Entry(site, phi) for site in sites]
    sites = [e.site for e in entries]
    if len(set(sites)) < len(sites):
        twice = next(site for site in sites if sites.count(site) > 1)
        raise RecordError(f"the record is damaged: it lists {twice} twice in one tie")
    return Declaration(tuple(entries))


def _bounded(phi: Map, out_shape: Shape, most: int) -> None:
    """Refuse a map that would take more than `most` free values, before it is bound."""
    theta = phi.infer(out_shape)
    if numel(theta) > most:
        raise RecordError(
            f"the record holds {phi!r:.80}, which takes {numel(theta)} free values to a site "
            f"of shape {out_shape}; that is more than its model could need"
        )
    if isinstance(phi, Composed | LinearComposed):
        _bounded(phi.outer, out_shape, most)
        _bounded(phi.inner, phi.outer.infer(out_shape), most)
    elif isinstance(phi, Blocks | Stack | LinearBlocks | LinearStack):
        for part in phi.parts:
            _bounded(part, part.out_shape, most)


def _decode_value(value: Any, arrays: Arrays) -> Any:
    if isinstance(value, Mapping):
        if "array" in value:
            return _decode_array(value["array"], arrays)
        return {k: _decode_value(v, arrays) for k, v in value.items()}
    if isinstance(value, list):
        return [_decode_value(v, arrays) for v in value]
    return value


def _decode_array(about: Mapping[str, Any], arrays: Arrays) -> Tensor:
    dtype = getattr(torch, about["dtype"])
    if "sha256" not in about:
        numbers = [float(n) if isinstance(n, str) else n for n in about["values"]]
        return torch.tensor(numbers, dtype=dtype).reshape(about["shape"])
    digest = about["sha256"]
    if digest not in arrays:
        raise RecordError(
            f"the record names an array of shape {tuple(about['shape'])} by its hash "
            f"{digest[:12]}…, which is not given; eadem.load(model, path) finds it in the "
            "file, apply(model, record, arrays) takes it from you"
        )
    value = arrays[digest].detach().cpu()
    same = value.dtype == dtype and list(value.shape) == about["shape"]
    if not same or _digest(value) != digest:
        raise RecordError(f"the array {digest[:12]}… is not the one that was recorded")
    return value


def declare(
    model: nn.Module,
    found: Record,
    declared: Sequence[Declaration],
    start: bind.Start = "first",
) -> None:
    """Tie the model as the record `found` declares, unless it has that plan already.

    Raises RecordError; the model is then unchanged.
    """
    present = bind.declarations(model)
    if present:
        if _encode(model)[0]["ties"] == found["ties"] and bind.ties(model):
            return
        here = bind.resolved(model)
        there = resolve(here.shapes, declared)
        if bind.ties(model):
            if _same(here, there):
                return
            raise RecordError(_difference(found["ties"], _encode(model)[0]["ties"]))
        # parameters shared by torch's own aliasing: the record must know of them
        if not _same(resolve(here.shapes, [*declared, *present]), there):
            raise RecordError(_difference(found["ties"], _encode(model)[0]["ties"]))
    if not declared:
        return
    try:
        with bind.undone_on_error(model):
            bind.declare(model, declared, start=start)
    except EademError as error:
        raise RecordError(f"the recorded ties do not fit this model: {error}") from error


def _same(here: Plan, there: Plan) -> bool:
    """Whether two plans of the same sites are one, perhaps in other words.

    Tied sites are compared one by one: a whole model, expanded, would be many times its size.
    """
    shapes = {n: o.shape for n, o in here.owners.items()}
    if shapes != {n: o.shape for n, o in there.owners.items()}:
        return False
    for name in here.shapes:
        one, other = _viewed(here, name), _viewed(there, name)
        if one is not None and one == other:
            continue
        if not torch.allclose(_site(here, name), _site(there, name), rtol=1e-9, atol=1e-12):
            return False
    return True


def _viewed(plan: Plan, name: str) -> tuple[str, View] | None:
    """Which owner's values a site has, and how they lie, where that says all of it."""
    e = plan.expressions.get(name)
    used, view = (name,), View.identity(len(plan.shapes[name]))
    if e is not None:
        if not isinstance(e.outer, Viewed) or len(e.owners) != 1:
            return None
        used, view = e.owners, e.outer.view()
    owner = plan.owners[used[0]]
    return (used[0], view) if owner.whole and owner.source is None else None


def _site(plan: Plan, name: str) -> Tensor:
    """A site's values, flat, at free values that depend on their owner's place alone."""
    e = plan.expressions.get(name)
    parts = [torch.zeros(0, dtype=torch.float64)]
    for owner in (name,) if e is None else e.owners:
        seed = list(plan.shapes).index(owner)
        generator = torch.Generator().manual_seed(seed)
        about = plan.owners[owner]
        theta = torch.rand(about.shape, generator=generator, dtype=torch.float64).add_(0.5)
        parts.append(about.values(theta).reshape(-1))
    flat = torch.cat(parts[1:] or parts)
    return flat if e is None else e.outer.expand(flat.reshape(e.outer.in_shape)).reshape(-1)


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
