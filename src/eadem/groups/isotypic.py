"""Large equivariant matrices by irreducible parts, without a basis of the whole space.

Both representations are split into irreducible parts: the eigenspaces of a random symmetric
matrix, averaged over the group (Dixon, Math. Comp. 24 (1970), for the idea). Parts that one
random equivariant matrix joins are of one kind, and are turned so that the group acts on them
by the same matrices. By Schur's lemma an equivariant matrix is then

    W = Q_out · S · Q_inᵀ,   with blocks  S = Σ_k θ_k E_k

for each pair of parts of a kind, E_k an orthonormal basis of what commutes with it: one, two or
four matrices (real, complex or quaternionic kind). The cost is that of two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eadem.errors import GroupError, ShapeError
from eadem.groups.invariants import (
    TOLERANCE,
    act,
    average,
    away_from_orthonormal,
    dimension,
    nothing,
    random_words,
)
from eadem.groups.representation import Representation
from eadem.groups.signed import Signed
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.constant import Constant

__all__ = ["Isotypic", "decompose", "trusted_parts"]

Floats = NDArray[np.float64]
Parts = tuple[Representation, Representation, Representation]


@dataclass(frozen=True)
class _Kind:
    """One kind of irreducible part: its columns, aligned, and its commutant (k, d, d)."""

    outs: list[Floats]
    ins: list[Floats]
    commutant: Floats


def decompose(parts: Parts) -> tuple[Tensor, ...]:
    """(Q_out, Q_in, layout, E): the columns of the parts of all kinds, one after the other, for
    each kind its row (copies out, copies in, d, k), and its commutant, flat.

    Raises NoEquivariantMap, and GroupError where the parts found are not what the characters
    say.
    """
    rows, columns, _ = parts
    size = dimension(*parts)
    if size == 0:
        raise nothing(rows, columns)
    kinds = _by_angle(parts) if len(rows.images) == 1 else _by_average(parts)
    layout = [(len(k.outs), len(k.ins), k.commutant.shape[1], len(k.commutant)) for k in kinds]
    found = sum(a * b * k for a, b, _, k in layout)
    if found != size:
        raise GroupError(
            f"the irreducible parts of {rows} and {columns} leave {found} dimensions where "
            f"their characters say {size}; the matrices are ill-conditioned or no "
            "representation"
        )
    stacked = (
        np.concatenate([p for k in kinds for p in k.outs], axis=1),
        np.concatenate([p for k in kinds for p in k.ins], axis=1),
        np.array(layout, dtype=np.int64),
        np.concatenate([k.commutant.reshape(-1) for k in kinds]),
    )
    return tuple(torch.from_numpy(np.ascontiguousarray(s)) for s in stacked)


def trusted_parts(parts: Parts, found: Sequence[Tensor]) -> None:
    """Raise GroupError where stored parts do not make an orthonormal basis of all maps."""
    left, right, layout, commutant = found
    rows, columns, _ = parts
    said = f"the stored irreducible parts of {rows!r} and {columns!r}"
    wide = layout.ndim == 2 and layout.shape[1] == 4 and bool((layout >= 1).all())
    floats = all(f.dtype == torch.float64 for f in (left, right, commutant))
    if not (wide and floats and left.ndim == right.ndim == 2 and commutant.ndim == 1):
        raise GroupError(f"{said} are no float64 columns with a layout; take the record anew")
    kinds = layout.tolist()
    size = dimension(*parts)
    kept = sum(a * b * k for a, b, _, k in kinds)
    if kept != size:
        raise GroupError(f"{said} make {kept} dimensions; there are {size}")
    Isotypic(parts, tuple(found)).bind((rows.size, columns.size))
    away = max(away_from_orthonormal(q.numpy()) for q in (left, right))
    start = 0
    for *_, d, k in kinds:
        block = commutant[start : start + k * d * d].reshape(k, d * d)
        away = max(away, away_from_orthonormal(block.numpy().T))
        start += k * d * d
    if not away <= TOLERANCE:
        raise GroupError(f"{said} are orthonormal only to {away:.3g}; take the record anew")


def _by_angle(parts: Parts) -> list[_Kind]:
    """The parts under one generator: the planes that it turns by each of its angles."""
    found = [_planes(rep) for rep in parts[:2]]
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    commutants = {1: _commutant([np.eye(1)]), 2: _commutant([turn])}
    return [
        _Kind(planes, found[1][k], commutants[planes[0].shape[1]])
        for k, planes in found[0].items()
        if k in found[1]
    ]


def _planes(rep: Representation) -> dict[int, list[Floats]]:
    """For each k, orthonormal pairs (v, Jv) that the generator turns by 360°·k/n; for the
    angles 0° and 180°, single columns.
    """
    n = rep.group.order
    image = rep.images[0]
    turn = image.matrix() if isinstance(image, Signed) else image
    cosines, vectors = np.linalg.eigh((turn + turn.T) / 2)
    angle = np.round(np.arccos(cosines.clip(-1, 1)) * n / (2 * np.pi)).astype(np.int64)
    skew = (turn - turn.T) / 2 @ vectors
    random = np.random.default_rng(0)
    found: dict[int, list[Floats]] = {}
    for k in np.unique(angle).tolist():
        at = np.flatnonzero(angle == k)
        basis = vectors[:, at]
        if k == 0 or 2 * k == n:
            found[k] = [basis[:, [i]] for i in range(len(at))]
            continue
        j = basis.T @ skew[:, at] / np.sin(2 * np.pi * k / n)
        drawn = random.standard_normal(j.shape)
        drawn = drawn + drawn.T
        _, pairs = np.linalg.eigh(drawn + j @ drawn @ j.T)  # each eigenvalue twice
        first = pairs[:, ::2]
        both = basis @ first, basis @ (j @ first)
        found[k] = [np.stack([v, w], axis=1) for v, w in zip(both[0].T, both[1].T, strict=True)]
    return found


def _by_average(parts: Parts) -> list[_Kind]:
    """The parts of any group: eigenspaces of averaged random matrices."""
    rows, columns, one = parts
    random = np.random.default_rng(0)

    def commuting(a: Representation, b: Representation) -> Floats:
        drawn = random.standard_normal((a.size, b.size, 1))
        return np.asarray(average((a, b, one), drawn)[:, :, 0])

    own = [commuting(columns, columns)]
    left = own[0] if rows == columns else commuting(rows, rows)
    joined = commuting(rows, columns)
    outs, ins = _eigenspaces(left), _eigenspaces(own[0])
    if any(p.shape[1] % 4 == 0 for p in ins):  # quaternionic kinds need three more
        own += [commuting(columns, columns) for _ in range(2)]
    return _kinds(outs, ins, joined, own)


def _eigenspaces(commuting: Floats) -> list[Floats]:
    """Irreducible parts, as columns: equal eigenvalues of the symmetric part."""
    values, vectors = np.linalg.eigh((commuting + commuting.T) / 2)
    scale = max(float(np.abs(values).max(initial=0.0)), 1e-300)
    cuts = np.flatnonzero(np.diff(values) > 1e-9 * scale) + 1
    return [np.asarray(p) for p in np.split(vectors, cuts, axis=1)]


def _kinds(
    outs: list[Floats], ins: list[Floats], joined: Floats, own: list[Floats]
) -> list[_Kind]:
    whole = np.concatenate(outs, axis=1).T @ joined @ np.concatenate(ins, axis=1)
    rows = np.cumsum([0, *(p.shape[1] for p in outs)])
    columns = np.cumsum([0, *(p.shape[1] for p in ins)])
    norms = np.add.reduceat(np.add.reduceat(whole**2, rows[:-1], 0), columns[:-1], 1)
    meets = norms > 1e-16 * max(float(norms.max(initial=0.0)), 1e-300)

    def block(i: int, j: int) -> Floats:
        return np.asarray(whole[rows[i] : rows[i + 1], columns[j] : columns[j + 1]])

    found, seen = [], np.zeros(len(outs), dtype=bool)
    for i in range(len(outs)):
        right = np.flatnonzero(meets[i]).tolist()
        if seen[i] or not right:
            continue
        left = np.flatnonzero(meets[:, right[0]]).tolist()
        seen[left] = True
        # the frame is that of the first part of the input
        turned = [outs[a] @ _orthogonal(block(a, right[0])) for a in left]
        first = _orthogonal(block(left[0], right[0]))
        aligned = [ins[b] @ _orthogonal(first.T @ block(left[0], b)).T for b in right]
        frame = aligned[0]
        found.append(_Kind(turned, aligned, _commutant([frame.T @ c @ frame for c in own])))
    return found


def _orthogonal(matrix: Floats) -> Floats:
    """A multiple of an orthogonal matrix, scaled to be one."""
    return np.asarray(matrix * (np.sqrt(len(matrix)) / np.linalg.norm(matrix)))


def _commutant(drawn: list[Floats]) -> Floats:
    """An orthonormal basis of what commutes with an irreducible part, from random elements."""
    d = len(drawn[0])
    kept = [np.eye(d) / np.sqrt(d)]
    for element in drawn:
        rest = (element - element.T) / 2
        size = float(np.linalg.norm(element))
        for e in kept:
            rest = rest - (rest * e).sum() * e
        if np.linalg.norm(rest) > 1e-7 * max(size, 1e-300):
            kept.append(rest / np.linalg.norm(rest))
    if len(kept) == 3:
        raise GroupError("a commutant has 3 dimensions; the matrices are ill-conditioned")
    return np.stack(kept)


@dataclass(frozen=True, eq=False, repr=False)
class Isotypic(LinearMap):
    """W = Q_out S(θ) Q_inᵀ from what `decompose` found."""

    parts: Parts
    found: tuple[Tensor, ...]

    def _prepare(self) -> None:
        left, right, layout, commutant = self.found
        kinds = layout.tolist()
        used = (
            sum(a * d for a, _, d, _ in kinds),
            sum(b * d for _, b, d, _ in kinds),
            sum(k * d * d for *_, d, k in kinds),
        )
        if (left.shape[1], right.shape[1], len(commutant)) != used or (
            (len(left), len(right)) != (self.parts[0].size, self.parts[1].size)
        ):
            raise ShapeError("the stored irreducible parts do not fit one another")
        places, row, column, start = [], 0, 0, 0
        alike: dict[tuple[int, ...], list[int]] = {}
        values = []
        width = right.shape[1]
        for number, (a, b, d, k) in enumerate(kinds):
            at = (
                (row + np.arange(a * d)).reshape(a, 1, d, 1) * width
                + column
                + np.arange(b * d).reshape(1, b, 1, d)
            )
            places.append(at.reshape(-1))
            values.append(commutant[start : start + k * d * d].reshape(k, d * d))
            alike.setdefault((a, b, d, k), []).append(number)
            row, column, start = row + a * d, column + b * d, start + k * d * d
        object.__setattr__(self, "_groups", list(alike.items()))
        order = [n for numbers in alike.values() for n in numbers]
        flat = np.concatenate([places[n] for n in order])
        object.__setattr__(self, "_places", Constant(torch.from_numpy(flat)))
        stacked = [
            Constant(torch.stack([values[n] for n in numbers])) for numbers in alike.values()
        ]
        object.__setattr__(self, "_commutants", stacked)
        object.__setattr__(self, "_left", Constant(left))
        object.__setattr__(self, "_right", Constant(right))
        self._verify()

    def infer(self, out_shape: Shape) -> Shape:
        """The sum over kinds of copies out × copies in × k."""
        return (sum(a * b * k for a, b, _, k in self.found[2].tolist()),)

    def _verify(self) -> None:
        theta = torch.from_numpy(np.random.default_rng(2).standard_normal(self.in_shape))
        weight = self.forward(theta).reshape(self.parts[0].size, -1, 1).numpy()
        largest = float(np.abs(weight).max(initial=0.0))
        for word in random_words(self.parts, 1):
            moved = weight
            for letter in reversed(word):
                moved = act((letter,), self.parts, moved)
            away = float(np.abs(moved - weight).max())
            if not away <= TOLERANCE * largest:
                raise GroupError(
                    f"the maps from {self.parts[1]} to {self.parts[0]} are equivariant only to "
                    f"{away:.3g}; the matrices are ill-conditioned or no representation"
                )

    def forward(self, theta: Tensor) -> Tensor:
        """Two matrix products."""
        left: Constant = self.__dict__["_left"]
        right: Constant = self.__dict__["_right"]
        places: Constant = self.__dict__["_places"]
        made, start = [], 0
        for ((a, b, _, k), numbers), commutant in zip(
            self.__dict__["_groups"], self.__dict__["_commutants"], strict=True
        ):
            size = len(numbers) * a * b * k
            part = theta[start : start + size].reshape(len(numbers), a * b, k)
            made.append((part @ commutant.on(theta.device, theta.dtype)).reshape(-1))
            start += size
        shape = (self.found[0].shape[1], self.found[1].shape[1])
        inner = theta.new_zeros(numel(shape)).index_copy(
            0, places.on(theta.device), torch.cat(made)
        )
        q_left, q_right = (q.on(theta.device, theta.dtype) for q in (left, right))
        return (q_left @ inner.reshape(shape) @ q_right.T).reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Every pair of parts against its commutant."""
        left: Constant = self.__dict__["_left"]
        right: Constant = self.__dict__["_right"]
        places: Constant = self.__dict__["_places"]
        q_left, q_right = (q.on(grad.device, grad.dtype) for q in (left, right))
        inner = q_left.T @ grad.reshape(len(q_left), len(q_right)) @ q_right
        flat = inner.reshape(-1).index_select(0, places.on(grad.device))
        found, start = [], 0
        for ((a, b, d, _), numbers), commutant in zip(
            self.__dict__["_groups"], self.__dict__["_commutants"], strict=True
        ):
            size = len(numbers) * a * b * d * d
            part = flat[start : start + size].reshape(len(numbers), a * b, d * d)
            found.append((part @ commutant.on(grad.device, grad.dtype).mT).reshape(-1))
            start += size
        return torch.cat(found)

    def gram_diagonal(self) -> Tensor:
        """Ones: the basis is orthonormal."""
        return torch.ones(self.in_shape, dtype=torch.float64)
