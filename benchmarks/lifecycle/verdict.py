"""What a probe found, as one of a few words and a line."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

__all__ = ["Outcome", "Verdict", "short"]


class Verdict(enum.Enum):
    """In order of how much it costs the user, the least first."""

    NOT_APPLICABLE = "not applicable"
    KEPT = "kept"
    REFUSED = "refused"
    TWICE = "counted twice"
    STALE = "stale"
    WRONG = "wrong values"
    UNTIED = "untied"
    RAISES = "raises"

    @property
    def symbol(self) -> str:
        """A sign for the table."""
        return {"kept": "✓", "refused": "⊘", "raises": "!", "not applicable": "–"}.get(
            self.value, "✗"
        )

    @property
    def cost(self) -> int:
        """Rank in the order above."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Outcome:
    """A verdict, and the line that says what was seen."""

    verdict: Verdict
    detail: str = ""


def short(text: str, limit: int = 150) -> str:
    """The beginning of a message on one line, without addresses and temporary paths."""
    line = " ".join(text.split())
    line = re.sub(r"0x[0-9a-f]{6,}", "0x…", line)
    line = re.sub(r"/\S+/([\w.-]+)", r"\1", line)
    if len(line) <= limit:
        return line
    cut = line[:limit].rsplit(" ", 1)[0]
    return cut.rstrip(",;:(") + " …"
