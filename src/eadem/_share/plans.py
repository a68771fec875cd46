"""A sharing plan as plain data: which matrices share what, at which rank; TOML, both ways."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eadem.errors import DataError, NoSuchSite, nearest

__all__ = ["METHODS", "Entry", "Plan", "read_plan"]

METHODS = ("factored", "tied")


@dataclass(frozen=True)
class Entry:
    """One group of sites.

    "factored": every matrix is its own coefficients times one basis of `rank` rows, which all
    have in common. "tied": all are one matrix, each with a remainder of its own of `rank`
    (0: none).
    """

    method: str
    sites: tuple[str, ...]
    rank: int


@dataclass(frozen=True)
class Plan:
    """Entries, and what they were made for. Sites in no entry keep their own values.

    `metric`: what errors are weighed by: "loss" (inputs and the loss's gradients) or "inputs"
    (inputs alone). `name` says which of the compared methods it is.
    """

    entries: tuple[Entry, ...]
    keep: float = 1.0
    metric: str = "loss"
    name: str = "by hand"

    def toml(self) -> str:
        """The plan as TOML text that `read_plan` reads.

        >>> print(Plan((Entry("tied", ("a.weight", "b.weight"), 0),)).toml())
        name = "by hand"
        keep = 1.0
        metric = "loss"
        <BLANKLINE>
        [[tie]]
        method = "tied"
        rank = 0
        sites = ["a.weight", "b.weight"]
        <BLANKLINE>
        """
        lines = [
            f"name = {_quoted(self.name)}",
            f"keep = {float(self.keep)!r}",
            f"metric = {_quoted(self.metric)}",
            "",
        ]
        for e in self.entries:
            sites = ", ".join(_quoted(s) for s in e.sites)
            lines += ["[[tie]]", f"method = {_quoted(e.method)}", f"rank = {e.rank}"]
            lines += [f"sites = [{sites}]", ""]
        return "\n".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def read_plan(path: str | Path) -> Plan:
    """A plan from a TOML file. Raises DataError naming the place where it cannot be read."""
    where = Path(path)
    try:
        found = tomllib.loads(where.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is no TOML: {error}") from error
    known = {"name", "keep", "metric", "tie"}
    for key in found.keys() - known:
        raise DataError(f"{where} has the key {key!r}; {nearest(key, known)}")
    ties = found.get("tie", [])
    if not isinstance(ties, list) or not ties:
        raise DataError(f"{where} has no [[tie]]; each has a method, sites and a rank")
    entries = tuple(_entry(where, i, t) for i, t in enumerate(ties, 1))
    _once(where, entries)
    metric = found.get("metric", "loss")
    if metric not in ("loss", "inputs"):
        raise DataError(f'{where}: metric = {metric!r}; it is "loss" or "inputs"')
    keep = found.get("keep", 1.0)
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise DataError(f"{where}: keep = {keep!r}; it is a number")
    return Plan(entries, float(keep), metric, str(found.get("name", "by hand")))


def _entry(where: Path, number: int, given: Mapping[str, Any]) -> Entry:
    place = f"{where}, [[tie]] number {number}"
    known = {"method", "sites", "rank"}
    for key in given.keys() - known:
        raise DataError(f"{place} has the key {key!r}; {nearest(key, known)}")
    method, sites, rank = given.get("method"), given.get("sites"), given.get("rank")
    if method not in METHODS:
        raise DataError(f"{place}: method = {method!r}; the methods are {', '.join(METHODS)}")
    if not isinstance(sites, list) or not sites or not all(isinstance(s, str) for s in sites):
        raise DataError(f"{place}: sites = {sites!r}; a list of names of weights is needed")
    least = 1 if method == "factored" else 0
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < least:
        raise DataError(f"{place}: rank = {rank!r}; an integer of {least} or more is needed")
    if method == "tied" and len(sites) < 2:
        raise DataError(f"{place}: one site alone is tied to nothing; name two or more")
    return Entry(method, tuple(sites), rank)


def _once(where: Path, entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for e in entries:
        for site in e.sites:
            if site in seen:
                raise NoSuchSite(f"{where} names {site!r} twice; a site is in one [[tie]]")
            seen.add(site)
