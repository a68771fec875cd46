"""Docstrings as the site shows them: examples of the interpreter stand in blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*\n*)+", re.MULTILINE)


def fenced(text: str) -> str:
    r"""`text` with its examples in fences.

    >>> print(fenced("One.\n\n>>> 1 + 1\n2"))
    One.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    return EXAMPLE.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n\n", text).rstrip()


class Fences(griffe.Extension):
    """Applies `fenced` to every docstring that is read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            # Cross-references are written as links only; a[b][c] is code.
            value = fenced(obj.docstring.value)
            obj.docstring.value = re.sub(r"(?<=\])\[(?=[^\]]*\])", r"\\[", value)
