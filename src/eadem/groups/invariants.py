"""Equivariant bases where entries are not merely permuted: averages, and null spaces.

A finite group: as many random tensors as the characters say there are dimensions, averaged
over the group (Reynolds), made orthonormal, and brought to the basis that depends on the
subspace alone. A Lie algebra, or matrices that are not orthogonal: the tensors that commute
with one random combination of the generators are outer products of eigenvectors of equal
eigenvalue, and the others are sought among those. No Kronecker product is formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eadem.errors import GroupError, NoEquivariantMap, TooLarge
from eadem.groups.group import Matrix, Word
from eadem.groups.representation import Representation
from eadem.groups.signed import Signed
from eadem.maps.algebra import orthonormal

__all__ = [
    "average",
    "away_from_orthonormal",
    "commuting",
    "dimension",
    "invariant_basis",
    "random_words",
    "trusted",
    "verify",
]

Tensors = NDArray[np.float64]

#: Entries of a basis that is kept as a matrix: 32 MB of float64.
BASIS = 2**22
#: Entries of the candidates that a null space is sought among.
CANDIDATES = 2**24
#: How far a basis may be from equivariant, relative to its largest entry.
TOLERANCE = 1e-9


def dimension(out_rep: Representation, in_rep: Representation, grid: Representation) -> int:
    """How many equivariant tensors (out, in, pixels) there are: the mean of the product of
    the characters, which is an integer. Raises GroupError where it is not.
    """
    parts = (out_rep, in_rep, grid)
    group = out_rep.group
    if len(group.generators) == 1:
        mean = float(reduce(np.multiply, (r.characters() for r in parts)).mean())
    else:
        traces = reduce(np.multiply, (r.class_characters() for r in parts))
        mean = float(traces @ group.classes[1]) / group.order
    if abs(mean - round(mean)) > 1e-6 * max(1.0, mean):
        raise GroupError(
            f"the characters of {out_rep} and {in_rep} average to {mean:.6g}, which is no "
            "integer: the matrices are no representation of their group"
        )
    return round(mean)


def nothing(out_rep: Representation, in_rep: Representation) -> NoEquivariantMap:
    """The error where only zero is equivariant."""
    return NoEquivariantMap(
        f"from {in_rep!r} to {out_rep!r} the only equivariant map is zero: they share no "
        "irreducible part here. Choose representations that do (the regular one contains all), "
        "or leave this site untied and without the group"
    )


def act(word: Word, parts: Sequence[Representation], values: Tensors) -> Tensors:
    """g·W for tensors (…, out, in, pixels)."""
    if not word:
        return values
    out_rep, in_rep, grid = parts
    moved = _apply(out_rep.image(word), values, -3)
    moved = _apply(in_rep.image(word), moved, -2)
    return moved if grid.size == 1 and grid.exact else _apply(grid.image(word), moved, -1)


def _apply(image: Signed | Matrix, values: Tensors, axis: int) -> Tensors:
    if isinstance(image, Signed):
        return np.moveaxis(image.apply(np.moveaxis(values, axis, 0)), 0, axis)
    shape = values.shape
    if axis == -3:
        flat = values.reshape(*shape[:-2], -1)
        return np.asarray((image @ flat).reshape(shape))
    if axis == -2 and shape[-1] == 1:
        return np.asarray((values[..., 0] @ image.T)[..., None])
    return np.asarray(image @ values if axis == -2 else values @ image.T)


def average(parts: Sequence[Representation], values: Tensors) -> Tensors:
    """The mean of g·W over the group, one short average after another (Reynolds)."""
    for level in reversed(parts[0].group.chain):
        total = sum(act(word, parts, values) for word in level)
        values = np.asarray(total) / len(level)
    return values


def invariant_basis(parts: Sequence[Representation]) -> torch.Tensor:
    """The canonical orthonormal basis of the equivariant tensors (out·in·pixels, dimension).

    Raises NoEquivariantMap where there are none, TooLarge.
    """
    out_rep, in_rep, _ = parts
    if out_rep.group.algebra or not (out_rep.orthogonal and in_rep.orthogonal):
        basis = commuting(parts)
    else:
        size = dimension(*parts)
        if size == 0:
            raise nothing(out_rep, in_rep)
        _fits(parts, size)
        shape = tuple(p.size for p in parts)
        drawn = np.random.default_rng(0).standard_normal((size, *shape))
        projected = torch.from_numpy(average(parts, drawn).reshape(size, -1).T.copy())
        basis = orthonormal(torch.linalg.qr(projected)[0])
        if basis.shape[1] != size:
            raise GroupError(
                f"averages span {basis.shape[1]} dimensions where the characters say {size}"
            )
    if basis.shape[1] == 0:
        raise nothing(out_rep, in_rep)
    verify(parts, basis)
    return basis


def _fits(parts: Sequence[Representation], columns: int) -> None:
    rows = parts[0].size * parts[1].size * parts[2].size
    if rows * columns > BASIS:
        raise TooLarge(
            f"the equivariant basis from {parts[1]!r} to {parts[0]!r} has {rows} × {columns} "
            f"entries; Eadem keeps at most {BASIS}. Build the representations as copies or "
            "sums of smaller ones, whose bases are found one by one"
        )


def random_words(parts: Sequence[Representation], count: int = 4) -> list[Word]:
    """Words in the generators: each one alone, then random products, always the same."""
    r = len(parts[0].group.generators)
    random = np.random.default_rng(1)
    found: list[Word] = [((s, 1),) for s in range(r)]
    for _ in range(count):
        letters = random.integers(r, size=5), random.integers(1, 4, size=5)
        found.append(tuple(zip(*(x.tolist() for x in letters), strict=True)))
    return found


def verify(parts: Sequence[Representation], basis: torch.Tensor) -> None:
    """Raise GroupError where random combinations of a basis are not equivariant."""
    out_rep, in_rep, grid = parts
    weights = np.random.default_rng(2).standard_normal((basis.shape[1], 2))
    shape = (2, out_rep.size, in_rep.size, grid.size)
    values = (basis.numpy() @ weights).T.reshape(shape)
    largest = float(np.abs(values).max(initial=0.0))
    if out_rep.group.algebra:
        away = max(
            float(np.abs(a @ values[..., 0] - values[..., 0] @ b).max())
            for a, b in _pairs(parts)
        )
    else:
        inverse_words = random_words(parts)
        away = max(
            float(np.abs(_conjugate(w, parts, values) - values).max()) for w in inverse_words
        )
    if not away <= TOLERANCE * largest:
        raise GroupError(
            f"the basis from {in_rep!r} to {out_rep!r} is equivariant only to {away:.3g}; the "
            "matrices are ill-conditioned or no representation"
        )


def trusted(parts: Sequence[Representation], basis: torch.Tensor) -> None:
    """Raise GroupError where a stored basis is not an orthonormal one of all that is there."""
    out_rep, in_rep, _ = parts
    if basis.dtype == torch.float64:
        verify(parts, basis)
    if basis.dtype != torch.float64 or away_from_orthonormal(basis.numpy()) > TOLERANCE:
        raise GroupError(
            f"the stored basis from {in_rep!r} to {out_rep!r} is not orthonormal in float64; "
            "tie again, or take the record anew"
        )
    algebra = out_rep.group.algebra
    size = commuting(parts).shape[1] if algebra else dimension(*parts)
    if basis.shape[1] != size:
        raise GroupError(
            f"the stored basis from {in_rep!r} to {out_rep!r} has {basis.shape[1]} dimensions; "
            f"there are {size}. Tie again, or take the record anew"
        )


def away_from_orthonormal(columns: Tensors) -> float:
    """How far the columns are from orthonormal: the largest entry of BᵀB − 1."""
    if columns.shape[1] > columns.shape[0]:
        return math.inf
    gram = columns.T @ columns - np.eye(columns.shape[1])
    away = float(np.abs(gram).max(initial=0.0))
    return away if math.isfinite(away) else math.inf


def _conjugate(word: Word, parts: Sequence[Representation], values: Tensors) -> Tensors:
    """ρ_out(g) W ρ_in(g)⁻¹, for representations that need not be orthogonal."""
    out_rep, in_rep, grid = parts
    return act(word, (out_rep, in_rep if in_rep.orthogonal else in_rep.dual(), grid), values)


def _pairs(parts: Sequence[Representation]) -> list[tuple[Matrix, Matrix]]:
    out_rep, in_rep, _ = parts
    dense = [
        [i.matrix() if isinstance(i, Signed) else i for i in r.images]
        for r in (out_rep, in_rep)
    ]
    return list(zip(*dense, strict=True))


def commuting(parts: Sequence[Representation]) -> torch.Tensor:
    """An orthonormal, canonical basis of {W : A W = W B for all pairs (A, B) of generators}.

    Raises GroupError for a representation on pixels, or generators that have no basis of
    eigenvectors; TooLarge.
    """
    if parts[2].size > 1:
        raise GroupError(
            f"{parts[0].group} acts on filters only where its matrices are orthogonal and of a "
            "finite group; here it can tie the weight of an nn.Linear"
        )
    pairs = _pairs(parts)
    weight = np.random.default_rng(0).uniform(0.5, 1.5, len(pairs))
    (la, va), (lb, vb) = (
        np.linalg.eig(sum(w * p[side] for w, p in zip(weight, pairs, strict=True)))
        for side in (0, 1)
    )
    for v in (va, vb):
        if np.linalg.cond(v) > 1e8:
            raise GroupError(
                f"a combination of the generators of {parts[0].group} is not diagonalizable, "
                "and its equivariant maps cannot be found from eigenvectors; give a compact or "
                "semi-simple algebra, or a basis of your own with Subspace(basis)"
            )
    scale = max(1.0, float(np.abs(la).max()), float(np.abs(lb).max()))
    i, j = np.nonzero(np.abs(la[:, None] - lb[None, :]) < 1e-7 * scale)
    if len(i) * len(la) * len(lb) > CANDIDATES:
        raise TooLarge(
            f"the maps from {parts[1]!r} to {parts[0]!r} are sought among {len(i)} tensors of "
            f"{len(la)} × {len(lb)} entries; Eadem goes up to {CANDIDATES} in all"
        )
    left, right = va.T[i], np.linalg.inv(vb)[j]  # W = Σ z_k left_k right_kᵀ
    gram = np.zeros((len(i), len(i)), dtype=complex)
    for a, b in pairs:
        rest = np.einsum("kn,km->knm", left @ a.T, right) - np.einsum(
            "kn,km->knm", left, right @ b
        )
        flat = rest.reshape(len(i), len(la) * len(lb))
        gram += flat.conj() @ flat.T
    eigenvalues, vectors = np.linalg.eigh((gram + gram.conj().T) / 2)
    null = vectors[
        :, eigenvalues < 1e-12 * max(1.0, scale**2, float(eigenvalues.max(initial=0)))
    ]
    maps = np.einsum("kd,kn,km->nmd", null, left, right).reshape(
        len(la) * len(lb), null.shape[1]
    )
    both: Any = np.concatenate([maps.real, maps.imag], axis=1)
    return orthonormal(torch.from_numpy(both), rtol=1e-7)
