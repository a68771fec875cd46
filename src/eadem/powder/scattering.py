"""Structure factors: all reflections, operations and atoms at once, in torch.

F(h) = Σ_atoms o·f·Σ_operations T(hR)·exp 2πi(hR·x + h·t), where what does not depend on the
structure (hR, 2πh·t, the products of indices) is computed once. An inversion at the origin
halves the operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eadem.errors import Unsupported
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


def products(hkl: NDArray[Any]) -> NDArray[np.float64]:
    """h², k², l², 2hk, 2hl, 2kl of indices (…, 3): (…, 6)."""
    pairs = [hkl[..., i] * hkl[..., j] * (1 if i == j else 2) for i, j in PAIRS]
    return np.stack(pairs, -1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class FormFactors:
    """For every distinct atom E: `place` (atoms,) into them; f = Σ a·exp(−b·s²) + c at
    s = sinθ/λ, `a` and `b` (E, 4) and `c` (E,), the latter with f′; f″ `imaginary` (E,).
    Neutron lengths, in fm, are `c` alone, and `a` is None.
    """

    place: Tensor
    a: Tensor | None
    b: Tensor | None
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

    xray = radiation == "xray"
    where = {kind: i for i, kind in enumerate(kinds)}
    return FormFactors(
        torch.tensor([where[k] for k in zip(elements, charges, strict=True)]),
        column([r[0] for r in rows]) if xray else None,
        column([r[1] for r in rows]) if xray else None,
        column([r[2] for r in rows]),
        column([r[3] for r in rows]),
    )


@dataclass(frozen=True, eq=False)
class Sums:
    """Σ f·cos and Σ f·sin over the cell, (reflections,): `real` and `imaginary` by f′ and f″.

    `imaginary` is None without anomalous dispersion, `sine` None with an inversion at the
    origin. `inverse_d2`: 1/d² in Å⁻².
    """

    inverse_d2: Tensor
    cosine: tuple[Tensor, Tensor | None]
    sine: tuple[Tensor, Tensor | None] | None

    def squared(self) -> Tensor:
        """|F|², the mean of h and −h: Σ of the squares of all four sums."""
        parts = [*self.cosine, *(self.sine or ())]
        total = torch.zeros_like(self.inverse_d2)
        for part in parts:
            total = total if part is None else total + part.square()
        return total

    def factors(self) -> Tensor:
        """F(h), complex."""
        zero = torch.zeros_like(self.inverse_d2)
        cr, ci = (zero if p is None else p for p in self.cosine)
        sr, si = (zero if p is None else p for p in self.sine or (None, None))
        return torch.complex(cr - si, ci + sr)


class Diffraction(nn.Module):
    """Structure factors of a structure at given indices, as a function of its values.

    `hkl` (reflections, 3). Holds what does not depend on the structure, and no parameters.
    Calling it with a structure gives `Sums`.
    """

    order: Tensor
    place: Tensor
    a: Tensor | None
    b: Tensor | None
    c: Tensor
    imaginary: Tensor
    products: Tensor
    lattice: Tensor
    turned: Tensor
    phase: Tensor
    turned_products: Tensor

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
        self.isotropic = len(structure.isotropic)
        self.anisotropic = len(structure.anisotropic)
        self.reordered = order != list(range(len(order)))
        self.dispersive = bool(found.imaginary.any())
        self.centric = group.centric
        self.keep("order", torch.tensor(order))
        self.keep("place", found.place[order])
        for name in ("a", "b", "c", "imaginary"):
            self.keep(name, getattr(found, name))
        kept = group.halved if group.centric else group.operations
        rotations = np.array([op.rotation for op in kept])
        shifts = np.array([[float(t) for t in op.shift] for op in kept])
        centring = np.array([[float(t) for t in c] for c in group.centring])
        turned = np.einsum("hi,oij->hoj", hkl, rotations)
        lattice = np.cos(2 * math.pi * (hkl @ centring.T)).sum(1) * (2 if self.centric else 1)
        self.operations = len(kept)
        self.keep("products", torch.from_numpy(products(hkl)))
        self.keep("lattice", torch.from_numpy(lattice).unsqueeze(1))
        self.keep("turned", torch.from_numpy(2 * math.pi * turned.reshape(-1, 3)))
        phase = 2 * math.pi * (hkl @ shifts.T)
        self.keep("phase", torch.from_numpy(phase.reshape(-1, 1)))
        if self.anisotropic:
            flat = products(turned.reshape(-1, 3))
            self.keep("turned_products", torch.from_numpy(-2 * math.pi**2 * flat))

    def keep(self, name: str, value: Tensor | None) -> None:
        """A constant that moves with the module and is in no checkpoint."""
        self.register_buffer(name, value, persistent=False)

    def forward(self, structure: Structure) -> Sums:
        """The sums at the structure's present values."""
        metric = reciprocal(structure.cell)
        inverse_d2 = self.products @ metric
        xyz, weight = structure.xyz, structure.occupancy * structure.share
        if self.reordered:
            xyz, weight = xyz[self.order], weight[self.order]
        angle = self.turned @ xyz.T + self.phase  # (reflections·operations, atoms)
        damped = self._damping(structure, inverse_d2, metric)
        weight = weight * self.lattice  # (reflections, atoms)
        real = self._real(inverse_d2)[..., self.place]
        cosine = self._over_operations(torch.cos(angle), damped) * weight
        cosines = self._atoms(cosine, real)
        if self.centric:
            return Sums(inverse_d2, cosines, None)
        sine = self._over_operations(torch.sin(angle), damped) * weight
        return Sums(inverse_d2, cosines, self._atoms(sine, real))

    def _damping(
        self, structure: Structure, inverse_d2: Tensor, metric: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """exp(−2π²U/d²) (reflections, atoms), and exp(−2π² Σ U_ij h_i h_j a*_i a*_j)
        (reflections·operations, atoms).
        """
        alone = turned = None
        if self.isotropic:
            alone = torch.exp(inverse_d2.unsqueeze(1) * (-2 * math.pi**2 * structure.u_iso))
        if self.anisotropic:
            lengths = metric[:3].sqrt()
            i, j = [list(x) for x in zip(*PAIRS, strict=True)]
            scale = lengths[i] * lengths[j]
            turned = torch.exp(self.turned_products @ (structure.u_aniso * scale).T)
        return alone, turned

    def _over_operations(
        self, wave: Tensor, damped: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        """Σ over the operations of T·wave: (reflections, atoms)."""
        alone, turned = damped
        shape = (-1, self.operations, wave.shape[-1])
        if turned is None:
            assert alone is not None
            iso: Tensor = wave.reshape(shape).sum(1) * alone
            return iso
        split = self.isotropic
        found = (wave[:, split:] * turned).reshape(-1, self.operations, self.anisotropic).sum(1)
        if alone is None:
            return found
        iso = wave[:, :split].reshape(-1, self.operations, split).sum(1) * alone
        return torch.cat([iso, found], 1)

    def _real(self, inverse_d2: Tensor) -> Tensor:
        """f0 + f′ of the distinct atoms: (reflections, E), or (E,) for neutrons."""
        if self.a is None or self.b is None:
            return self.c
        s2 = inverse_d2.reshape(-1, 1, 1) / 4
        return (self.a * torch.exp(-self.b * s2)).sum(-1) + self.c

    def _atoms(self, waves: Tensor, real: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sums over atoms of f·wave, by the real and the imaginary part of f."""
        imaginary = waves @ self.imaginary[self.place] if self.dispersive else None
        if real.ndim == 1:
            return waves @ real, imaginary
        return (waves * real).sum(1), imaginary
