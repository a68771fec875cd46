"""Powder patterns of a project: its phases from CIF files, its data sets with an instrument."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eadem.errors import DataError, ShapeError, Unsupported, nearest
from eadem.powder import Data, Instrument, Pattern, Phase
from eadem.powder.data import read_counters, read_csv, read_steps, read_xye
from eadem.powder.instrument import SCALARS
from eadem.powder.symmetry import CELL
from eadem.project.build import matches
from eadem.project.data import LARGEST, inside
from eadem.project.document import Document, Path_
from eadem.project.errors import ProjectError, at
from eadem.project.observed import gaps_of
from eadem.project.spec import Project

__all__ = ["SHARED", "PowderBlock", "block", "phase_tables", "shared"]

#: The sites of a phase; all that several data sets have of one phase is shared.
SHARED = ("cell", "xyz", "u_iso", "u_aniso", "occupancy")
_PHASE = ("cif", "block", "own")
_DATA = (
    "model",
    "file",
    "format",
    "radiation",
    "wavelength",
    "ratio",
    "polarisation",
    "dispersion",
    "instrument",
    "phases",
    "background",
    "preferred",
    "range",
    "exclude",
    "reach",
    "refine",
    "start",
    "bounds",
    "fixed",
)
_READERS: dict[str, Callable[[Path], Data]] = {
    "xye": read_xye,
    "csv": read_csv,
    "d1a": read_counters,
    "steps": read_steps,
}
#: Wavelengths in Å, coefficients and widths that a pattern may have.
_WAVELENGTHS, _COEFFICIENTS, _REACH = (0.05, 20.0), 60, (1.0, 1000.0)
_WRONG = (DataError, ShapeError, Unsupported)


class PowderBlock(Pattern):
    """A pattern as a block of a project. `file`: where it is from; `left_out`: the number of
    points that are not fitted; `labels`: by site, what its entries are called.
    """

    def __init__(
        self,
        data: Data,
        instrument: Instrument,
        phases: Mapping[str, Phase],
        file: str = "",
        left_out: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(data, instrument, phases, **options)
        self.file, self.left_out, self._options = file, left_out, options

    def again(self) -> PowderBlock:
        """The same with its reflections listed by the present cell and wavelength."""
        data, phases = Data(self.x, self.y, self.sigma), self.phases
        found = (self.file, self.left_out)
        return PowderBlock(data, self.instrument, phases, *found, **self._options)

    def observed(self) -> tuple[Tensor, Tensor, Tensor]:
        """2θ, counts and σ."""
        return self.x, self.y, self.sigma

    def model(self) -> Tensor:
        """The calculated pattern at 2θ."""
        return self.calculated()

    def constrain(self) -> None:
        """Declare the symmetry of every phase as ties."""
        for phase in self.phases.values():
            phase.constrain()

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the entries of sites that have several."""
        found = {"scale": self.names, "march": self.oriented}
        for name, phase in self.phases.items():
            atoms = phase.labels
            found[f"{name}.cell"] = CELL
            found[f"{name}.xyz"] = tuple(f"{a}.{axis}" for a in atoms for axis in "xyz")
            found[f"{name}.u_iso"] = tuple(atoms[i] for i in phase.isotropic)
            found[f"{name}.u_aniso"] = tuple(
                f"{atoms[i]}.U{ij}"
                for i in phase.anisotropic
                for ij in (11, 22, 33, 12, 13, 23)
            )
            found[f"{name}.occupancy"] = atoms
        return found


def phase_tables(project: Project) -> None:
    """Check the tables of the phases. Raises ProjectError with the place."""
    document = project.document
    for name, table in project.phases.items():
        path: Path_ = ("phase", name)
        document.only(table, _PHASE, path)
        if "cif" not in table:
            raise document.error(path, f"phase {name!r} needs cif = …")
        if "block" in table and not isinstance(table["block"], str):
            raise document.error((*path, "block"), "block is the name of a block of the CIF")
        for site in _own(document, path, table):
            if site not in SHARED:
                raise document.error(
                    (*path, "own"), f"a phase has no {site!r:.40}; {nearest(site, SHARED)}"
                )


def _own(document: Document, path: Path_, table: Mapping[str, Any]) -> tuple[str, ...]:
    if table.get("own", []) == []:
        return ()
    return document.strings(table["own"], (*path, "own"))


def shared(
    project: Project, blocks: Mapping[str, PowderBlock], held: frozenset[str] | set[str]
) -> list[tuple[tuple[str, ...], str, Path_]]:
    """What data sets have in common because they name one phase: sites, text and place. What
    none refines is left out.
    """
    found = []
    for name, table in project.phases.items():
        path: Path_ = ("phase", name)
        own = _own(project.document, path, table)
        users = [k for k, block in blocks.items() if name in block.phases]
        for kind in SHARED:
            if len(users) < 2 or kind in own:
                continue
            if not hasattr(blocks[users[0]].phases[name], kind):
                continue
            sites = tuple(f"{user}.{name}.{kind}" for user in users)
            if not held.issuperset(sites):
                found.append((sites, f"*.{name}.{kind}", path))
    return found


