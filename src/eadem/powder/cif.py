"""Crystal structures as CIF files: read through gemmi, written with standard uncertainties."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eadem.errors import DataError
from eadem.powder.data import content
from eadem.powder.symmetry import CELL, SpaceGroup, gemmi

if TYPE_CHECKING:
    from eadem.powder.phase import Phase

__all__ = ["Structure", "read", "with_uncertainty", "write"]

#: U_iso in Å² of an atom whose displacement a file does not give.
UNKNOWN = 0.01
#: Label, element, xyz, U, occupancy, charge: the fields of an `Atom`.
Fields = tuple[str, str, tuple[float, float, float], float | tuple[float, ...], float, int]


@dataclass(frozen=True)
class Structure:
    """What a CIF says of a structure."""

    name: str
    cell: tuple[float, ...]
    group: SpaceGroup
    atoms: tuple[Fields, ...]


def read(source: str | os.PathLike[str], block: str | None = None) -> Structure:
    """A structure from a CIF file or from its text, by default the first block with atoms.

    Raises DataError for what is no CIF, or lacks cell, space group or atoms;
    FileNotFoundError.
    """
    library = gemmi()
    text, where = _text(source)
    try:
        document = library.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{where} is no CIF: {error}") from None
    found = _block(document, block, where)
    try:
        small = library.make_small_structure_from_block(found)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{where}, block {found.name!r}: {error}") from None
    cell = tuple(float(v) for v in small.cell.parameters)
    if not small.cell.is_crystal() or not all(math.isfinite(v) and v > 0 for v in cell):
        raise DataError(f"{where}, block {found.name!r}: the cell is missing or not positive")
    return Structure(found.name, cell, _group(small, found, where), _atoms(small, found, where))


def _text(source: str | os.PathLike[str]) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return source, "the text given"
    path = Path(source)
    return content(path), str(path)


def _block(document: Any, wanted: str | None, where: str) -> Any:
    names = [b.name for b in document]
    if wanted is not None:
        found = document.find_block(wanted)
        if found is None:
            raise DataError(f"{where} has no block {wanted!r}; there are {names}")
        return found
    for each in document:
        if each.find_loop("_atom_site_fract_x") or each.find_loop("_atom_site.fract_x"):
            return each
    raise DataError(f"{where} has no atoms (_atom_site_fract_x) in its blocks {names}")


def _group(small: Any, block: Any, where: str) -> SpaceGroup:
    """By the operations where the file lists them, else by the name."""
    library = gemmi()
    triplets = [str(t) for t in small.symops]
    if triplets:
        try:
            operations = library.GroupOps([library.Op(t) for t in triplets])
        except (ValueError, RuntimeError) as error:
            raise DataError(f"{where}: a symmetry operation cannot be read: {error}") from None
        known = library.find_spacegroup_by_ops(operations)
        if known is not None:
            return SpaceGroup.of(known)
        name = small.spacegroup_hm or "of the operations listed"
        return SpaceGroup.from_operations(name, operations)
    if small.spacegroup is None:
        given = small.spacegroup_hm or small.spacegroup_hall
        raise DataError(
            f"{where}, block {block.name!r}: "
            + (f"no space group is called {given!r}" if given else "no space group is given")
            + "; list the operations (_space_group_symop_operation_xyz) or name the group"
        )
    return SpaceGroup.of(small.spacegroup)


def _atoms(small: Any, block: Any, where: str) -> tuple[Fields, ...]:
    found: list[Fields] = []
    for site in small.sites:
        xyz = (site.fract.x, site.fract.y, site.fract.z)
        if not all(math.isfinite(v) for v in (*xyz, site.occ)):
            raise DataError(
                f"{where}, block {block.name!r}: atom {site.label!r} lacks a coordinate or an "
                "occupancy that is a number"
            )
        if site.element.atomic_number == 0:
            raise DataError(
                f"{where}, block {block.name!r}: the element of atom {site.label!r} is not "
                f"known (type symbol {site.type_symbol!r})"
            )
        tensor = tuple(float(v) for v in site.aniso.elements_pdb())
        u: float | tuple[float, ...] = tensor if any(tensor) else float(site.u_iso) or UNKNOWN
        found.append((site.label, site.element.name, xyz, u, float(site.occ), int(site.charge)))
    if not found:
        raise DataError(f"{where}, block {block.name!r} has no atoms with coordinates")
    return tuple(found)


def with_uncertainty(value: float, error: float | None) -> str:
    """The value with its standard uncertainty in units of the last digit, which is between 2
    and 19 as the IUCr's journals ask; six significant decimals without one.

    >>> with_uncertainty(8.480442, 0.00012), with_uncertainty(-0.0951, 0.003)
    ('8.48044(12)', '-0.095(3)')
    >>> with_uncertainty(1234.5, 37.0), with_uncertainty(0.25, None)
    ('1230(40)', '0.25')
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.6f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
    digits = -math.floor(math.log10(error))
    if round(error * 10.0 ** (digits + 1)) <= 19:
        digits += 1
    shown = round(error * 10.0**digits)
    if digits <= 0:
        unit = 10**-digits
        return f"{round(value / unit) * unit}({shown * unit})"
    return f"{value:.{digits}f}({shown})"


