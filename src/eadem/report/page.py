"""A run as one self-contained page: no script, style, font or image from elsewhere.

The page is put together from blocks of HTML text that the other modules of this room make
(`chart`, `mosaic`, `filters`, `table`), and rendered through one template.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any, Protocol

from eadem.errors import MissingPackage
from eadem.report.numbers import value

__all__ = [
    "ClaimLike",
    "Page",
    "Section",
    "claims_table",
    "foldout",
    "pair",
    "ready",
    "render",
    "row",
    "table",
]


class ClaimLike(Protocol):
    """What the claims table reads: a recipe's `Claim`."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def predicate(self) -> str: ...  # noqa: D102
    @property
    def expected(self) -> Any: ...  # noqa: D102
    @property
    def measured(self) -> Any: ...  # noqa: D102
    @property
    def holds(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, a paragraph of plain text and blocks of HTML."""

    id: str
    title: str
    text: str = ""
    blocks: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A whole page. `facts` are (figure, what it is) pairs that stand under the title."""

    title: str
    eyebrow: str
    lede: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    footer: Sequence[str] = field(default=())


def _text(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def render(page: Page) -> str:
    """The page as HTML text. Raises MissingPackage without jinja2."""
    template = (
        _jinja2()
        .Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(_text("page.html.jinja"))
    )
    html: str = template.render(page=page, style=_text("page.css"), script=_text("page.js"))
    return html


def ready() -> None:
    """Raises MissingPackage where `render` would: to be asked before long work begins."""
    _jinja2()


def _jinja2() -> Any:
    try:
        return importlib.import_module("jinja2")
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "a report page needs the package 'jinja2', which is not installed: "
            'pip install "eadem[report]"'
        ) from error


def row(*blocks: str) -> str:
    """Blocks side by side where there is room."""
    return f'<div class="row">{"".join(blocks)}</div>'


def pair(*blocks: str) -> str:
    """Blocks of equal width side by side where there is room."""
    return f'<div class="pair">{"".join(blocks)}</div>'


def foldout(title: str, *blocks: str) -> str:
    """Blocks that open on demand."""
    return f"<details><summary>{escape(title)}</summary>{''.join(blocks)}</details>"


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()
) -> str:
    """A table of text; the columns numbered in `numeric` are set flush right."""
    kind = [' class="n"' if i in numeric else "" for i in range(len(columns))]
    head = "".join(f"<th{k}>{escape(c)}</th>" for k, c in zip(kind, columns, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, cells, strict=True))
        + "</tr>"
        for cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def claims_table(claims: Sequence[ClaimLike]) -> str:
    """The claims: what was said, what was asked of it beforehand, what came out."""
    items = []
    for c in claims:
        verdict = ("holds", "✓ holds") if c.holds else ("fails", "✗ does not hold")
        items.append(
            f'<li class="{verdict[0]}"><div class="verdict"><b>{escape(c.id)}</b>'
            f"<span>{verdict[1]}</span></div><div><p>{escape(c.text)}</p><dl>"
            f"<dt>asked</dt><dd>{escape(c.predicate)}</dd>"
            f"<dt>expected</dt><dd>{escape(value(c.expected))}</dd>"
            f"<dt>measured</dt><dd>{escape(value(c.measured))}</dd></dl></div></li>"
        )
    return f'<ol class="claims">{"".join(items)}</ol>'
