"""The examples of the guide run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide"
SPEAKS = re.compile(r"print\(.*\)  # (.+)")


@pytest.mark.parametrize(
    "page", ["ties.md", "lifecycle.md", "symmetry.md", "evidence.md", "fits.md", "powder.md"]
)
def test_examples(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (GUIDE / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    code = "\n".join(blocks)
    exec(compile(code, page, "exec"), {"__name__": "guide"})
    printed = capsys.readouterr().out.splitlines()
    for said in SPEAKS.findall(code):
        assert said in printed
