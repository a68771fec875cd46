"""Writing at a computed site: it reaches the free values, or is refused; it is never lost.

Outside a forward, a computed site is handed out as a `SiteValue`. An operation that writes
into it in place (`init.normal_`, `copy_`, `zero_`, also through `.data` or a slice) is
carried on to θ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import init

from eadem._plan import first
from eadem.bind.split import full, put
from eadem.errors import TieBroken
from eadem.maps.base import LinearMap, Map

if TYPE_CHECKING:
    from eadem._plan import Owner
    from eadem.bind.group import Link

__all__ = ["SiteValue", "agree", "assign", "is_watched", "tolerance"]

#: In-place operations that draw every value anew; what they draw need not satisfy the tie.
_DRAWS = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
}


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference up to which two values of `dtype` count as equal."""
    return 16 * torch.finfo(dtype).eps


def agree(given: Tensor, held: Tensor) -> tuple[bool, float]:
    """Whether two tensors agree to rounding, and their largest difference."""
    if given.numel() == 0:
        return True, 0.0
    wide = torch.promote_types(given.dtype, held.dtype)
    one, other = given.to(held.device, wide), held.to(wide)
    same = (one == other) | (one.isnan() & other.isnan())  # infinities, and what diverged
    away = torch.where(same, 0.0, (one - other).abs())
    largest = float(away.max())
    if not math.isfinite(largest):
        return False, largest
    sizes = [x.abs() for x in (one, other)]
    size = max(*[float(x[x.isfinite()].max()) for x in sizes if x.isfinite().any()], 1e-30, 0.0)
    narrow = min((given.dtype, held.dtype), key=lambda d: torch.finfo(d).bits)
    return largest <= tolerance(narrow) * size, largest


class SiteValue(Tensor):
    """A computed site's value that passes in-place writes on to θ."""

    _link: Link
    _whole: Tensor

    @staticmethod
    def of(value: Tensor, link: Link) -> Tensor:
        """`value`, watched for writes."""
        watched = value.as_subclass(SiteValue)
        watched._link, watched._whole = link, value
        return watched

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # torch's initialisers draw in several steps, and redraw what they do not like
        caller = sys._getframe(1).f_globals.get("__name__")
        initialises = init.__name__ in (caller, getattr(func, "__module__", None))
        with torch._C.DisableTorchFunctionSubclass():
            watched = [a for a in _tensors((*args, *kwargs.values())) if is_watched(a)]
            before = [None if a.is_inference() else a._version for a in watched]
            name = getattr(func, "__name__", "")
            if _writes(name, kwargs):
                for value in watched:
                    _renew(value)
            result = func(*args, **kwargs)
            for value, version in zip(watched, before, strict=True):
                if name == "__set__" or (version is not None and value._version != version):
                    whole = value if name == "__set__" else value._whole
                    _write(value._link, whole, name in _DRAWS or initialises)
            if watched and type(result) is Tensor:
                return _alias(result, watched)
            if watched and type(result) in (tuple, list):  # chunk, split, unbind
                parts = [_alias(r, watched) if type(r) is Tensor else r for r in result]
                return type(result)(parts)
        return result

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.detach().as_subclass(Tensor)
            if _is_own(self):
                plain = nn.Parameter(plain, self.requires_grad)
            return plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.as_subclass(Tensor).detach().clone()
            copied = nn.Parameter(plain, self.requires_grad) if _is_own(self) else plain
            memo[id(self)] = copied
            return copied


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether an operation of this name writes in place."""
    plain = name.endswith("_") and not name.endswith("__")
    return plain or name == "__setitem__" or name.startswith("__i") or "out" in kwargs


@torch.no_grad()
def _renew(value: SiteValue) -> None:
    """What was read before θ moved is brought in line before it is written to: what differs
    afterwards is then what was written.
    """
    whole = value._whole
    if whole.is_meta or (whole.is_inference() and not torch.is_inference_mode_enabled()):
        return
    now = value._link.compute().detach()
    if now.shape == whole.shape and not torch.equal(now, whole.detach()):
        whole.copy_(now)


def _is_own(value: Tensor) -> bool:
    """Whether `nn.Parameter(site_value.detach())` made it: a parameter in its own right."""
    return bool(getattr(value, "_is_param", False))


def is_watched(value: Any) -> bool:
    """Whether a tensor is a site's value that carries writes on to θ."""
    return type(value) is SiteValue and not _is_own(value)


