"""The examples of the README and the guide run exactly as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import eadem

ROOT = Path(__file__).resolve().parents[1]
SPEAKS = re.compile(r"print\(.*\)  # (.+)")


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/guide/start.md"])
def test_examples_run_as_printed(page: str, tmp_path: Path) -> None:
    """One process a page, warnings are errors, and a printed comment is what is printed."""
    code = "\n".join(examples(page))
    assert "eadem.tie(" in code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(eadem.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for said in SPEAKS.findall(code):
        assert said in lines


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", text, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_links_lead_somewhere() -> None:
    for page in ["README.md", "CONTRIBUTING.md", "docs/index.md", "docs/guide/start.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if not link.startswith("https://"):
                assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
