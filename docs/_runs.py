"""Renews, in the page of a system, what its recipe's full run said of its claims.

    python docs/_runs.py FOLDER …

Each folder is that of one run, or holds those of several (as `eadem run --all` leaves them).
The section stands between two marks at the end of `systems/NAME.md`; all else is left alone.
Quick runs are refused: a page speaks of full ones.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.report import numbers

HERE = Path(__file__).parent
BEGIN, END = "<!-- run -->", "<!-- end of run -->"
MARKED = re.compile(f"{BEGIN}.*{END}\n", re.DOTALL)
SPECIAL = re.compile(r"([\\`*_\[\]])")


def runs(folders: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What the runs in the folders measured."""
    for folder in folders:
        held = [folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))]
        found = [path for path in held if path.is_file() and ".partial" not in path.parent.name]
        if not found:
            raise SystemExit(f"{folder} holds no metrics.json of a finished run")
        yield from (json.loads(path.read_text(encoding="utf-8")) for path in found)


def written(text: str) -> str:
    r"""As Markdown that shows `text` as it is.

    >>> written("|W_dec| < 1")
    '|W\\_dec| &lt; 1'
    """
    return SPECIAL.sub(r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def read(text: str) -> str:
    """What `written` was given."""
    plain = re.sub(r"\\([\\`*_\[\]])", r"\1", text)
    return plain.replace("&lt;", "<").replace("&amp;", "&")


def shown(value: object) -> str:
    """A value of a claim; with names, one after the other."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {numbers.value(one)}" for key, one in value.items())
    return numbers.value(value)


def section(metrics: Mapping[str, Any]) -> str:
    """The claims of a run and what came out, between the marks."""
    lines = [BEGIN, "## Claims, as the full run left them", ""]
    command = f"eadem run {metrics['recipe']}"
    lines += [f"`{command}` at seed {metrics['seed']}; renewed by `make docs-studies`.", ""]
    for claim in metrics["claims"]:
        verdict = "holds" if claim["holds"] else "does not hold"
        lines += [f"**{claim['id']} {verdict}.** {written(claim['text'])}", ""]
        lines.append(f"- asked: {written(claim['predicate'])}")
        for key in ("expected", "measured"):
            lines.append(f"- {key}: {written(shown(claim[key]))}")
        lines.append("")
    return "\n".join([*lines[:-1], END, ""])


def renewed(text: str, metrics: Mapping[str, Any]) -> str:
    """The page with that section, in its place or at its end."""
    made = section(metrics)
    if MARKED.search(text):
        return MARKED.sub(lambda _: made, text)
    return f"{text.rstrip()}\n\n{made}"


def main(folders: Sequence[str]) -> None:
    """Renew the pages of the runs in `folders`."""
    if not folders:
        raise SystemExit("which runs? python docs/_runs.py FOLDER …")
    for metrics in runs([Path(folder) for folder in folders]):
        page = HERE / "systems" / f"{metrics['recipe']}.md"
        if metrics["quick"]:
            raise SystemExit(f"the run of {metrics['recipe']} is a quick one; run it in full")
        if not page.is_file():
            print(f"{metrics['recipe']}: no page")
            continue
        page.write_text(renewed(page.read_text(encoding="utf-8"), metrics), encoding="utf-8")
        held = sum(claim["holds"] for claim in metrics["claims"])
        print(f"{metrics['recipe']}: {held} of {len(metrics['claims'])} claims hold")


if __name__ == "__main__":
    main(sys.argv[1:])
