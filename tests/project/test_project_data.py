"""Data files: what is read, and what is refused with its place."""

from __future__ import annotations

import os

import numpy as np
import pytest

from eadem.project.data import inside, read_columns
from eadem.project.errors import ProjectError


def read(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_columns(path, name)


@pytest.mark.parametrize(
    "text",
    [
        "t,s\n1,2\n3,4.5\n",
        "t;s\r\n1;2\r\n3;4.5\r\n",
        "t\ts\n1\t2\n\n3\t4.5",
        "  t   s\n 1 2\n 3   4.5\n",
        '# made\n"t","s"\n"1","2"\n3,4.5\n',
        "\ufefft,s\n1,2\n# left out\n! this too\n3,4.5\n",
        "t, s\n1, 2\n3, 4.5e0\n",
    ],
)
def test_tables_are_read(tmp_path, text):
    found = read(tmp_path, text)
    assert found.names == ("t", "s")
    np.testing.assert_array_equal(found.numbers("t"), [1, 3])
    np.testing.assert_array_equal(found.numbers(2), [2, 4.5])


def test_columns_without_names_have_numbers(tmp_path):
    found = read(tmp_path, "1 2 0.1\n3 4 0.2\n", "a.xye")
    assert found.names == ("1", "2", "3")
    np.testing.assert_array_equal(found.numbers(3), [0.1, 0.2])


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("x,y\n1,2\n3,abc\n", "a.csv:3:3", "'abc' is not a number"),
        ("x,y\n1,2\n 3 , 4x\n", "a.csv:3:6", "'4x' is not a number"),
        ("x,y\n1,\n", "a.csv:2:3", "a number is missing"),
        ("x,y\n1,nan\n", "a.csv:2:3", "'nan' is not a number"),
        ("x,y\n1,inf\n", "a.csv:2:3", "'inf' is not a number"),
        ("x,y\n1,1_0\n", "a.csv:2:3", "'1_0' is not a number"),
        ("x y\n1 2\n10 zwei\n", "a.csv:3:4", "'zwei' is not a number"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(tmp_path, text, place, what):
    found = read(tmp_path, text)
    with pytest.raises(ProjectError) as caught:
        found.numbers("y")
    assert str(caught.value).startswith(f"{place}: {what}")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("x,y\n1,2\n3\n", "a.csv:3:1: has 1 column where the file has 2"),
        ("x,y\n1,2,3\n", "a.csv:2:5: has 3 columns"),
        ("x,x\n1,2\n", "a.csv:1: two columns are called 'x'"),
        ("", "a.csv: has no rows"),
        ("# nothing\n", "a.csv: has no rows"),
        ("x,y\n", "a.csv: has a line of names and no rows"),
        (b"x,y\n1,\xff\n", "a.csv:2:3: is not text in UTF-8"),
        (b"x,y\n1,2\n3,\0\n", "a.csv:3:3: holds a zero byte"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, start):
    with pytest.raises(ProjectError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(start)


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("eadem.project.data.LARGEST", 100)
    with pytest.raises(ProjectError, match="larger"):
        read(tmp_path, "x,y\n" + "1,2\n" * 100)
    monkeypatch.setattr("eadem.project.data.LARGEST", 10_000)
    monkeypatch.setattr("eadem.project.data.ROWS", 50)
    with pytest.raises(ProjectError, match="more than 50 rows"):
        read(tmp_path, "x,y\n" + "1,2\n" * 100)


@pytest.fixture
def folders(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (own / "a.csv").write_text("1 2\n")
    (own / "sub").mkdir()
    (own / "sub" / "b.csv").write_text("1 2\n")
    (other / "secret.csv").write_text("1 2\n")
    return own, other


def test_files_of_the_folder_are_found(folders):
    own, _ = folders
    assert inside(own, "a.csv") == (own / "a.csv").resolve()
    assert inside(own, "sub/b.csv").name == "b.csv"
    (own / "ln.csv").symlink_to(own / "a.csv")
    assert inside(own, "ln.csv").name == "a.csv"


@pytest.mark.parametrize(
    "name",
    [
        "../other/secret.csv",
        "sub/../../other/secret.csv",
        "sub/../a.csv",
        "/etc/passwd",
        "//etc/passwd",
        "\\\\server\\share",
        "C:\\data.csv",
        "c:data.csv",
        "..\\other\\secret.csv",
        "~/a.csv",
        "a\0.csv",
        "",
        ".",
        "sub",
        "..",
        "nothing.csv",
        "a.csv/b",
        7,
        None,
        ["a.csv"],
    ],
)
def test_no_other_file_is_found(folders, name):
    with pytest.raises(ProjectError) as caught:
        inside(folders[0], name)
    assert "secret" not in str(caught.value) or "secret" in str(name)


def test_links_out_of_the_folder_are_refused(folders):
    own, other = folders
    (own / "file.csv").symlink_to(other / "secret.csv")
    (own / "folder").symlink_to(other)
    (own / "round").symlink_to(own / "round")
    for name in ("file.csv", "folder/secret.csv", "round"):
        with pytest.raises(ProjectError):
            inside(own, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file(folders):
    os.mkfifo(folders[0] / "pipe.csv")
    with pytest.raises(ProjectError, match="is not a file"):
        inside(folders[0], "pipe.csv")
