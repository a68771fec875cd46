"""Structure factors: all reflections, operations and atoms at once, in torch.

F(h) = Σ_atoms o·f·Σ_operations T(hR)·exp 2πi(hR·x + h·t), where what does not depend on the
structure (hR, 2πh·t) is computed once. An inversion at the origin
halves the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eadem.errors import Unsupported
from eadem.powder._known import known
from eadem.powder._waves import Waves
from eadem.powder.symmetry import PAIRS, SpaceGroup, gemmi

__all__ = ["RADIATIONS", "Diffraction", "Structure", "Sums", "form_factors", "reciprocal"]

#: The kinds of radiation.
RADIATIONS = ("neutron", "xray")


class Structure(Protocol):
    """What structure factors are computed from; a `Phase` is one."""

    group: SpaceGroup
    elements: tuple[str, ...]
    charges: tuple[int, ...]
    isotropic: tuple[int, ...]
    anisotropic: tuple[int, ...]
    cell: Tensor
    xyz: Tensor
    u_iso: Tensor
    u_aniso: Tensor
    occupancy: Tensor
    share: Tensor


def reciprocal(cell: Tensor) -> Tensor:
    """The reciprocal metric tensor's 11, 22, 33, 12, 13, 23 in Å⁻², differentiable.

    `cell` (6,): a, b, c in Å, α, β, γ in degrees. G* = G⁻¹ by cofactors.

    >>> reciprocal(torch.tensor([2.0, 4.0, 5.0, 90.0, 90.0, 90.0]))[:3]
    tensor([0.2500, 0.0625, 0.0400])
    """
    a, b, c = cell[:3].unbind()
    cosines = torch.cos(torch.deg2rad(cell[3:]))
    ca, cb, cg = cosines.unbind()
    squared = 1 - cosines.square().sum() + 2 * ca * cb * cg
    one = torch.ones_like(a)
    cofactors = torch.stack(
        [
            one - ca * ca,
            one - cb * cb,
            one - cg * cg,
            ca * cb - cg,
            ca * cg - cb,
            cb * cg - ca,
        ]
    )
    lengths = torch.stack([a * a, b * b, c * c, a * b, a * c, b * c])
    return cofactors / (lengths * squared)


@dataclass(frozen=True, eq=False)
class FormFactors:
    """For every distinct atom E: `place` (atoms,) into them; f = Σ a·exp(−b·s²) + c at
    s = sinθ/λ, `a` and `b` (E, 4) and `c` (E,), the latter with f′; f″ `imaginary` (E,).
    Neutron lengths, in fm, are `c` alone, and `a` is (E, 0).
    """

    place: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    imaginary: Tensor


def _ion(element: Any, charge: int) -> Any:
    """gemmi's table for an ion, or None; gemmi itself leaves charges aside unless told."""
    library = gemmi()
    before = library.IT92_get_ignore_charge()
    library.IT92_set_ignore_charge(False)
    try:
        return library.IT92_get_exact(element, charge)
    finally:
        library.IT92_set_ignore_charge(before)