def write(
    path: str | os.PathLike[str], phase: Phase, stderr: Mapping[str, Tensor], prefix: str
) -> None:
    """Write a phase as a CIF of one block, with uncertainties by site name."""
    target = Path(path)
    text = _document(phase, {k: v for k, v in stderr.items() if k.startswith(prefix)}, prefix)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _document(phase: Phase, stderr: Mapping[str, Tensor], prefix: str) -> str:
    def shown(site: str) -> list[list[str]]:
        values = getattr(phase, site).detach()
        errors = stderr.get(prefix + site)
        table = values.reshape(len(values), -1)
        known = (
            torch.full_like(table, torch.nan) if errors is None else errors.reshape_as(table)
        )
        return [
            [with_uncertainty(v, e) for v, e in zip(row, sigma, strict=True)]
            for row, sigma in zip(table.tolist(), known.tolist(), strict=True)
        ]

    cell = [row[0] for row in shown("cell")]
    xyz, occupancy = shown("xyz"), shown("occupancy")
    lines = [f"data_{_word(phase.name or 'phase')}"]
    for name, value in zip(CELL, cell, strict=True):
        kind = "length" if len(name) == 1 else "angle"
        lines.append(f"_cell_{kind}_{name} {value}")
    lines += [f"_space_group_name_H-M_alt {_quoted(phase.group.name)}", "loop_"]
    lines += ["_space_group_symop_operation_xyz", *map(_quoted, phase.group.triplets())]
    fields = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv"]
    fields += ["adp_type", "occupancy", "site_symmetry_order"]
    lines += ["loop_", *(f"_atom_site_{f}" for f in fields)]
    u = shown("u_iso") if phase.isotropic else []
    for i, label in enumerate(phase.labels):
        charge = phase.charges[i]
        symbol = phase.elements[i] + (f"{abs(charge)}{'+-'[charge < 0]}" if charge else "")
        if i in phase.isotropic:
            size, kind = u[phase.isotropic.index(i)][0], "Uiso"
        else:
            tensor = phase.u_aniso[phase.anisotropic.index(i)].detach()
            size, kind = with_uncertainty(_equivalent(phase.cell, tensor), None), "Uani"
        order = str(phase.special[i].order)
        row = [_quoted(label), symbol, *xyz[i], size, kind, occupancy[i][0], order]
        lines.append(" ".join(row))
    if phase.anisotropic:
        names = ["label", *(f"U_{ij}" for ij in ("11", "22", "33", "12", "13", "23"))]
        lines += ["loop_", *(f"_atom_site_aniso_{n}" for n in names)]
        for i, row in zip(phase.anisotropic, shown("u_aniso"), strict=True):
            lines.append(" ".join([_quoted(phase.labels[i]), *row]))
    return "\n".join(lines) + "\n"


def _equivalent(cell: Tensor, u: Tensor) -> float:
    """U_eq = ⅓ Σ U_ij a*_i a*_j a_i·a_j, in Å²."""
    library = gemmi()
    given: Any = library.UnitCell(*cell.detach().tolist())
    return float(given.calculate_u_eq(library.SMat33d(*u.tolist())))


def _quoted(text: str) -> str:
    found: str = gemmi().cif.quote(text)
    return found


def _word(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)
