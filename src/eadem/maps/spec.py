"""A map as plain data, and back: what a record keeps of it.

`to_spec` gives `{"kind": …, "args": {…}}`, ready for JSON but for its tensors, which stay
tensors (a record decides how to keep those). Eadem's own kinds go by their name, a user's by
"module:Name". Reading imports nothing: a kind or a function is looked for among what the
program has imported already, so a file cannot make it run code of the file's choosing.

>>> from eadem.maps import Scale, Transpose
>>> spec = to_spec(Transpose() @ Scale(2.0))
>>> spec["args"]["inner"]
{'kind': 'Scale', 'args': {'c': 2.0}}
>>> from_spec(spec)
LinearComposed(outer=Transpose(dim0=-2, dim1=-1), inner=Scale(c=2.0))
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor

from eadem.errors import RecordError, nearest
from eadem.maps import (
    algebra,
    base,
    dense,
    factored,
    index,
    nonlinear,
    remainder,
    simplex,
    structured,
    view,
)
from eadem.maps.base import Map

__all__ = ["from_spec", "importable", "to_spec"]

_ROOMS = (
    algebra,
    base,
    dense,
    factored,
    index,
    nonlinear,
    remainder,
    simplex,
    structured,
    view,
)
_OWN = tuple(room.__name__ for room in _ROOMS)
#: The room whose maps are Eadem's own too, though it lies above this one.
_GROUPS = "eadem.groups."

#: What a record may name of torch: functions of a tensor alone, value by value. Others read
#: files, set the state of the process, or take memory that a file should not decide on.
_OF_TORCH = set(
    """
    abs acos acosh arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh celu cos
    cosh deg2rad digamma elu erf erfc erfinv exp exp2 expm1 gelu hardshrink hardsigmoid
    hardswish hardtanh leaky_relu lgamma log log10 log1p log2 logit logsigmoid mish neg negative
    positive rad2deg reciprocal relu relu6 rsqrt selu sigmoid sign silu sin sinc sinh softplus
    softshrink softsign sqrt square tan tanh tanhshrink
    """.split()  # noqa: SIM905  (a list of 60 strings reads worse)
)


def to_spec(phi: Map) -> dict[str, Any]:
    """The map as {"kind", "args"}: JSON-ready, except that tensors stay tensors.

    Raises RecordError for an argument that is no bool, number, string, tuple, None, tensor,
    map, or function defined at the top of a module.
    """
    args = {name: _encode(value, phi, name) for name, value in phi.arguments().items()}
    return {"kind": _kind(type(phi)), "args": args}


def from_spec(spec: Mapping[str, Any]) -> Map:
    """The map of which `to_spec` gave `spec`, not bound to a shape.

    Raises RecordError where the spec is malformed or its kind is not known; the message says
    which module to import first.
    """
    found = spec if isinstance(spec, Mapping) else {}
    kind, args = found.get("kind"), found.get("args")
    if not isinstance(kind, str) or not isinstance(args, Mapping):
        raise RecordError(f"a map is recorded as {{'kind', 'args'}}, not {spec!r:.200}")
    cls = _class(kind)
    try:
        return cls.from_arguments({str(name): _decode(value) for name, value in args.items()})
    except RecordError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise RecordError(f"a recorded {kind} has unfit arguments: {error}") from error


def importable(f: Callable[..., Any]) -> str | None:
    """The name "module:name" under which f is found, or None.

    >>> import torch
    >>> importable(torch.exp)
    'torch:exp'
    """
    name = getattr(f, "__name__", "")
    for module in ("torch", "torch.nn.functional", getattr(f, "__module__", None)):
        if module and name and _reach(module, name) is f and not _standard(module):
            ours = module.partition(".")[0] != "torch"
            return f"{module}:{name}" if ours or name in _OF_TORCH else None
    return None


def _kind(cls: type[Map]) -> str:
    name = cls.__qualname__
    own = cls.__module__ in _OWN or cls.__module__.startswith(_GROUPS)
    return name if own else f"{cls.__module__}:{name}"


def _encode(value: Any, phi: Map, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if type(value) is tuple:
        return [_encode(v, phi, name) for v in value]
    if isinstance(value, Map):
        spec = to_spec(value)
        if isinstance(phi, algebra._Several):  # its parts' shapes are part of what it says
            spec["shapes"] = [list(value.in_shape), list(value.out_shape)]
        return spec
    found = importable(value) if callable(value) else None
    if found is None:
        cure = (
            "define it, or a function that calls it, at the top of a module"
            if isinstance(value, FunctionType | BuiltinFunctionType)
            else "use numbers, strings, tuples, tensors or maps"
        )
        raise RecordError(
            f"{phi!r} cannot be recorded: its {name} is {value!r:.100}, a "
            f"{type(value).__name__}; {cure}"
        )
    return {"function": found}


def _decode(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_decode(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "kind" in value:
        phi = from_spec(value)
        if "shapes" not in value:
            return phi
        in_shape, out_shape = value["shapes"]
        return phi.bind(out_shape, in_shape)
    if "float" in value:
        return float(value["float"])
    if "function" in value:
        return _function(str(value["function"]))
    raise RecordError(f"no version records a map's argument as {value!r:.200}")


def _descendants(cls: type[Map]) -> Iterator[type[Map]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _class(kind: str) -> type[Map]:
    # the last one wins: a notebook cell that ran twice has defined its class twice
    known = {
        _kind(cls): cls
        for cls in _descendants(Map)  # type: ignore[type-abstract]
    }
    if kind in known:
        cls = known[kind]
        members = (getattr(cls, name, None) for name in dir(cls))
        if any(getattr(m, "__isabstractmethod__", False) for m in members):
            raise RecordError(f"a recorded map is a {kind}, which is a base class, not a map")
        return cls
    module = kind.partition(":")[0]
    if ":" in kind and module not in sys.modules:
        raise RecordError(f"a recorded map is a {kind}; import {module} first, then load again")
    raise RecordError(
        f"a recorded map is a {kind}, which is not defined here ({nearest(kind, known)}); "
        + (f"look for it in {module}" if ":" in kind else "a newer Eadem may know it")
    )


def _reach(module: str, name: str) -> Any:
    # not getattr: a module's own __getattr__ may import more
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _standard(module: str) -> bool:
    # Python's own library is full of functions that do more than map a tensor
    return module.partition(".")[0] in sys.stdlib_module_names


def _function(name: str) -> Callable[..., Any]:
    module, _, short = name.partition(":")
    if _standard(module):
        raise RecordError(f"a record may not name {name}, a function of Python's own library")
    if module not in sys.modules:
        raise RecordError(f"a recorded map uses {name}; import {module} first, then load again")
    found: Callable[..., Any] = _reach(module, short)
    if isinstance(found, FunctionType | BuiltinFunctionType):
        if importable(found) == name:
            return found
        if module.partition(".")[0] == "torch":
            raise RecordError(
                f"a record may name functions of torch that act value by value, not {name}; "
                "call it in a function of your own, at the top of a module"
            )
    raise RecordError(f"a recorded map uses {name}, but {module} defines no such function")