def block(project: Project, name: str, table: Mapping[str, Any]) -> PowderBlock:
    """A data set with `model = "powder"`, its phases not yet constrained.

    Raises ProjectError with the place of what is wrong, in the project or in a file.
    """
    document, path = project.document, ("data", name)
    document.only(table, _DATA, path)
    data, shown = _data(project, path, table)
    gaps = gaps_of(document, path, table)
    used = data.without(*gaps)
    if not len(used):
        raise document.error(path, "the ranges leave no observation")
    instrument = _instrument(document, path, table)
    phases = {each: _phase(project, each) for each in _phases(project, path, table)}
    options: dict[str, Any] = {
        "background": _count(document, (*path, "background"), table.get("background", 6)),
        "preferred": _preferred(document, (*path, "preferred"), table, tuple(phases)),
        "width": _within(document, (*path, "reach"), table.get("reach", 30.0), _REACH),
    }
    try:
        out = len(data) - len(used)
        made = PowderBlock(used, instrument, phases, shown, out, **options)
    except _WRONG as error:
        raise document.error(path, str(error)) from None
    _refine(document, path, table, made)
    return made


def _data(project: Project, path: Path_, table: Mapping[str, Any]) -> tuple[Data, str]:
    document = project.document
    if "file" not in table:
        raise document.error(path, f"data set {path[-1]!r} needs file = …")
    real = _file(project, (*path, "file"), table["file"])
    shown: str = table["file"]
    ending = "csv" if shown.lower().removesuffix(".gz").endswith(".csv") else "xye"
    kind = table.get("format", ending)
    if not isinstance(kind, str) or kind not in _READERS:
        raise document.error(
            (*path, "format"), f"there is no format {kind!r:.40}; {nearest(kind, _READERS)}"
        )
    try:
        return _READERS[kind](real), shown
    except DataError as error:
        raise _placed(error, real, shown) from None


def _file(project: Project, path: Path_, name: object) -> Path:
    """A file of the project's folder, not too large even where it is compressed."""
    try:
        real = inside(project.folder, name)
    except ProjectError as error:
        raise project.document.error(path, str(error)) from None
    try:
        with real.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(real) if packed else real.open("rb") as whole:
            size = len(whole.read(LARGEST + 1))
    except (EOFError, OSError, zlib.error) as error:
        raise at(str(name), what=f"cannot be read: {error}") from None
    if size > LARGEST:
        raise at(str(name), what=f"is larger than {LARGEST // 1024:,} kB")
    return real


def _placed(error: Exception, real: Path, shown: str) -> ProjectError:
    """What a reader says of a file, with its place where editors look for it."""
    said = str(error)
    said = said.removeprefix(str(real)).replace(str(real), shown)
    place = re.match(r", line (\d+)(?:, column (\d+))?: ", said)
    if place is None:
        return at(shown, what=said.lstrip(":, "))
    line, column = (None if g is None else int(g) for g in place.groups())
    return at(shown, line, column, said[place.end() :])


def _phases(project: Project, path: Path_, table: Mapping[str, Any]) -> tuple[str, ...]:
    document = project.document
    if not project.phases:
        raise document.error(path, "a powder pattern needs a phase: [phase.NAME] with cif = …")
    if "phases" not in table:
        return tuple(project.phases)
    found = document.strings(table["phases"], (*path, "phases"))
    for name in found:
        if name not in project.phases:
            raise document.error(
                (*path, "phases"),
                f"there is no phase {name!r:.40}; {nearest(name, project.phases)}",
            )
    return tuple(dict.fromkeys(found))


def _phase(project: Project, name: str) -> Phase:
    """A phase, not constrained: the starts of a project come first."""
    path: Path_ = ("phase", name)
    table = project.phases[name]
    real = _file(project, (*path, "cif"), table["cif"])
    try:
        found = Phase.from_cif(real, block=table.get("block"), constrained=False)
    except _WRONG as error:
        raise _cif_error(error, real, table["cif"]) from None
    found.name = name
    return found


def _cif_error(error: Exception, real: Path, shown: str) -> ProjectError:
    """What is wrong with a CIF: by the line that gemmi names, or that of the atom named."""
    said = str(error)
    place = re.search(r"is no CIF: string:(\d+):(\d+)(?:\(\d+\))?: ", said)
    if place:
        at_line, column = (int(g) for g in place.groups())
        return at(shown, at_line, column + 1, f"is no CIF: {said[place.end() :]}")
    said = said.removeprefix(str(real)).replace(str(real), shown).lstrip(":, ")
    atom = re.search(r"atom '([^']+)'", said)
    if atom:
        for i, line in enumerate(_lines(real), 1):
            words = line.split()
            if len(words) > 3 and words[0].strip("\"'") == atom.group(1):
                return at(shown, i, line.index(words[0]) + 1, said)
    return at(shown, what=said)