def _tensors(values: Iterable[Any]) -> Iterator[Any]:
    """Arguments of an operation, those in lists (`torch._foreach_*`, `out=`) one by one."""
    for value in values:
        if type(value) in (tuple, list):
            yield from value
        else:
            yield value


def _alias(result: Tensor, watched: Sequence[SiteValue]) -> Tensor:
    """`result`, watched too where it shares the memory of a watched value."""
    for value in watched:
        if _shares(result, value):
            alias = result.as_subclass(SiteValue)
            alias._link, alias._whole = value._link, value._whole
            return alias
    return result


def _shares(a: Tensor, b: Tensor) -> bool:
    try:
        return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return False


@torch.no_grad()
def _write(link: Link, value: Tensor, drawn: bool) -> None:
    """An in-place write: the coordinates that it changed set their free values.

    Each free value takes the first of its changed coordinates. Unless the values were `drawn`
    at random, all changed coordinates must then be what the tie gives. The value itself is
    brought in line, so that a chain of writes (as in `init.trunc_normal_`) goes on from it.
    """
    plain = value.detach().as_subclass(Tensor)
    if plain.is_meta:
        return  # neither has values
    before = link.compute().detach()
    roots = [o.values(full(p.detach())).reshape(-1) for (_, o), p in _owners(link)]
    flat = torch.cat(roots) if roots else before.new_zeros(0)
    outer = link.expression.outer
    changed = (plain != before).reshape(-1)
    thetas = {}
    if any(k == link.key and o.own is not None for k, o in link.owners()):
        # a site that departs from its tie takes the change into its remainder
        known = first(link.group.resolved, {link.key: plain.to(before)}, _held(link)).thetas
        pieces: Sequence[Tensor] = [known[key] for (key, _), _ in _owners(link)]
    else:
        new = _moved(outer, flat, plain.to(before), changed)
        pieces = torch.split(new, [r.numel() for r in roots]) if roots else ()
        pieces = [
            t if o.source is None else o.source.lift(t.reshape(o.roots))
            for ((_, o), _), t in zip(_owners(link), pieces, strict=True)
        ]
    for ((key, _), p), theta in zip(_owners(link), pieces, strict=True):
        thetas[key] = theta.reshape(p.shape).to(p.device, p.dtype)
    back = [o.values(thetas[k]).reshape(-1) for k, o in link.owners()]
    joined = torch.cat(back) if back else flat
    after = outer.expand(joined.reshape(outer.in_shape))
    if not drawn or not roots:
        ok, away = agree(plain.reshape(-1)[changed], after.reshape(-1)[changed])
        if not ok:
            _restore(plain, before)
            raise link.group.refuse(
                TieBroken(
                    f"the values written at {link.key!r} do not satisfy its tie (largest "
                    f"difference {away:.3g}); write values that do, or untie the site first"
                )
            )
    for (key, _), p in _owners(link):
        put(p, thetas[key])
    _restore(plain, after)


def _owners(link: Link) -> list[tuple[tuple[str, Owner], Tensor]]:
    return list(zip(link.owners(), link.parameters(), strict=True))


def _restore(value: Tensor, wanted: Tensor) -> None:
    if not value.is_inference() or torch.is_inference_mode_enabled():
        value.copy_(wanted)


