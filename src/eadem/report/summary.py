"""A model's ties as a table: sites, maps, owners, and what they come to.

>>> import eadem
>>> model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 4)})
>>> _ = eadem.tie(model, "b.weight", to="a.weight", via=eadem.Transpose())
>>> found = summary(model)
>>> found.groups[0].owners, found.groups[0].free, found.groups[0].expanded
(('a.weight',), 12, 24)
>>> found.free, found.expanded
(19, 31)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape

import torch
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import nn

from eadem._plan import Plan
from eadem.bind import counts, kept_sites, resolved
from eadem.errors import RecordError, TooLarge
from eadem.maps import LinearMap
from eadem.report import terminal
from eadem.report.numbers import count, ratio
from eadem.report.sites import map_texts
from eadem.store import apply
from eadem.store.checkpoint import Checkpoint, checkpoint, recorded_arrays

__all__ = ["GroupRow", "Summary", "summary", "summary_of_file", "summary_of_record"]

_SHOWN = 8
_REAL = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class GroupRow:
    """What one connected set of ties joins: `sites` and `maps` side by side."""

    sites: tuple[str, ...]
    maps: tuple[str, ...]
    owners: tuple[str, ...]
    free: int
    expanded: int


@dataclass(frozen=True)
class Summary:
    """The ties of a model. Prints as a table, on a terminal and in a notebook.

    `groups`: one row for each connected set of ties; `untied` parameters hold `own` values;
    `free`, `stored` and `expanded` are totals over tied and untied.
    """

    title: str
    groups: tuple[GroupRow, ...]
    untied: int
    own: int
    free: int
    stored: int
    expanded: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        out = Table(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
            show_footer=True,
        )  # fmt: skip
        out.add_column("site", "total", overflow="fold")
        out.add_column("map", "", overflow="fold")
        out.add_column("values held by", "", overflow="fold")
        for name, total in (("free", self.free), ("expanded", self.expanded)):
            out.add_column(name, count(total), justify="right", no_wrap=True)
        for row in self.groups:
            lines = list(_lines(row))
            for i, (site, phi) in enumerate(lines):
                figures = (", ".join(row.owners), count(row.free), count(row.expanded))
                out.add_row(
                    site, phi, *(figures if i == 0 else ("", "", "")),
                    end_section=i == len(lines) - 1,
                )  # fmt: skip
        if self.untied:
            out.add_row(self._own(), "", "themselves", count(self.own), count(self.own))
        yield out
        yield self._verdict()

    def _own(self) -> str:
        return f"{count(self.untied)} untied parameter{'s' if self.untied != 1 else ''}"

    def _verdict(self) -> str:
        text = f"{count(self.free)} free values stand for {count(self.expanded)}"
        if self.free < self.expanded:
            text += f" ({ratio(self.expanded, self.free)})"
        if self.stored != self.free:
            text += f"; {count(self.stored)} numbers are stored"
        return text + "."

    def __str__(self) -> str:
        return terminal.plain(self)

    def _repr_html_(self) -> str:
        rows = []
        for row in self.groups:
            sites = "<br>".join(f"<code>{escape(s)}</code>" for s, _ in _lines(row))
            maps = "<br>".join(f"<code>{escape(m)}</code>" for _, m in _lines(row))
            owners = "<br>".join(f"<code>{escape(o)}</code>" for o in row.owners)
            rows.append((sites, maps, owners, count(row.free), count(row.expanded)))
        if self.untied:
            rows.append(
                (escape(self._own()), "", "themselves", count(self.own), count(self.own))
            )
        rows.append(("<b>total</b>", "", "", count(self.free), count(self.expanded)))
        head = "".join(
            f"<th style='text-align:{'right' if i > 2 else 'left'}'>{c}</th>"
            for i, c in enumerate(("site", "map", "values held by", "free", "expanded"))
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align:{'right' if i > 2 else 'left'};vertical-align:top'>"
                f"{cell}</td>"
                for i, cell in enumerate(cells)
            )
            + "</tr>"
            for cells in rows
        )
        return (
            f"<table><caption>{escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{escape(self._verdict())}</p>"
        )


def _lines(row: GroupRow) -> Iterable[tuple[str, str]]:
    """The sites with their maps, shortened to _SHOWN lines."""
    pairs = list(zip(row.sites, row.maps, strict=True))
    if len(pairs) <= _SHOWN:
        return pairs
    rest = len(pairs) - _SHOWN + 1
    return [*pairs[: _SHOWN - 1], (f"… and {count(rest)} more", "")]


def summary(model: nn.Module) -> Summary:
    """The ties of a model, with free, stored and expanded counts."""
    plan = resolved(model)
    found = of_plan(type(model).__name__, plan, map_texts(model))
    if not kept_sites(model):
        return found
    return replace(found, free=counts(model).free)


def summary_of_file(path: str | os.PathLike[str]) -> Summary:
    """The same for a file that `eadem.save` wrote, from its record and its tensors' shapes.

    A file does not say which of its tensors are buffers: those of floating point count as
    untied parameters. Raises RecordError where the file is not one of Eadem's.
    """
    found = checkpoint(path, equal=False)
    if found.record is None:
        raise RecordError(f"{path} has no record of ties: it was not written by eadem.save")
    return summary_of_record(found)


def summary_of_record(found: Checkpoint) -> Summary:
    """The same for a checkpoint with a record. Raises RecordError where they do not fit."""
    assert found.record is not None
    shapes = {name: tuple(shape) for name, shape in found.record["sites"].items()}
    for t in found.tensors:
        if t.name not in shapes and t.dtype in _REAL:
            shapes[t.name] = t.shape
    model = _skeleton(shapes)
    if found.record["ties"]:
        apply(model, found.record, recorded_arrays(found))
    return replace(summary(model), title=found.path.name)


def _skeleton(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Parameters of these names and shapes and nothing else; they take no memory."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, attr = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(attr, nn.Parameter(torch.empty(shape, device="meta")))
    return root


def of_plan(title: str, plan: Plan, maps: Mapping[str, Sequence[str]]) -> Summary:
    """The same from a resolved plan and the maps declared at each site."""
    rows = tuple(_row(plan, group, maps) for group in plan.groups)
    tied = {name for group in plan.groups for name in group}
    own = [math.prod(shape) for name, shape in plan.shapes.items() if name not in tied]
    return Summary(
        title=title,
        groups=rows,
        untied=len(own),
        own=sum(own),
        free=sum(own) + sum(row.free for row in rows),
        stored=sum(math.prod(o.shape) for o in plan.owners.values()),
        expanded=sum(own) + sum(row.expanded for row in rows),
    )


def _row(plan: Plan, group: Sequence[str], maps: Mapping[str, Sequence[str]]) -> GroupRow:
    owners = tuple(name for name in group if name in plan.owners)
    free = 0
    if any(plan.owners[name].own is not None for name in owners):
        part = plan.part(group)
        generator = torch.Generator().manual_seed(0)
        theta = torch.rand(part.in_shape, generator=generator, dtype=torch.float64)
        with suppress(TooLarge):
            free = part.linearize(part.general(theta, generator)).rank
    for name in owners if not free else ():
        source = plan.owners[name].source
        stored = math.prod(plan.owners[name].shape)
        free += source.rank if isinstance(source, LinearMap) else stored
    return GroupRow(
        sites=tuple(group),
        maps=tuple(" and ".join(dict.fromkeys(maps.get(s, ("Same()",)))) for s in group),
        owners=owners,
        free=free,
        expanded=sum(math.prod(plan.shapes[s]) for s in group),
    )