def _lines(real: Path) -> list[str]:
    raw = real.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    return raw.decode("utf-8-sig", errors="replace").splitlines()


def _instrument(document: Document, path: Path_, table: Mapping[str, Any]) -> Instrument:
    radiation = table.get("radiation")
    if radiation not in ("neutron", "xray"):
        raise document.error(
            (*path, "radiation"), "a powder pattern has radiation = 'neutron' or 'xray'"
        )
    here = (*path, "instrument")
    given: dict[str, Any] = {}
    written = document.table(table.get("instrument", {}), here)
    document.only(written, (*SCALARS, "asymmetry"), here)
    for key, value in written.items():
        place = (*here, key)
        if key == "asymmetry":
            given[key] = _numbers(document, place, value)
        else:
            given[key] = document.number(value, place)
    wavelengths = _wavelengths(document, (*path, "wavelength"), table, radiation)
    try:
        if radiation == "neutron":
            for key in ("ratio", "polarisation", "dispersion"):
                if key in table:
                    raise document.error((*path, key), f"neutrons have no {key}")
            return Instrument.neutron(wavelengths[0], **given)
        for key, least, most in (("ratio", 0.0, 10.0), ("polarisation", 0.0, 1.0)):
            if key in table:
                given[key] = _within(document, (*path, key), table[key], (least, most))
        return Instrument.xray(
            wavelengths, dispersion=_dispersion(document, path, table), **given
        )
    except _WRONG as error:
        raise document.error(here, str(error)) from None


def _wavelengths(
    document: Document, path: Path_, table: Mapping[str, Any], radiation: str
) -> tuple[float, ...]:
    """In Å: as told, or those of Cu Kα."""
    if "wavelength" not in table:
        if radiation == "neutron":
            raise document.error(path, "neutrons need wavelength = … in Å")
        return (1.540562, 1.544398)
    value = table["wavelength"]
    found = _numbers(document, path, value if isinstance(value, list) else [value])
    if len(found) > (1 if radiation == "neutron" else 2):
        raise document.error(
            path,
            "neutrons have one wavelength, X-rays one or the two of a doublet, not "
            f"{len(found)}",
        )
    return tuple(_within(document, path, v, _WAVELENGTHS) for v in found)


def _dispersion(
    document: Document, path: Path_, table: Mapping[str, Any]
) -> dict[str, tuple[float, float]] | None:
    if "dispersion" not in table:
        return None
    here = (*path, "dispersion")
    found = {}
    for element, value in document.table(table["dispersion"], here).items():
        pair = _numbers(document, (*here, element), value)
        if len(pair) != 2:
            raise document.error(
                (*here, element), "the dispersion of an element is [f′, f″] in electrons"
            )
        found[element] = (pair[0], pair[1])
    return found


def _preferred(
    document: Document, path: Path_, table: Mapping[str, Any], names: Sequence[str]
) -> dict[str, tuple[int, ...]] | None:
    if "preferred" not in table:
        return None
    found = {}
    for name, axis in document.table(table["preferred"], path).items():
        here = (*path, name)
        if name not in names:
            raise document.error(
                here, f"there is no phase {name!r:.40} here; {nearest(name, names)}"
            )
        good = isinstance(axis, list) and len(axis) == 3 and any(axis)
        if not good or not all(type(v) is int and abs(v) < 100 for v in axis):
            raise document.error(here, f"a direction is [h, k, l], not {axis!r:.40}")
        found[name] = tuple(axis)
    return found


def _refine(
    document: Document, path: Path_, table: Mapping[str, Any], made: PowderBlock
) -> None:
    """Let what is not refined by itself move: wavelengths, occupancies, what was not given."""
    if "refine" not in table:
        return
    here = (*path, "refine")
    own = dict(made.named_parameters())
    short = {name.rpartition(".")[2]: None for name in own}
    for text in document.strings(table["refine"], here):
        found = matches(text, own) or [n for n in own if n.rpartition(".")[2] == text]
        if not found:
            raise document.error(
                here, f"{text!r:.60} is no parameter; {nearest(text, (*short, *own))}"
            )
        for name in found:
            own[name].requires_grad_(True)


def _numbers(document: Document, path: Path_, value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise document.error(path, f"this is a list of numbers, not {value!r:.40}")
    return tuple(document.number(v, path) for v in value)


def _within(
    document: Document, path: Path_, value: object, limits: tuple[float, float]
) -> float:
    found = document.number(value, path)
    low, high = limits
    if not low <= found <= high:
        raise document.error(path, f"{path[-1]} is from {low:g} to {high:g}, not {found:g}")
    return found


def _count(document: Document, path: Path_, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _COEFFICIENTS:
        raise document.error(
            path, f"background is the number of its coefficients, 1 to {_COEFFICIENTS}"
        )
    return value
