"""The guide's code runs as printed."""

import re
from pathlib import Path

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "maps.md"


def test_the_guide_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "maps_guide.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("maps_guide")
