"""What the report page shows of powder patterns: the patterns and the structures."""

from __future__ import annotations

from html import escape

import torch

from eadem.powder.cif import with_uncertainty
from eadem.powder.symmetry import CELL
from eadem.project.files import structures
from eadem.project.fit import SYMMETRY, Outcome
from eadem.report import page, pattern
from eadem.report.numbers import count, percent

__all__ = ["drawn", "structure"]


def drawn(outcome: Outcome, name: str) -> str:
    """A pattern: observed, calculated, difference and tick marks."""
    block = outcome.built.powder[name]
    x, y, _ = block.observed()
    with torch.no_grad():
        calculated = block.model()
    low, high = float(x[0]), float(x[-1])
    several = len(block.names) > 1
    marks = [
        (at, f"{phase} ({h} {k} {l})" if several else f"({h} {k} {l})")
        for phase, found in block.reflections().items()
        for at, (h, k, l) in zip(found.position[0].tolist(), found.hkl.tolist(), strict=True)
        if low <= at <= high
    ]
    label = f"{name}: Rwp {percent(block.rwp(), 2)}, {count(len(x))} points."
    return pattern.pattern(
        pattern.Pattern(label, x.tolist(), y.tolist(), calculated.tolist(), sorted(marks))
    )


def structure(outcome: Outcome) -> page.Section:
    """The cell and the atoms of every phase."""
    blocks = []
    for file, (name, phase) in structures(outcome).items():
        blocks.append(f"<h3>{escape(phase)}</h3><p>{escape(file)}</p>")
        blocks += _phase(outcome, name, phase)
    text = (
        "Standard uncertainties in units of the last digit; what has none is held by the "
        "symmetry of the space group, or was not refined."
    )
    return page.Section("structure", "Structures", text, blocks)


def _phase(outcome: Outcome, name: str, phase: str) -> list[str]:
    found = outcome.built.powder[name].phases[phase]
    before = f"{name}.{phase}"

    def shown(entry: str) -> str:
        value, error = outcome.value(entry)
        return with_uncertainty(value, None if outcome.state[entry] == SYMMETRY else error)

    units = ("Å",) * 3 + ("°",) * 3
    cell = [
        [f"{n} ({unit})", shown(f"{before}.cell.{n}")]
        for n, unit in zip(CELL, units, strict=True)
    ]
    atoms, tensors = [], []
    for i, label in enumerate(found.labels):
        size, full = "", ""
        if i in found.isotropic:
            size = shown(_only(outcome, f"{before}.u_iso", label))
        else:
            full = f"{before}.u_aniso.{label}.U"
            tensors.append([label, *(shown(full + ij) for ij in _PAIRS)])
        xyz = [shown(f"{before}.xyz.{label}.{axis}") for axis in "xyz"]
        occupancy = shown(_only(outcome, f"{before}.occupancy", label))
        first = [label, found.elements[i], found.positions[i]]
        atoms.append([*first, *xyz, size or "anisotropic", occupancy])
    columns = ("atom", "element", "position", "x", "y", "z", "U (Å²)", "occupancy")
    group = f"<p>Space group {escape(found.group.name)}</p>"
    blocks = [group, page.table(("", "cell"), cell, (1,))]
    blocks.append(page.table(columns, atoms, (3, 4, 5, 6, 7)))
    if tensors:
        names = ("atom", *(f"U{ij} (Å²)" for ij in _PAIRS))
        blocks.append(page.table(names, tensors, range(1, 7)))
    return blocks


_PAIRS = ("11", "22", "33", "12", "13", "23")


def _only(outcome: Outcome, site: str, label: str) -> str:
    """The entry of a site: by the atom's label, or the site itself where it has one entry."""
    return site if site in outcome.state else f"{site}.{label}"
