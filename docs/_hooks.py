"""What the site is built with: its list of systems, tables of claims, names of the API."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / "eadem"
CLAIM = re.compile(r"\bC(\d\d)(?:–C(\d\d))?")
NAMES = re.compile(r"<!-- names: (\S+)(.*?) -->")


def on_config(config: Any) -> Any:
    """Every page of a system is in the navigation, by its title."""
    for entry in config["nav"]:
        if "Systems" in entry:
            entry["Systems"] = ["systems/index.md", *(f"systems/{p.name}" for p in _systems())]
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Tables and names take the place of their marks."""
    markdown = NAMES.sub(lambda m: _names(m[1], m[2].split()), markdown)
    if page.file.src_uri == "systems/index.md":
        markdown = markdown.replace("<!-- claims -->", _claims())
    return markdown


def _systems() -> list[Path]:
    pages = [p for p in (HERE / "systems").glob("*.md") if p.stem != "index"]
    return sorted(pages, key=lambda p: _title(p).lower())


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()


def _statements() -> dict[str, str]:
    """By claim id, as the recipes' own list has them; read without importing torch."""
    tree = ast.parse((SOURCE / "recipes" / "_statements.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise ValueError("recipes/_statements.py declares no statements")


def _measured(page: Path) -> set[str]:
    """The claims that the page's recipe, or the page, names."""
    stem = page.stem.replace("-", "_")
    files = [SOURCE / "recipes" / f"{stem}.py", SOURCE / "recipes" / f"_{stem}_claims.py", page]
    found = set()
    for file in files:
        for match in CLAIM.finditer(file.read_text(encoding="utf-8") if file.exists() else ""):
            first, last = int(match[1]), int(match[2] or match[1])
            found |= {f"C{n:02}" for n in range(first, last + 1)}
    return found


def _claims() -> str:
    pages = {page: _measured(page) for page in _systems()}
    lines = ["| | statement | measured in |", "|---|---|---|"]
    for key, statement in _statements().items():
        links = [f"[{_title(p)}]({p.name})" for p, ids in pages.items() if key in ids]
        lines.append(f"| {key} | {statement} | {', '.join(links) or 'no page yet'} |")
    return "\n".join(lines)


def _names(package: str, homes: list[str]) -> str:
    """A mkdocstrings block for every name that a package exports from the rooms `homes`."""
    file = SOURCE.joinpath(*package.split(".")[1:], "__init__.py")
    blocks = [
        f"::: {package}.{name}"
        for name, home in exported(file.read_text(encoding="utf-8"))
        if not homes or any(home == h or home.startswith(f"{h}.") for h in homes)
    ]
    return "\n\n".join(blocks)


def exported(text: str) -> list[tuple[str, str]]:
    """Names written `from .home import name as name`, with their home, in order."""
    return [
        (alias.name, node.module or "")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if alias.asname == alias.name
    ]
