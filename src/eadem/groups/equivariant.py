"""`Equivariant(in_rep, out_rep)`: the weights of stock layers that commute with a group.

The site is the weight of an `nn.Linear` (out, in), of a convolution (out, in, *kernel), on
whose pixels the group acts too, or a bias (out,):

    W(gδ) = ρ_out(g) W(δ) ρ_in(g)⁻¹

Where every element is a signed permutation of entries, θ is one value for each orbit, and W
is exact to the bit. Otherwise W is a combination of an orthonormal basis, found in float64.

>>> from eadem.groups import Cyclic
>>> C4 = Cyclic(4)
>>> phi = Equivariant(C4.regular(1), C4.regular(2)).bind((8, 4, 3, 3))
>>> phi.rank  # of 8·4·9 = 288
72
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from eadem.errors import GroupError, ShapeError
from eadem.groups.basis import Blockwise, bases, by_parts, exact_index
from eadem.groups.interpolated import Interpolated, is_interpolated
from eadem.groups.isotypic import Isotypic, decompose, trusted_parts
from eadem.groups.representation import Representation
from eadem.groups.written import group_from, representation_from
from eadem.maps.base import LinearMap, Shape
from eadem.maps.constant import outside
from eadem.maps.index import Index, Indexed

__all__ = ["Equivariant"]

Parts = tuple[Representation, Representation, Representation]


@dataclass(frozen=True, eq=False, repr=False)
class Equivariant(LinearMap):
    """Weights that take `in_rep` to `out_rep`: rows by `out_rep`, columns by `in_rep`.

    The site is (out, in), (out, in, *kernel) or, for a bias, (out,). The kernel's axes move as
    `space` says, by default as the group does (`group.space(ndim)`), about the kernel's
    centre. θ is flat: one value for each orbit, or for each element of a basis. A filter that
    is turned by another angle than 90° is interpolated: θ is then (rows / |G|, in, *kernel),
    the filters at the identity, and `error` says how far they are from equivariant.

    For `nn.ConvTranspose*` and `nn.Embedding`, whose axes are (in, out, …), write
    `Transpose(0, 1) @ Equivariant(in_rep, out_rep)`.

    Raises GroupError for representations of two groups, ShapeError for a site of other sizes,
    NoEquivariantMap where only zero is equivariant, TooLarge.
    """

    in_rep: Representation
    out_rep: Representation
    space: Representation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for rep in (self.in_rep, self.out_rep, self.space):
            if rep is not None and not isinstance(rep, Representation):
                raise GroupError(
                    f"Equivariant takes representations such as C4.regular(2), not {rep!r:.80}"
                )
            if rep is not None and rep.group != self.in_rep.group:
                raise GroupError(
                    f"{self.in_rep} and {rep} are of different groups; take both from one"
                )
        object.__setattr__(self, "_bases", {})
        object.__setattr__(self, "_inner", {})

    def __repr__(self) -> str:
        space = "" if self.space is None else f", space={self.space!r}"
        return f"Equivariant({self.in_rep!r}, {self.out_rep!r}{space})"

    def arguments(self) -> dict[str, Any]:
        """Group and representations as plain data, with the bases found so far, by shape."""
        kept: dict[Shape, tuple[Tensor, ...]] = self.__dict__["_bases"]
        return {
            "group": self.in_rep.group.spec,
            "in_rep": self.in_rep.form,
            "out_rep": self.out_rep.form,
            "space": None if self.space is None else self.space.form,
            "bases": tuple(sorted(((s, *b) for s, b in kept.items()), key=lambda e: e[0])),
        }

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The map that has these `arguments()`."""
        group = group_from(arguments["group"])
        forms = (arguments[name] for name in ("in_rep", "out_rep", "space"))
        reps = [None if f is None else representation_from(group, f) for f in forms]
        made = cls(*reps)  # type: ignore[arg-type]
        for shape, *found in arguments["bases"]:
            made.__dict__["_bases"][tuple(shape)] = tuple(found)
        return made

    def parts(self, out_shape: Shape) -> Parts:
        """What acts on a site's rows, columns and pixels. Raises ShapeError."""
        group = self.in_rep.group
        rows, columns = self.out_rep, self.in_rep
        if len(out_shape) == 1:
            columns = group.trivial(1)
        wanted = (rows.size, columns.size)[: min(len(out_shape), 2)]
        if not out_shape or tuple(out_shape[:2]) != wanted:
            raise ShapeError(
                f"{self!r} is for a weight of shape ({self.out_rep.size}, {self.in_rep.size}, "
                f"*kernel) or a bias of shape ({self.out_rep.size},); the site has shape "
                f"{out_shape}. A layer that stores (in, out) needs Transpose(0, 1) @ "
                "Equivariant(…); groups= of a convolution must be 1"
            )
        kernel = out_shape[2:]
        if not kernel:
            return rows, columns, group.trivial(1)
        if self.space is not None and self.space.size != len(kernel):
            raise ShapeError(
                f"space={self.space!r} moves {self.space.size} axes; the kernel of a site of "
                f"shape {out_shape} has {len(kernel)}"
            )
        return rows, columns, group.grid(kernel, self.space)

    def _made(self, out_shape: Shape) -> LinearMap:
        cache: dict[Shape, LinearMap] = self.__dict__["_inner"]
        if out_shape not in cache:
            with outside():
                cache[out_shape] = self._make(out_shape)
        return cache[out_shape]

    def _make(self, out_shape: Shape) -> LinearMap:
        rows, columns, pixels = self.parts(out_shape)
        if len(out_shape) > 2 and is_interpolated(pixels):
            return Interpolated(rows, columns, self.space).bind(out_shape)
        if rows.exact and columns.exact and pixels.exact:
            return Indexed.of(exact_index(rows, columns, pixels), out_shape)
        kept: dict[Shape, tuple[Tensor, ...]] = self.__dict__["_bases"]
        stored = kept.get(out_shape)
        irreducible = stored is not None and len(stored) == 4
        if stored is not None and irreducible and stored[2].dtype == torch.int64:
            trusted_parts((rows, columns, pixels), stored)
        elif stored is None and by_parts(rows, columns, pixels):
            stored, irreducible = decompose((rows, columns, pixels)), True
        if stored is not None and irreducible and stored[2].dtype == torch.int64:
            kept[out_shape] = stored
            return Isotypic((rows, columns, pixels), stored).bind(out_shape)
        kept[out_shape] = bases(rows, columns, pixels, stored)
        return Blockwise(rows, columns, kept[out_shape]).bind(out_shape)

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of θ."""
        return self._made(out_shape).in_shape

    @property
    def _map(self) -> LinearMap:
        return self._made(self.out_shape)

    @property
    def exact(self) -> bool:
        """Whether the bound map is one of orbits, bitwise exact."""
        return self._map.index() is not None

    @property
    def error(self) -> float:
        """How far W is from equivariant: the root mean square of g·W − W over that of W, for
        random θ and the worst generator g. Zero unless filters are interpolated.
        """
        inner = self._map
        return inner.error if isinstance(inner, Interpolated) else 0.0

    def index(self) -> Index | None:
        """The orbits as coordinates, or None."""
        return self._map.index()

    def ready(self) -> None:
        """Build the basis or the coordinates."""
        self._map.ready()
        index = self._map.index()
        if index is not None:
            index.plan()

    def forward(self, theta: Tensor) -> Tensor:
        """The weight, of `out_shape`."""
        return self._map.forward(theta)

    def adjoint(self, grad: Tensor) -> Tensor:
        """What each free value receives."""
        return self._map.adjoint(grad)

    def lift(self, values: Tensor) -> Tensor:
        """θ of the nearest equivariant weight."""
        return self._map.lift(values)

    def gram_diagonal(self) -> Tensor | None:
        """How often each free value is used; ones for an orthonormal basis."""
        return self._map.gram_diagonal()

    @property
    def rank(self) -> int:
        """The dimension of the equivariant weights."""
        return self._map.rank

    def dense(self) -> Tensor:
        """A as a float64 matrix."""
        return self._map.dense()
