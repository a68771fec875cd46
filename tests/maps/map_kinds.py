"""Random maps of every linear kind, each with an oracle in numpy: θ to Aθ + b."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from eadem.maps import (
    Affine,
    Fixed,
    Flip,
    Gather,
    Local1d,
    Local2d,
    Map,
    Palindrome,
    Permute,
    Rotate,
    Same,
    Scale,
    Subspace,
    Toeplitz1d,
    Toeplitz2d,
    Transpose,
)

Array = np.ndarray[Any, Any]
few = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@dataclass(frozen=True)
class Case:
    """A map, a site's shape, the oracle, and whether it is exact to the bit."""

    phi: Map
    shape: tuple[int, ...]
    oracle: Callable[[Array], Array]
    exact: bool = True

    def bound(self) -> Any:
        return self.phi.bind(self.shape)

    def matrix(self) -> tuple[Array, Array]:
        """(A, b), from the oracle alone, one unit vector at a time."""
        in_shape = self.bound().in_shape
        size = int(np.prod(in_shape))
        b = self.oracle(np.zeros(in_shape))
        columns = [self.oracle(u.reshape(in_shape)) - b for u in np.eye(size)]
        flat = [c.reshape(-1) for c in columns]
        return np.stack(flat, 1) if flat else np.zeros((b.size, 0)), b.reshape(-1)