def _moved(outer: Map, roots: Tensor, value: Tensor, changed: Tensor) -> Tensor:
    """The flat roots, with those that changed coordinates use taken from the first of them."""
    if isinstance(outer, LinearMap) and outer.view() is not None:
        return outer.lift(value).reshape(-1)
    index = outer.index() if isinstance(outer, LinearMap) else None
    if index is None:
        return outer.lift(value).reshape(-1)
    coordinates = (changed.cpu() & (index.position >= 0)).nonzero().reshape(-1).flip(0)
    place = torch.full((index.size,), -1, dtype=torch.int64)
    # the later of two writes to one place wins: in descending order, the first coordinate
    place.numpy()[index.position[coordinates].numpy()] = coordinates.numpy()
    hit = (place >= 0).nonzero().reshape(-1)
    chosen = place[hit]
    taken = value.reshape(-1)[chosen.to(value.device)]
    taken = (taken - index.shifts()[chosen].to(taken)) / index.scales()[chosen].to(taken)
    return roots.index_copy(0, hit.to(roots.device), taken)


def refuse_swap(link: Link) -> None:
    """Raise TieBroken: functional_call was given a value for a site that holds no parameter.
    To set it would write the model's own free values, for good.
    """
    raise link.group.refuse(
        TieBroken(
            f"functional_call was given a value for {link.key!r}, which is tied (its values "
            f"come from {', '.join(link.expression.owners) or 'a constant'}); give it the free "
            "values by their own names, or use eadem.twin(model), which takes a value for "
            "every site"
        )
    )


@torch.no_grad()
def assign(link: Link, value: Any, source: str | None = None) -> None:
    """`module.attr = value` at a derived site: θ takes the value, or it raises."""
    name = source or link.key
    if not isinstance(value, Tensor):
        raise link.group.refuse(
            TieBroken(
                f"{name!r} is tied and was assigned {type(value).__name__}; untie it first"
            )
        )
    if not isinstance(value, nn.Parameter) and (
        value.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(value)
    ):
        raise link.group.refuse(
            TieBroken(
                f"{name!r} is tied (its values come from "
                f"{', '.join(link.expression.owners) or 'a constant'}); a value that is to be "
                "differentiated cannot stand in for it. Give functional_call the free values "
                "by their own names, or use eadem.twin(model)"
            )
        )
    outer = link.expression.outer
    if link.same:
        module, attr, _ = link.sources[0]
        held = module._parameters[attr]
        if value is held:
            return
        if source is None and isinstance(value, nn.Parameter) and value.shape == link.shape:
            setattr(module, attr, value)
            return
    if tuple(value.shape) != link.shape:
        owners = ", ".join(link.expression.owners) or "a constant"
        raise link.group.refuse(
            TieBroken(
                f"{name!r} is tied (its values come from {owners}) and has shape {link.shape}; "
                f"it was given shape {tuple(value.shape)}. Assign a tensor of its shape, "
                "resize the owner, or untie it first"
            )
        )
    value = full(value.detach())
    empty = [k for k, p in link.group.owner_parameters() if p.is_meta]
    if empty and not value.is_meta:
        raise link.group.refuse(
            TieBroken(
                f"{name!r} was given values, and its free values ({', '.join(empty[:4])}) are "
                "on meta and cannot take them; load the whole model, or call "
                "model.to_empty(device=...) first"
            )
        )
    known = first(link.group.resolved, {link.key: value}, _held(link))
    thetas = {k: known.thetas[k].to(p.device, p.dtype) for (k, _), p in _owners(link)}
    roots = [o.values(thetas[k]).reshape(-1) for k, o in link.owners()]
    joined = torch.cat(roots) if roots else value.new_zeros(0)
    ok, away = agree(value, outer.expand(joined.reshape(outer.in_shape)))
    if not ok:
        raise link.group.refuse(
            TieBroken(
                f"the values given to {name!r} do not satisfy its tie (largest difference "
                f"{away:.3g}); give values that do, or untie the site first"
            )
        )
    for (key, _), p in _owners(link):
        put(p, thetas[key])


def _held(link: Link) -> dict[str, Tensor]:
    return {k: full(p.detach()) for k, p in link.group.owner_parameters()}
