"""The guide's code runs as printed."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "hmm.md"


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "hmm_guide.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("hmm_guide")
    assert capsys.readouterr().out.split() == [
        *("True", "16", "True", "1", "True"),
        *("the", "tie", "merges", "states", "True"),
        *("2.5", "2.5"),
        *("5", "True", "MMMMMXXMMMMMMM", "0.5"),
    ]
