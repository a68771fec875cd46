"""The page: one line a row, one cell a way, from what the probes found."""

from __future__ import annotations

import html
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from .run import Found
from .table import rows
from .verdict import Verdict
from .ways import GENERAL, NATIVE, Way

__all__ = ["page", "problems"]

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "peft",
    "torchao",
    "onnxruntime",
    "lightning",
    "keras",
)

HEAD = """---
hide:
  - navigation
  - toc
---

# What becomes of a tie

Written by `make bench` (`python -m benchmarks lifecycle`) with {versions}.
Each probe ties a model, does to it what the row says, in a process of its own, and then asks
the same of every way of tying: do the sites still agree? Does a change of the parameters, and a
training step, move every site as the tie says? Is each free value counted, stored and stepped
once? Do the outputs follow the values that are read? Nothing in the table is typed in by hand.

**The ties**: *equality* (embedding and output layer), *transpose* (autoencoder), *kernels*
(three sites, one kernel in three poses), *part* (two rows of one tensor), *palindrome*
(structure in one site); rows about transformers use its own models.

**The ways**: Eadem; in plain torch an alias, for equality, or a second `Parameter` on the
transposed storage, for the transpose; `torch.nn.utils.parametrize`, with a site that reads its
owner; and the library that the row is about, with the ties that it makes itself.

- ✓ **kept**: the tie holds.
- ⊘ **refused**: an error that speaks of it, before anything was changed.
- ! **raises**: an error about something else, or one that leaves the model changed.
- ✗ **untied**: the sites go apart.
- ✗ **wrong values**: gradients, steps, outputs or stored values are not those of the tie.
- ✗ **stale**: something goes on with an old value.
- ✗ **counted twice**: one free value is counted, stored or stepped as two.

{summary}

"""


def page(found: Sequence[Found]) -> str:
    """The whole page, in Markdown."""
    numbers = sorted({f.job.row for f in found})
    titles = {r.number: r.title for r in rows()}
    ways = (*GENERAL, NATIVE)
    lines = [
        "| # | the model is … | " + " | ".join(_heading(w) for w in ways) + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for n in numbers:
        mine = [f for f in found if f.job.row == n]
        cells = [_cell([f for f in mine if f.job.way == w.key]) for w in ways]
        lines.append(f"| {n} | {titles[n]} | " + " | ".join(cells) + " |")
    head = HEAD.format(versions=_versions(), summary=_summary(found, numbers))
    return head + "\n".join(lines) + "\n"


def problems(found: Iterable[Found]) -> list[str]:
    """What Eadem does that its row does not allow."""
    return [
        f"row {f.job.row} {f.case} ({f.declaration}): {f.outcome.verdict.value}: "
        f"{f.outcome.detail}"
        for f in found
        if f.job.way == "eadem" and not f.allowed
    ]


def _heading(way: Way) -> str:
    return way.title


def _versions() -> str:
    parts = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"no {name}")
    return ", ".join(parts)


def _summary(found: Sequence[Found], numbers: Sequence[int]) -> str:
    """How many rows each way holds throughout: kept, or refused."""
    lines = [
        "| | rows | all kept | kept or refused | something lost or raised |",
        "|---|---|---|---|---|",
    ]
    for way in GENERAL:
        seen = [_verdicts(found, n, way) for n in numbers]
        seen = [v for v in seen if v]
        kept = sum(v == {Verdict.KEPT} for v in seen)
        held = sum(v <= {Verdict.KEPT, Verdict.REFUSED} for v in seen)
        lines.append(
            f"| {_heading(way)} | {len(seen)} | {kept} | {held} | {len(seen) - held} |"
        )
    return "\n".join(lines)


def _verdicts(found: Sequence[Found], row: int, way: Way) -> set[Verdict]:
    mine = {f.outcome.verdict for f in found if f.job.row == row and f.job.way == way.key}
    return mine - {Verdict.NOT_APPLICABLE}


def _cell(found: list[Found]) -> str:
    """The verdicts of one cell, what costs most first, each with where and what was seen."""
    if not found:
        return ""
    said = [f for f in found if f.outcome.verdict is not Verdict.NOT_APPLICABLE] or found[:1]
    groups: dict[tuple[str, Verdict], list[Found]] = {}
    for f in sorted(said, key=lambda f: -f.outcome.verdict.cost):
        groups.setdefault((f.library, f.outcome.verdict), []).append(f)
    parts = []
    for (library, verdict), group in groups.items():
        beside = [f for f in said if f.library == library]
        where = "" if len(group) == len(beside) else _where(group, beside)
        name = f"{library}: " if library else ""
        text = f"{name}{verdict.symbol} **{verdict.value}**"
        detail = next((f.outcome.detail for f in group if f.outcome.detail), "")
        small = ". ".join(t for t in (where, detail) if t)
        parts.append(text + (f"<br><small>{_plain(small)}</small>" if small else ""))
    return "<br>".join(parts)


def _where(group: list[Found], among: list[Found]) -> str:
    """Which of the probes, in few words: by case, by declaration, or by both."""
    cases = list(dict.fromkeys(f.case for f in group))
    ties = {c: [f.declaration for f in group if f.case == c] for c in cases}
    whole = {c: [f.declaration for f in among if f.case == c] for c in cases}
    if all(ties[c] == whole[c] for c in cases):
        return ", ".join(c for c in cases if c)
    every = list(dict.fromkeys(f.case for f in among))
    if cases == every and len({tuple(t) for t in ties.values()}) == 1:
        return ", ".join(ties[cases[0]])
    return "; ".join(
        c
        if ties[c] == whole[c] and c
        else f"{c} ({', '.join(ties[c])})"
        if c
        else ", ".join(ties[c])
        for c in cases
    )


def _plain(text: str) -> str:
    """Text that neither Markdown nor HTML reads anything into."""
    escaped = html.escape(text, quote=False)
    for sign in "\\`*_[]|":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return escaped