def random(draw: Callable[[Any], Any]) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def shapes(least: int, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    sides = st.integers(1, 4) | st.sampled_from([1, 2, 3, 0])
    return st.lists(sides, min_size=least, max_size=most).map(tuple)


def loops(phi: Any, shape: tuple[int, ...], shared: bool) -> Callable[[Array], Array]:
    """Windows by naive loops; `shared` uses θ[o, c, taps], otherwise θ in order of use."""
    positions = list(product(*(range(n) for n in phi.out_size)))
    pixels = list(product(*(range(n) for n in phi.in_size)))
    rows, columns = shape[0] // len(positions), shape[1] // len(pixels)

    def oracle(theta: Array) -> Array:
        out = np.zeros((rows, len(positions), columns, len(pixels)))
        used = 0
        for o, (p, place), c in product(range(rows), enumerate(positions), range(columns)):
            for s, pixel in enumerate(pixels):
                where = zip(pixel, place, phi.stride, phi.padding, strict=True)
                tap = tuple(x - (i * step - pad) for x, i, step, pad in where)
                if all(0 <= t < k for t, k in zip(tap, phi.kernel_size, strict=True)):
                    out[o, p, c, s] = theta[(o, c, *tap)] if shared else theta[used]
                    used += 1
        return out.reshape(shape)

    return oracle


@st.composite
def windows(draw: Any, shared: bool | None = None) -> Case:
    shared = draw(st.booleans()) if shared is None else shared
    axes = draw(st.sampled_from([1, 2]))
    size, kernel, stride, padding = [], [], [], []
    for _ in range(axes):
        k, p = draw(st.integers(1, 3)), draw(st.integers(0, 2))
        kernel.append(k)
        padding.append(p)
        size.append(draw(st.integers(max(1, k - 2 * p), 4)))
        stride.append(draw(st.integers(1, 3)))
    kinds = (Toeplitz1d, Toeplitz2d) if shared else (Local1d, Local2d)
    phi = kinds[axes - 1](tuple(size), tuple(kernel), tuple(stride), tuple(padding))
    rows = draw(st.integers(1, 2)) * int(np.prod(phi.out_size))
    columns = draw(st.integers(1, 2)) * int(np.prod(size))
    return Case(phi, (rows, columns), loops(phi, (rows, columns), shared))


@st.composite
def views(draw: Any) -> Case:
    shape = draw(shapes(2))
    n = len(shape)
    dims = draw(st.permutations(range(n)))
    a, b = dims[:2]
    k, flips = draw(st.integers(-5, 5)), tuple(dims[: draw(st.integers(1, n))])
    scale, shift = draw(st.floats(-3, -0.1)), draw(st.floats(-3, 3))
    kinds = [
        Case(Same(), shape, lambda t: t),
        Case(Transpose(a, b - n), shape, lambda t: np.swapaxes(t, a, b)),
        Case(Permute(tuple(dims)), shape, lambda t: np.transpose(t, dims)),
        Case(Flip(*flips), shape, lambda t: np.flip(t, flips)),
        Case(Rotate(k, (a, b)), shape, lambda t: np.rot90(t, k, (a, b))),
        Case(Scale(scale), shape, lambda t: scale * t),
        Case(Affine(scale, shift), shape, lambda t: scale * t + shift),
    ]
    return draw(st.sampled_from(kinds))


@st.composite
def gathers(draw: Any) -> Case:
    shape, rng = draw(shapes(0)), random(draw)
    size = draw(st.integers(1, 6))
    index = rng.integers(-1, size, shape)

    def oracle(theta: Array) -> Array:
        return np.where(index < 0, 0.0, theta.reshape(-1)[np.maximum(index, 0)])

    theta_shape = draw(st.sampled_from([(size,), (1, size), (size, 2)]))
    return Case(Gather(torch.as_tensor(index), theta_shape), shape, oracle)


@st.composite
def constants(draw: Any) -> Case:
    shape, rng = draw(shapes(0)), random(draw)
    value = rng.standard_normal(shape)
    if draw(st.booleans()):
        return Case(Fixed(1.5), shape, lambda t: np.full(shape, 1.5))
    return Case(Fixed(torch.as_tensor(value)), shape, lambda t: value)


@st.composite
def palindromes(draw: Any) -> Case:
    shape = draw(shapes(1))
    dim, odd = draw(st.integers(-len(shape), len(shape) - 1)), draw(st.booleans())

    def oracle(theta: Array) -> Array:
        middle = list(theta.shape)
        middle[dim] = shape[dim] % 2 if odd else 0
        keep = np.arange(theta.shape[dim]) < shape[dim] // 2
        mirrored = np.flip(np.compress(keep, theta, dim), dim)
        sign = -1.0 if odd else 1.0
        return np.concatenate([theta, np.zeros(middle), sign * mirrored], dim)

    return Case(Palindrome(dim, odd), shape, oracle)


@st.composite
def subspaces(draw: Any) -> Case:
    shape, rng = draw(shapes(0, 3)), random(draw)
    k, rank = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    size = int(np.prod(shape))
    basis = rng.standard_normal((size, rank)) @ rng.standard_normal((rank, k))
    flat = draw(st.booleans())
    stored = torch.as_tensor(basis if flat else basis.reshape(*shape, k))
    return Case(Subspace(stored), shape, lambda t: (basis @ t).reshape(shape), exact=False)


def linear_maps() -> st.SearchStrategy[Case]:
    return st.one_of(
        views(), views(), gathers(), constants(), palindromes(), windows(), subspaces()
    )


@st.composite
def chains(draw: Any) -> Case:
    """Two or three maps composed, the inner ones drawn to fit."""
    outer = draw(linear_maps())
    shape = outer.bound().in_shape
    phi, oracles, exact = outer.phi, [outer.oracle], outer.exact
    for _ in range(draw(st.integers(1, 2))):
        kinds = [Case(Affine(2.0, 1.0), shape, lambda t: 2.0 * t + 1.0)]
        if shape:
            kinds.append(Case(Flip(-1), shape, lambda t: np.flip(t, -1)))
            kinds.append(Case(Transpose(0, -1), shape, lambda t: np.swapaxes(t, 0, -1)))
        inner = draw(st.sampled_from(kinds))
        phi, shape = phi @ inner.phi, inner.bound().in_shape
        oracles.append(inner.oracle)

    def oracle(theta: Array) -> Array:
        for one in reversed(oracles):
            theta = one(theta)
        return theta

    return Case(phi, outer.shape, oracle, exact)
