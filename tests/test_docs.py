"""The pages about the idea: the notebook runs, both languages say the same, links lead on."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eadem
from eadem.recipes import recipes

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FIGURE = re.compile(r"\d[\d,.]*\d|\d")


def test_the_notebook_runs_in_order() -> None:
    notebook = json.loads((DOCS / "idea.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) > 5
    assert not any(c.get("outputs") for c in notebook["cells"])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            "\n".join(cells),
        ],
        env=os.environ | {"PYTHONPATH": str(Path(eadem.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 free of 840")


def rows(page: str) -> list[tuple[str, str]]:
    """Recipe and figures of every sentence."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^\|.*\| \[([\w-]+)\]\(systems/.*?\) \| (.*) \|$", text, re.MULTILINE)
    return [(name, figure) for name, figure in found]


def test_both_languages_show_the_same_recipes_and_figures() -> None:
    english, chinese = rows("idea.md"), rows("idea.zh.md")
    assert [name for name, _ in english] == [name for name, _ in chinese]
    assert len(english) > 15
    assert {name for name, _ in english} <= set(recipes())
    for (name, a), (_, b) in zip(english, chinese, strict=True):
        assert set(FIGURE.findall(b)) <= set(FIGURE.findall(a)) | {"1", "50", "12"}, name


def test_figures_of_the_idea_are_those_of_the_studies_pages() -> None:
    for name, figure in rows("idea.md"):
        page = (DOCS / "systems" / f"{name}.md").read_text(encoding="utf-8")
        for number in re.findall(r"\d+\.\d{3,}|\d+,\d{3}", figure):
            assert number in page, (name, number)


@pytest.mark.parametrize(
    "page", ["README.md", "README.zh.md", "docs/idea.md", "docs/idea.zh.md"]
)
def test_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    links = LINK.findall(path.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (path.parent / link).exists(), link


def test_the_chinese_readme_has_the_same_example() -> None:
    fence = re.compile(r"```python\n(.*?)```", re.DOTALL)
    one, other = (
        fence.findall((ROOT / f).read_text(encoding="utf-8"))
        for f in ("README.md", "README.zh.md")
    )
    assert one == other


def script(name: str) -> Any:
    """One of the files that the site is built with."""
    spec = importlib.util.spec_from_file_location(f"site{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hooks() -> Any:
    """What the site is built with."""
    return script("_hooks")


def test_every_recipe_with_a_page_stands_beside_its_claims() -> None:
    table = hooks()._claims()
    for line in ("| C05 |", "| C28 |"):
        assert "mnist.md" in next(t for t in table.split("\n") if t.startswith(line))
    for name in recipes():
        if (DOCS / "systems" / f"{name}.md").exists():
            assert f"({name}.md)" in table, name


def test_the_reference_lists_every_public_name() -> None:
    module = hooks()
    pages = "\n".join(
        module.on_page_markdown(p.read_text(encoding="utf-8"), page=_Page(p.name))
        for p in (DOCS / "reference").glob("*.md")
    )
    exported = module.exported((ROOT / "src" / "eadem" / "__init__.py").read_text())
    for name, home in exported:
        if home != "errors":
            assert f"::: eadem.{name}" in pages, name
    assert "::: eadem.hmm.PairHMM" in pages


class _Page:
    """What a hook reads of a page of the site."""

    def __init__(self, name: str) -> None:
        self.file = self
        self.src_uri = f"reference/{name}"


def said() -> list[re.Pattern[str]]:
    """Every text in the recipes' sources; what is put into an f-string may be anything."""
    found = set()
    for file in (ROOT / "src" / "eadem" / "recipes").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            values = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [str(v.value) if isinstance(v, ast.Constant) else "" for v in values]
            if sum(map(len, texts)) > 8:
                found.add(".*?".join(re.escape(text) for text in texts))
    return [re.compile(one, re.DOTALL) for one in sorted(found)]


def test_every_page_ends_with_its_recipes_claims_and_what_the_full_run_made_of_them() -> None:
    runs, texts = script("_runs"), said()
    claim = re.compile(
        r"\*\*(C\d\d) (?:holds|does not hold)\.\*\* (.*)\n\n"
        r"- asked: (.*)\n- expected: .*\n- measured: .*\n"
    )
    for name in recipes():
        page = DOCS / "systems" / f"{name}.md"
        marked = runs.MARKED.search(page.read_text(encoding="utf-8"))
        assert marked, f"{name}: no section of its full run; docs/_runs.py writes it"
        claims = claim.findall(marked[0])
        assert claims, name
        for key, *parts in claims:
            assert key in hooks()._measured(page), (name, key)
            for part in map(runs.read, parts):
                assert any(text.fullmatch(part) for text in texts), (name, part)


def test_a_page_is_renewed_between_its_marks_and_nowhere_else() -> None:
    runs = script("_runs")
    claim = {
        "id": "C01",
        "text": "W_a = |b| < *c*",
        "predicate": "≤ [1]",
        "expected": {"one": 1.0, "two": [2, 3]},
        "measured": None,
        "holds": False,
    }
    metrics = {"recipe": "a", "seed": 3, "quick": False, "claims": [claim]}
    once = runs.renewed("# A page\n\nWords.\n", metrics)
    assert once.startswith("# A page\n\nWords.\n\n<!-- run -->\n")
    assert "**C01 does not hold.** W\\_a = |b| &lt; \\*c\\*" in once
    assert "- expected: one: 1.00; two: 2, 3\n- measured: –\n" in once
    assert runs.read(runs.written(claim["text"])) == claim["text"]
    assert runs.renewed(once, metrics) == once
    after = runs.renewed(f"{once}\nMore.\n", metrics | {"claims": [claim | {"holds": True}]})
    assert after == once.replace("does not hold", "holds") + "\nMore.\n"


def test_a_page_is_not_written_from_a_quick_run(tmp_path: Path) -> None:
    runs = script("_runs")
    metrics = {"recipe": "siamese", "seed": 0, "quick": True, "claims": []}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SystemExit, match="quick"):
        runs.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no"):
        runs.main([str(tmp_path / "nothing")])


def test_every_page_shows_a_picture_of_its_recipes_run(tmp_path: Path) -> None:
    figures = script("_figures")
    assert set(figures.PICTURES) == set(recipes())
    shown = re.compile(r"!\[([^\]]{12,})\]\((figures/[\w-]+\.png)\)\{ width=520 \}")
    for name in recipes():
        text = (DOCS / "systems" / f"{name}.md").read_text(encoding="utf-8")
        marked = figures.MARKED.search(text)
        assert marked, f"{name}: no picture; docs/_figures.py takes it"
        found = shown.search(marked[0])
        assert found, name
        data = (DOCS / "systems" / found[2]).read_bytes()
        assert data.startswith(b"\x89PNG"), name
        assert len(data) < 60_000, name
        assert text.index(figures.BEGIN) < text.index(figures.RUN)
        assert figures.shown(text, name, found[1]) == text
    metrics = {"recipe": "siamese", "seed": 0, "quick": True, "claims": []}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SystemExit, match="quick"):
        figures.main([str(tmp_path)])