def form_factors(
    elements: Sequence[str],
    charges: Sequence[int],
    radiation: str,
    wavelength: float | None,
    dispersion: Mapping[str, tuple[float, float]] | None = None,
) -> FormFactors:
    """From gemmi's tables: International Tables C (1992) 6.1.1.4 with f′ and f″ by Cromer &
    Liberman (or `dispersion`, by element) for X-rays, and the lengths of Neutron News 3 (1992)
    for neutrons. X-rays without a wavelength have no f′ and f″ but those given. An ion that
    the tables lack scatters as its neutral atom.

    Raises Unsupported for an unknown radiation or element.
    """
    library = gemmi()
    if radiation not in RADIATIONS:
        raise Unsupported(f"radiation is one of {RADIATIONS}, not {radiation!r}")
    kinds = list(dict.fromkeys(zip(elements, charges, strict=True)))
    rows: list[tuple[list[float], list[float], float, float]] = []
    for symbol, charge in kinds:
        element = library.Element(symbol)
        if element.atomic_number == 0:
            raise Unsupported(
                f"{symbol!r} is no chemical element; an atom's element is its symbol, "
                "such as 'Pb'"
            )
        if radiation == "neutron":
            length = element.neutron92.get_coefs()[0]
            rows.append(([], [], float(length), 0.0))
            continue
        table = (_ion(element, charge) if charge else None) or element.it92
        if table is None:
            raise Unsupported(f"there is no X-ray form factor of {symbol!r}")
        extra = (dispersion or {}).get(symbol, (0.0, 0.0))
        if wavelength is not None and symbol not in (dispersion or {}):
            energy = library.hc / wavelength
            extra = library.cromer_liberman(z=element.atomic_number, energy=energy)
        rows.append((list(table.a), list(table.b), table.c + extra[0], extra[1]))

    def column(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    where = {kind: i for i, kind in enumerate(kinds)}
    return FormFactors(
        torch.tensor([where[k] for k in zip(elements, charges, strict=True)]),
        column([r[0] for r in rows]),
        column([r[1] for r in rows]),
        column([r[2] for r in rows]),
        column([r[3] for r in rows]),
    )


@dataclass(frozen=True, eq=False)
class Sums:
    """`inverse_d2` (reflections,): 1/d² in Å⁻²; `parts` (1, 2 or 4, reflections): Σ f·cos over
    the cell by f₀ + f′, and by f″ where `dispersive`, then Σ f·sin likewise, unless there is an
    inversion at the origin.
    """

    inverse_d2: Tensor
    parts: Tensor
    dispersive: bool

    def squared(self) -> Tensor:
        """|F|², the mean of h and −h: Σ of the squares of all sums."""
        return self.parts.square().sum(0)

    def factors(self) -> Tensor:
        """F(h), complex."""
        parts = list(self.parts)
        if not self.dispersive:
            parts = [p for each in parts for p in (each, torch.zeros_like(each))]
        cr, ci, *sines = parts
        sr, si = sines or (torch.zeros_like(cr), torch.zeros_like(cr))
        return torch.complex(cr - si, ci + sr)


class Diffraction(nn.Module):
    """Structure factors of a structure at given indices, as a function of its values.

    `hkl` (reflections, 3). Holds what does not depend on the structure, and no parameters.
    Calling it with a structure gives `Sums`.
    """

    order: Tensor
    hkl: Tensor
    turned: Tensor
    phase: Tensor
    lattice: Tensor
    place: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    imaginary: Tensor

    def __init__(
        self,
        structure: Structure,
        hkl: NDArray[np.int64],
        radiation: str,
        wavelength: float | None,
        dispersion: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        group = structure.group
        found = form_factors(
            structure.elements, structure.charges, radiation, wavelength, dispersion
        )
        order = [*structure.isotropic, *structure.anisotropic]
        self.anisotropic = len(structure.anisotropic)
        self.reordered = order != list(range(len(order)))
        dispersive = bool(found.imaginary.any())
        self.waves = Waves(len(structure.isotropic), group.centric, dispersive)
        kept = group.halved if group.centric else group.operations
        rotations = np.array([op.rotation for op in kept])
        shifts = np.array([[float(t) for t in op.shift] for op in kept])
        centring = np.array([[float(t) for t in c] for c in group.centring])
        turned = np.einsum("hi,oij->hoj", hkl, rotations)
        lattice = np.cos(2 * math.pi * (hkl @ centring.T)).sum(1) * (2 if group.centric else 1)
        self.keep("order", torch.tensor(order))
        self.keep("hkl", torch.from_numpy(hkl.astype(np.float64)))
        self.keep("turned", torch.from_numpy(2 * math.pi * turned))
        self.keep("phase", torch.from_numpy(2 * math.pi * (hkl @ shifts.T)))
        self.keep("lattice", torch.from_numpy(lattice))
        self.keep("place", found.place[order])
        for name in ("a", "b", "c", "imaginary"):
            self.keep(name, getattr(found, name))

    def keep(self, name: str, value: Tensor) -> None:
        """A constant that moves with the module and is in no checkpoint."""
        self.register_buffer(name, value, persistent=False)

    @property
    def size(self) -> int:
        """How many numbers `Waves` takes."""
        return 6 + 4 * len(self.order) + self.waves.isotropic + 6 * self.anisotropic

    def numbers(self, get: Callable[[str], Tensor], share: Tensor) -> Tensor:
        """What `Waves` takes, (…, numbers), from a structure's values or, unless there are
        anisotropic atoms, from directions: `get` gives them by name, (…, *shape).
        """
        xyz, weight = get("xyz"), get("occupancy") * share
        if self.reordered:
            xyz, weight = xyz[..., self.order, :], weight[..., self.order]
        each = [get("cell"), xyz.flatten(-2), weight]
        if self.waves.isotropic:
            each.append(get("u_iso"))
        if self.anisotropic:
            lengths = reciprocal(get("cell"))[:3].sqrt()
            i, j = [list(x) for x in zip(*PAIRS, strict=True)]
            each.append((get("u_aniso") * (lengths[i] * lengths[j])).reshape(-1))
        return torch.cat(each, -1)

    @property
    def constants(self) -> tuple[Tensor, ...]:
        """What `Waves` takes beside them."""
        indices = (self.hkl, self.turned, self.phase, self.lattice, self.place)
        return (*indices, self.a, self.b, self.c, self.imaginary)

    def forward(self, structure: Structure) -> Sums:
        """The sums at the structure's present values."""
        w = self.numbers(partial(getattr, structure), structure.share)
        found = known(self.waves, w, *self.constants)
        return Sums(found[0], found[1:], self.waves.dispersive)
