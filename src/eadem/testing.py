"""The laws that every map obeys, as one harness: `check_map(map, shape)`.

Eadem's own maps are tested with it, and so can a user's be:

>>> from eadem.maps import Rotate
>>> check_map(Rotate(1), (2, 3))
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from eadem.maps.base import RANK_RTOL, LinearMap, Map, Shape, numel
from eadem.maps.spec import from_spec, importable, to_spec

__all__ = ["check_map"]

#: Laws that compare with the whole matrix run up to this many entries.
_MATRIX_LIMIT = 2**20

#: What torch warns of in its own code while a law runs: it says nothing about the map.
_TORCH_NOISE = ("There is a performance drop because", ".torch.jit.script. is deprecated")


class _Violation(Exception):
    """A law that does not hold, by how much."""


@dataclass(frozen=True)
class _Case:
    """A bound map under test, with a source of random tensors."""

    phi: Map
    given: Map
    dtype: torch.dtype
    random: torch.Generator

    @property
    def out_shape(self) -> Shape:
        return self.phi.out_shape

    @property
    def in_shape(self) -> Shape:
        return self.phi.in_shape

    def linear(self) -> LinearMap:
        return cast(LinearMap, self.phi)

    def fresh(self) -> Map:
        """The map bound anew, with nothing prepared."""
        return self.given.bind(self.out_shape, self.in_shape)

    def theta(self, *lead: int) -> Tensor:
        return self._draw((*lead, *self.in_shape))

    def values(self, *lead: int) -> Tensor:
        return self._draw((*lead, *self.out_shape))

    def _draw(self, shape: Shape) -> Tensor:
        drawn = torch.randn(shape, dtype=torch.float64, generator=self.random)
        return drawn.to(self.dtype)

    def tolerance(self, double: float, single: float) -> float:
        return double if self.dtype == torch.float64 else single

    def small(self) -> bool:
        return numel(self.in_shape) * numel(self.out_shape) <= _MATRIX_LIMIT


def check_map(
    phi: Map,
    shape: Sequence[int],
    *,
    in_shape: Sequence[int] | None = None,
    seed: int = 0,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
) -> None:
    """Check that `phi` obeys the laws of a map at a site of `shape`, at random θ.

    For a linear map: linearity; the adjoint by dot product (≤ 1e-12 relative in float64); the
    lift by the four Penrose identities, and lift(expand(θ)) = θ where the column rank is full;
    `rank`, `dense` and `gram` against the matrix; expand = forward + offset; `index` and `view`
    bitwise. For any other: `linearize` against torch's own derivatives and as a linear map of
    its own, and expand(lift(W)) = W for W in the range. For all: shapes and dtypes, gradcheck
    (and gradgradcheck where not linear), torch.vmap, first use in inference mode, under no_grad
    or within a transform and then training, and the same values after a copy, a pickle and a
    record. What cannot be pickled or recorded by nature (a class or function defined inside
    another function) is excused from that. Laws about the whole matrix need at most 2²⁰
    entries.

    Raises AssertionError naming the law, the map, the seed and the size of the violation;
    errors of `bind` come through as they are.
    """
    bound = phi.bind(shape, in_shape)
    for dtype in dtypes:
        random = torch.Generator().manual_seed(seed)
        case = _Case(bound, phi, dtype, random)
        if isinstance(bound, LinearMap):
            _check(case, (*_EVERY, *_LINEAR, *_MATRIX), seed)
            continue
        _check(case, (*_EVERY, *_CURVED), seed)
        tangent = bound.linearize(case.theta())
        _check(_Case(tangent, tangent, dtype, random), (_law_shapes, *_MATRIX), seed)


_Law = Callable[[_Case], None]


def _check(case: _Case, laws: Sequence[_Law], seed: int) -> None:
    for law in laws:
        name = law.__name__.removeprefix("_law_").replace("_", " ")
        try:
            with warnings.catch_warnings():
                for noise in _TORCH_NOISE:
                    warnings.filterwarnings("ignore", message=noise)
                law(case)
        except Exception as error:
            found = str(error) if isinstance(error, _Violation) else f"it raised {error!r}"
            raise AssertionError(
                f"{case.phi!r} breaks the law of {name}: {found} (site {case.out_shape}, "
                f"θ {case.in_shape}, {case.dtype}, seed {seed})"
            ) from error


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise _Violation(message)


def _close(what: str, got: Tensor, want: Tensor, allowed: float, scale: float = 0.0) -> None:
    """Equal to `allowed`, relative to the larger of the two norms, 1e-30 and `scale`."""
    _require(got.shape == want.shape, f"{what} has shape {tuple(got.shape)}")
    got, want = got.detach().to(torch.float64), want.detach().to(torch.float64)
    gap = torch.where(got == want, 0.0, got - want)  # equal infinities are no gap
    size = float(gap.norm())
    against = max(float(want.norm()), scale, 1e-30)
    if not size <= allowed * against:
        raise _Violation(
            f"{what} is off by {size:.3g}, {size / against:.3g} relative; allowed {allowed:.0e}"
        )


def _same(what: str, got: Tensor, want: Tensor) -> None:
    if got.shape != want.shape or got.dtype != want.dtype or not torch.equal(got, want):
        size = "in shape or dtype"
        if got.shape == want.shape:
            size = f"by {float((got - want).abs().max()):.3g}"
        raise _Violation(f"{what} must be the same to the bit, and differs {size}")


def _law_shapes(case: _Case) -> None:
    phi, theta, values = case.phi, case.theta(), case.values()
    made = {"expand": (phi.expand(theta), case.out_shape)}
    if isinstance(phi, LinearMap):
        made["forward"] = (phi.forward(theta), case.out_shape)
        made["adjoint"] = (phi.adjoint(values), case.in_shape)
        made["lift"] = (phi.lift(values), case.in_shape)
    else:
        made["lift"] = (phi.lift(phi.expand(theta)), case.in_shape)
    for name, (value, shape) in made.items():
        _require(
            tuple(value.shape) == shape and value.dtype == case.dtype,
            f"{name} gives {value.dtype} {tuple(value.shape)}, not {case.dtype} {shape}",
        )


def _law_gradients(case: _Case) -> None:
    if case.dtype != torch.float64 or not case.small():
        return
    theta = case.theta().requires_grad_()
    if not case.phi.expand(theta).requires_grad or theta.numel() == 0:
        return
    fast = numel(case.in_shape) * numel(case.out_shape) > 400
    torch.autograd.gradcheck(case.phi.expand, (theta,), fast_mode=fast)
    if not case.phi.linear:
        torch.autograd.gradgradcheck(case.phi.expand, (theta,), fast_mode=fast)


def _law_vmap(case: _Case) -> None:
    theta, rtol = case.theta(3), case.tolerance(1e-12, 1e-5)
    phi = case.fresh()
    _close(
        "vmap(expand)",
        torch.vmap(phi.expand)(theta),
        torch.stack([case.phi.expand(t) for t in theta]),
        rtol,
    )
    if isinstance(phi, LinearMap):
        values = case.values(3)
        one_by_one = torch.stack([phi.adjoint(v) for v in values])
        _close("vmap(adjoint)", torch.vmap(phi.adjoint)(values), one_by_one, rtol)


def _law_first_use(case: _Case) -> None:
    def in_transform(phi: Map) -> None:
        torch.func.vjp(phi.expand, case.theta())

    def in_inference_mode(phi: Map) -> None:
        with torch.inference_mode():
            _use(phi.bind(case.out_shape, case.in_shape), case)
            _use(phi, case)

    def without_grad(phi: Map) -> None:
        with torch.no_grad():
            _use(phi, case)

    for use in (in_transform, in_inference_mode, without_grad):
        phi = case.fresh()
        use(phi)
        theta = case.theta().requires_grad_()
        value = phi.expand(theta)
        name = use.__name__.replace("_", " ")
        _same(f"expand after first use {name}", value.detach(), case.phi.expand(theta.detach()))
        if value.requires_grad:
            torch.autograd.grad((value * value).sum(), theta)


def _use(phi: Map, case: _Case) -> None:
    value = phi.expand(case.theta())
    phi.lift(value)
    if isinstance(phi, LinearMap):
        phi.adjoint(case.values())


def _law_copies(case: _Case) -> None:
    theta = case.theta()
    want = case.phi.expand(theta)
    _same("expand of a deep copy", copy.deepcopy(case.phi).expand(theta), want)
    if _pickles(case.phi):
        again = pickle.loads(pickle.dumps(case.phi))
        _same("expand of a pickled map", again.expand(theta), want)


def _law_record(case: _Case) -> None:
    if not all(importable(f) for f in _functions(case.given)):
        return
    kept: list[Tensor] = []

    def keep(value: Any) -> Any:
        if isinstance(value, Tensor):
            kept.append(value)
            return {"tensor": len(kept) - 1}
        if isinstance(value, dict):
            return {name: keep(v) for name, v in value.items()}
        return [keep(v) for v in value] if isinstance(value, list) else value

    def give_back(value: Any) -> Any:
        if isinstance(value, dict):
            if "tensor" in value:
                return kept[value["tensor"]]
            return {name: give_back(v) for name, v in value.items()}
        return [give_back(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(keep(to_spec(case.given)), allow_nan=False)
    again = from_spec(give_back(json.loads(text))).bind(case.out_shape, case.in_shape)
    theta = case.theta()
    _same("expand of the recorded map", again.expand(theta), case.phi.expand(theta))


def _parts(phi: Map) -> Iterator[Map]:
    yield phi
    for value in phi.arguments().values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Map):
                yield from _parts(part)


def _functions(phi: Map) -> Iterator[Callable[..., Any]]:
    for part in _parts(phi):
        for value in part.arguments().values():
            if callable(value) and not isinstance(value, Map | Tensor):
                yield value


def _pickles(phi: Map) -> bool:
    """Whether pickle can find every class and function by its name."""

    def reachable(thing: Any) -> bool:
        found: Any = sys.modules.get(thing.__module__)
        for name in thing.__qualname__.split("."):
            found = getattr(found, name, None)
        return found is thing

    classes = all(reachable(type(part)) for part in _parts(phi))
    return classes and all(importable(f) for f in _functions(phi))


def _law_linearity(case: _Case) -> None:
    phi, a, b = case.linear(), case.theta(), case.theta()
    got, want = phi.forward(2 * a - 3 * b), 2 * phi.forward(a) - 3 * phi.forward(b)
    _close("forward(2θ − 3η)", got, want, case.tolerance(1e-12, 1e-5), float(want.abs().sum()))
    zero = phi.forward(torch.zeros_like(a))
    _require(not bool(zero.any()), "forward(0) is not 0; a constant belongs in `offset`")


def _law_offset(case: _Case) -> None:
    phi, theta = case.linear(), case.theta()
    want, offset = phi.forward(theta), phi.offset
    size = float(want.norm())
    if offset is not None:
        _require(offset.dtype == torch.float64, "offset must be float64")
        size += float(offset.norm())
        want = want + offset.to(want)
    allowed = case.tolerance(1e-12, 1e-5)
    _close("expand against forward + offset", phi.expand(theta), want, allowed, size)


def _law_index_and_view(case: _Case) -> None:
    phi, theta, values = case.linear(), case.theta(), case.values()
    index, view = phi.index(), phi.view()
    if index is not None:
        _require(len(index) == numel(case.out_shape), f"index has {len(index)} coordinates")
        _require(index.size == numel(case.in_shape), f"index is of {index.size} free values")
        flat = theta.reshape(-1)
        _same(
            "index().forward", index.forward(flat).reshape(case.out_shape), phi.forward(theta)
        )
        _same("index().expand", index.expand(flat).reshape(case.out_shape), phi.expand(theta))
        adjoint = index.adjoint(values.reshape(-1)).reshape(case.in_shape)
        _close("index().adjoint", adjoint, phi.adjoint(values), case.tolerance(1e-13, 1e-5))
    if view is not None:
        _same("view().linear", view.linear(theta), phi.forward(theta))
        _same("view().expand", view.expand(theta), phi.expand(theta))


def _law_adjoint(case: _Case) -> None:
    phi, theta, values = case.linear(), case.theta(), case.values()
    image, pulled = phi.forward(theta), phi.adjoint(values)
    left = (image.double() * values.double()).sum()
    right = (theta.double() * pulled.double()).sum()
    scale = float(image.norm() * values.norm() + theta.norm() * pulled.norm())
    _close("⟨φθ, g⟩ against ⟨θ, φᵀg⟩", left, right, case.tolerance(1e-12, 1e-5), scale)


def _law_lift(case: _Case) -> None:
    phi = case.linear()
    theta, values, offset = case.theta(), case.values(), phi.offset
    loose = case.tolerance(1e-9, 1e-4)

    def pinv(w: Tensor) -> Tensor:
        return phi.lift(w if offset is None else w + offset.to(w))

    image, lifted = phi.forward(theta), pinv(values)
    back = pinv(image)
    size = 0.0 if offset is None else float(offset.norm())
    _close("A A⁺ A θ", phi.forward(back), image, loose, size)
    _close("A⁺ A A⁺ w", pinv(phi.forward(lifted)), lifted, loose, size)
    other, eta = case.values(), case.theta()
    projected, moved = phi.forward(lifted), pinv(phi.forward(eta))
    scale = float(values.norm() * other.norm()) + size
    left, right = (projected * other).sum(), (values * phi.forward(pinv(other))).sum()
    _close("A A⁺ against its transpose", left, right, loose, scale)
    left, right = (back * eta).sum(), (theta * moved).sum()
    scale = float(theta.norm() * eta.norm()) + size
    _close("A⁺ A against its transpose", left, right, loose, scale)
    if phi.rank == numel(case.in_shape):
        _close("lift(expand(θ))", phi.lift(phi.expand(theta)), theta, loose, size)


def _law_rank_and_matrix(case: _Case) -> None:
    if case.dtype != torch.float64 or not case.small():
        return
    phi, columns, rows = case.linear(), numel(case.in_shape), numel(case.out_shape)
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    for column in range(columns):
        unit = torch.zeros(columns, dtype=torch.float64)
        unit[column] = 1.0
        matrix[:, column] = phi.forward(unit.reshape(case.in_shape)).reshape(-1)
    _close("dense()", phi.dense(), matrix, 1e-12)
    _close("gram()", phi.gram(), matrix.T @ matrix, 1e-12)
    largest = float(np.linalg.norm(matrix.numpy(), 2)) if matrix.numel() else 0.0
    rank = 0
    if largest > 0:
        rank = int(np.linalg.matrix_rank(matrix.numpy(), tol=RANK_RTOL * largest))
    _require(phi.rank == rank, f"rank is {phi.rank}, that of the matrix {rank}")


def _law_linearization(case: _Case) -> None:
    phi, theta = case.phi, case.theta()
    direction, values = case.theta(), case.values()
    tangent = phi.linearize(theta)
    _require(
        (tangent.in_shape, tangent.out_shape) == (case.in_shape, case.out_shape),
        f"linearize takes {tangent.in_shape} to {tangent.out_shape}",
    )
    rtol = case.tolerance(1e-12, 1e-4)
    pushed = torch.func.jvp(phi.expand, (theta,), (direction,))[1]
    _close("linearize(θ).forward, against jvp,", tangent.forward(direction), pushed, rtol)
    pulled = torch.func.vjp(phi.expand, theta)[1](values)[0]
    _close("linearize(θ).adjoint, against vjp,", tangent.adjoint(values), pulled, rtol)


def _law_inversion(case: _Case) -> None:
    value = case.phi.expand(case.theta())
    again = case.phi.expand(case.phi.lift(value))
    eps = math.sqrt(torch.finfo(case.dtype).eps)
    _close("expand(lift(W))", again, value, 10 * eps)


_EVERY = (_law_shapes, _law_gradients, _law_vmap, _law_first_use, _law_copies, _law_record)
_LINEAR = (_law_linearity, _law_index_and_view, _law_offset)
_MATRIX = (_law_adjoint, _law_lift, _law_rank_and_matrix)
_CURVED = (_law_linearization, _law_inversion)
