"""A crystal structure: cell, atoms, displacements, with its symmetry as ties."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eadem.errors import ShapeError, Unsupported
from eadem.powder import cif
from eadem.powder.constraints import constrain
from eadem.powder.scattering import Diffraction, Sums, reciprocal
from eadem.powder.symmetry import SpaceGroup

__all__ = ["Atom", "Phase"]


@dataclass(frozen=True)
class Atom:
    """One atom of the asymmetric unit.

    `xyz` fractional; `u`: U_iso in Å², or U11, U22, U33, U12, U13, U23 as in CIF;
    `occupancy` of the site, 1 where it is full (whatever its multiplicity); `charge` chooses
    the form factor of an ion where there is one.
    """

    label: str
    element: str
    xyz: tuple[float, float, float]
    u: float | tuple[float, ...] = 0.01
    occupancy: float = 1.0
    charge: int = 0


class Phase(nn.Module):
    """A crystal structure, all float64; its symmetry is declared as ties.

    Parameters (sites): `cell` (6,): a, b, c in Å and α, β, γ in degrees; `xyz` (atoms, 3),
    fractional; `u_iso` (isotropic atoms,) and `u_aniso` (anisotropic atoms, 6) in Å², the
    latter as CIF's U11, U22, U33, U12, U13, U23; `occupancy` (atoms,), which is not refined
    unless its `requires_grad` is set. `labels` names the atoms, `isotropic` and `anisotropic`
    the rows of `u_iso` and `u_aniso` by atom. `u_iso` or `u_aniso` is absent where no atom
    needs it.

    The crystal system and every special position are ties, derived from the operations of the
    space group: `eadem.counts(phase).free` counts what symmetry leaves free, and ties of a
    `Joint` add to them. An atom within `tolerance` Å of a special position is moved there.

    Raises Unsupported where the cell contradicts the space group.

    >>> import eadem
    >>> salt = Phase(
    ...     [5.64, 5.64, 5.64, 90, 90, 90],
    ...     "F m -3 m",
    ...     [Atom("Na", "Na", (0, 0, 0)), Atom("Cl", "Cl", (0.5, 0.5, 0.5))],
    ... )
    >>> salt.occupancy.requires_grad, eadem.counts(salt).free  # a, two U and two occupancies
    (False, 5)
    >>> salt.positions
    ('0, 0, 0', '1/2, 1/2, 1/2')
    """

    cell: Tensor
    xyz: Tensor
    occupancy: Tensor
    u_iso: Tensor
    u_aniso: Tensor
    share: Tensor

    def __init__(
        self,
        cell: Sequence[float],
        spacegroup: str | int | SpaceGroup,
        atoms: Sequence[Atom],
        *,
        name: str = "",
        tolerance: float = 0.05,
        constrained: bool = True,
    ) -> None:
        super().__init__()
        if not atoms:
            raise Unsupported("a Phase needs at least one atom")
        if len(cell) != 6:
            raise ShapeError(f"a cell is a, b, c, α, β, γ: six numbers, not {len(cell)}")
        group = spacegroup if isinstance(spacegroup, SpaceGroup) else SpaceGroup.of(spacegroup)
        self.name, self.group = name, group
        self.labels = _unique([a.label for a in atoms])
        self.elements = tuple(a.element for a in atoms)
        self.charges = tuple(a.charge for a in atoms)
        each = [a.u if isinstance(a.u, tuple) else (float(a.u),) for a in atoms]
        for atom, u in zip(atoms, each, strict=True):
            if len(u) not in (1, 6):
                raise ShapeError(
                    f"atom {atom.label!r} has {len(u)} displacement parameters; give U_iso, or "
                    "the six U11, U22, U33, U12, U13, U23"
                )
        self.isotropic = tuple(i for i, u in enumerate(each) if len(u) == 1)
        self.anisotropic = tuple(i for i, u in enumerate(each) if len(u) == 6)
        self.special = tuple(group.position(a.xyz, cell, tolerance) for a in atoms)
        if self.anisotropic:
            _tensors_transform_alike(group, cell)
        self.cell = _parameter([float(v) for v in cell])
        self.xyz = _parameter([s.point for s in self.special])
        if self.isotropic:
            self.u_iso = _parameter([each[i][0] for i in self.isotropic])
        if self.anisotropic:
            self.u_aniso = _parameter([each[i] for i in self.anisotropic])
        self.occupancy = _parameter([a.occupancy for a in atoms])
        self.occupancy.requires_grad_(False)
        share = [1.0 / s.order for s in self.special]
        self.register_buffer(
            "share", torch.tensor(share, dtype=torch.float64), persistent=False
        )
        if constrained:
            self.constrain()

    @classmethod
    def from_cif(
        cls,
        source: str | os.PathLike[str],
        *,
        block: str | None = None,
        tolerance: float = 0.05,
        constrained: bool = True,
    ) -> Phase:
        """From a CIF file, or from its text.

        `block`: the data block's name, by default the first that holds atoms. An atom without a
        displacement, or with none at all, starts at U_iso = 0.01 Å². Raises DataError
        for a file that is no CIF or lacks cell, space group or atoms, with its line where
        there is one; FileNotFoundError.
        """
        read = cif.read(source, block)
        return cls(
            read.cell,
            read.group,
            [Atom(*fields) for fields in read.atoms],
            name=read.name,
            tolerance=tolerance,
            constrained=constrained,
        )

    def constrain(self) -> None:
        """Declare the ties of the crystal system and of all special positions."""
        constrain(self, self.group, self.special, self.anisotropic)

    @property
    def positions(self) -> tuple[str, ...]:
        """Every atom's position as International Tables write it."""
        return tuple(s.text for s in self.special)

    def structure_factors(
        self,
        hkl: Tensor | Sequence[Sequence[int]],
        radiation: str,
        wavelength: float | None = None,
    ) -> Tensor:
        """F(hkl), complex (reflections,): in electrons for "xray", in fm for "neutron".

        The sum over the cell of f·T·exp 2πi(h·x); X-rays with a wavelength (Å) have f′ + if″.

        >>> iron = Phase([2.866] * 3 + [90] * 3, "I m -3 m", [Atom("Fe", "Fe", (0, 0, 0), 0.0)])
        >>> iron.structure_factors([[1, 1, 0], [1, 0, 0]], "neutron").real.detach()
        tensor([18.9000,  0.0000], dtype=torch.float64)
        """
        index = torch.as_tensor(hkl).reshape(-1, 3).to(torch.int64).numpy()
        sums: Sums = Diffraction(self, index, radiation, wavelength)(self)
        return sums.factors()

    def to_cif(
        self,
        path: str | os.PathLike[str],
        stderr: Mapping[str, Tensor] | None = None,
        *,
        prefix: str = "",
    ) -> None:
        """Write the structure as a CIF, with standard uncertainties as 1.234(5).

        `stderr`: by site name, as `Fit.stderr`, the sites of this phase beginning with
        `prefix` ("neutron.phase."). Values without one, or held by symmetry, have none. The
        file is whole or, on an error, untouched.
        """
        cif.write(path, self, stderr or {}, prefix)


def _unique(labels: Sequence[str]) -> tuple[str, ...]:
    again = sorted({l for l in labels if list(labels).count(l) > 1})
    if again:
        raise Unsupported(f"atoms need labels of their own; {again} occur more than once")
    return tuple(labels)


def _parameter(values: object) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def _tensors_transform_alike(group: SpaceGroup, cell: Sequence[float]) -> None:
    """U_ij = β_ij / (2π² a*_i a*_j) turns as β does only where a rotation mixes axes of equal
    a*; all conventional settings are so.
    """
    lengths = reciprocal(torch.tensor([float(v) for v in cell], dtype=torch.float64))[:3].sqrt()
    ratio = lengths / lengths.unsqueeze(1)
    for rotation in group.rotations:
        mixed = torch.tensor(rotation).ne(0) & ((ratio - 1).abs() > 1e-3)
        if bool(mixed.any()):
            raise Unsupported(
                f"anisotropic displacements in the setting {group.name!r} depend on the cell; "
                "use the conventional setting, or isotropic displacements"
            )
