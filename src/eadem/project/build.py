"""A project as a tied `eadem.Joint`: starts set, ties declared, fixed values frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eadem.bind import Tie, plan, site_values, tie
from eadem.errors import EademError, nearest
from eadem.joint import Joint
from eadem.project.block import CurveBlock
from eadem.project.document import Path_
from eadem.project.entries import Entry, entries, named, part
from eadem.project.errors import ProjectError, at
from eadem.project.expression import Expression
from eadem.project.formula import maps
from eadem.project.spec import Function as Formula
from eadem.project.spec import Given, Project

if TYPE_CHECKING:
    from eadem.project.powder import PowderBlock

__all__ = ["Built", "Declared", "build", "matches"]


@dataclass(frozen=True, eq=False)
class Declared:
    """One tie of a project: how it was written, and the sites or single numbers it holds."""

    text: str
    sites: tuple[str, ...]
    tie: Tie


@dataclass(frozen=True, eq=False)
class Built:
    """A project ready to fit. `entries` are all numbers of the model by name, and `bounds` are
    by those; `fixed` the sites that stay where they are, `held` those among them that no one
    asked to refine; `owners` the parameters that each site's values come from.
    """

    project: Project
    joint: Joint
    ties: tuple[Declared, ...]
    entries: dict[str, Entry]
    bounds: dict[str, tuple[float | None, float | None]]
    fixed: frozenset[str]
    held: frozenset[str]
    owners: dict[str, frozenset[str]]
    starts: dict[str, Tensor]
    powder: dict[str, PowderBlock]

    def free_only(self, sites: Iterable[str]) -> None:
        """Let these sites move, with what is tied to them, and no others; no fixed one."""
        held = {o for s in self.fixed for o in self.owners[s]}
        moving = {o for s in sites for o in self.owners[s]} - held
        for name, parameter in self.joint.named_parameters():
            parameter.requires_grad_(name in moving)

    def frozen(self, owners: Iterable[str]) -> bool:
        """Whether none of these parameters moves."""
        moving = {n for n, p in self.joint.named_parameters() if p.requires_grad}
        return moving.isdisjoint(owners)

    def owners_of(self, tied: Declared) -> frozenset[str]:
        """The parameters that what a tie holds comes from."""
        every = (self.owners.get(s) or self.entries[s].owners for s in tied.sites)
        return frozenset().union(*every)

    def sites(self) -> tuple[str, ...]:
        """Every site of the model."""
        return tuple(self.owners)


def matches(pattern: str, sites: Iterable[str]) -> list[str]:
    """The sites that a name or pattern means: `*` within a part, `**` across.

    >>> matches("*.width", ["a.width", "a.height", "b.width"])
    ['a.width', 'b.width']
    """
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    kinds = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    form = re.compile("".join(kinds.get(p, re.escape(p)) for p in parts))
    every = [s for s in sites if form.fullmatch(s)]
    return every or (list(sites) if pattern == "*" else [])


class _Building:
    """What is known while a project is put together. `told`: the starts and fixed values that
    are written, by site; `held`: sites that are not refined unless asked for; `single`: site
    and place of the numbers of sites that have several, by name.
    """

    def __init__(self, project: Project) -> None:
        self.project, self.document = project, project.document
        self.guesses: dict[str, Tensor | None] = {}
        self.powder: dict[str, PowderBlock] = {}
        self.held: set[str] = set()
        self.told: dict[str, Tensor] = {}
        self.single: dict[str, tuple[str, int]] = {}
        if project.phases:
            from eadem.project.powder import phase_tables

            phase_tables(project)
        for d in project.data:
            if d.table is None:
                for n, g in d.guesses.items():
                    self.guesses[f"{d.name}.{n}"] = None if g is None else _scalar(g)
                continue
            made = self.powder[d.name] = _powder_block(project, d.name, d.table)
            for n, p in made.named_parameters():
                self.guesses[f"{d.name}.{n}"] = p.detach().clone()
                if not p.requires_grad:
                    self.held.add(f"{d.name}.{n}")
                if p.numel() > 1:
                    site = f"{d.name}.{n}"
                    names = named(site, tuple(p.shape), made.labels.get(n, ()))
                    self.single |= {name: (site, i) for i, name in enumerate(names)}
        self.known = list(self.guesses)
        self.scalars = [s for s, g in self.guesses.items() if g is None or g.ndim == 0]

    def meant(self, pattern: str, path: Path_) -> list[str]:
        """The sites of a pattern. Raises ProjectError where there are none."""
        found = matches(pattern, self.known)
        if not found:
            raise self.document.error(
                path, f"{pattern!r:.80} is no parameter; {nearest(pattern, self.known)}"
            )
        return found

    def each(
        self, given: Mapping[str, tuple[object, Path_]]
    ) -> list[tuple[str, object, Path_, bool]]:
        """(site, value, path, whether by name) of settings; names come after patterns."""
        found = []
        for pattern, (value, path) in given.items():
            sites = self.meant(pattern, path)
            found += [(s, value, path, s == pattern) for s in sites]
        return sorted(found, key=lambda each: each[3])

    def formulas(self) -> dict[str, tuple[Formula, Expression]]:
        """The ties by expression, by site."""
        found = {}
        for f in self.project.functions:
            (site, *more) = self.meant(f.site, f.path)
            if more or site != f.site:
                raise self.document.error(
                    f.path, f"{f.site!r} must be one parameter; for equal ones write equal = …"
                )
            if site not in self.scalars:
                raise self.document.error(
                    f.path, f"{site!r} has several values; only single ones follow others"
                )
            try:
                expression = Expression.parse(f.text, (), self.scalars)
            except ProjectError as error:
                raise self.document.error(f.path, str(error)) from None
            if not expression.names:
                raise self.document.error(
                    f.path, f"{f.text!r:.80} names no parameter; write a number in [fixed]"
                )
            if site in expression.names:
                raise self.document.error(f.path, f"{site!r} cannot be tied to itself")
            found[site] = (f, expression)
        return found

    def tied(self, pattern: str, path: Path_) -> list[str]:
        """The sites of a pattern, or the single numbers where it means no site."""
        single = [] if matches(pattern, self.known) else matches(pattern, self.single)
        return single or self.meant(pattern, path)

    def part(self, name: str) -> str:
        """A site or a single number as `eadem.tie` knows it."""
        if name not in self.single:
            return name
        site, place = self.single[name]
        guess = self.guesses[site]
        assert guess is not None
        return part(site, place, tuple(guess.shape))

    def groups(self) -> list[tuple[tuple[str, ...], str, Path_]]:
        """The equalities: sites, text and place."""
        found = []
        for patterns, path in self.project.equal:
            sites = list(dict.fromkeys(s for p in patterns for s in self.tied(p, path)))
            if len(sites) < 2:
                raise self.document.error(
                    path, f"equal = {list(patterns)} is one parameter only: {sites[0]}"
                )
            shapes = {
                None if g is None else tuple(g.shape): s
                for s in sites
                for g in [torch.zeros(()) if s in self.single else self.guesses[s]]
            }
            if len(shapes.keys() - {None}) > 1:
                a, b, *_ = (s for shape, s in shapes.items() if shape is not None)
                raise self.document.error(path, f"{a} and {b} have not as many values")
            found.append((tuple(sites), " = ".join(patterns), path))
        if self.powder:
            from eadem.project.powder import shared

            said = {frozenset(sites) for sites, _, _ in found}
            every = shared(self.project, self.powder, self.held)
            found += [each for each in every if frozenset(each[0]) not in said]
        return found

    def values(self, site: str, value: Given, path: Path_) -> Tensor:
        """A site's values as they are written: all of them, or one for all."""
        guess = self.guesses[site]
        shape = torch.Size() if guess is None else guess.shape
        if not isinstance(value, tuple):
            found = torch.full(shape, value, dtype=torch.float64)
        elif len(value) == shape.numel():
            found = torch.tensor(value, dtype=torch.float64).reshape(shape)
        else:
            raise self.document.error(
                path,
                f"{site!r} has {shape.numel()} values, not {len(value)}; one number is for all",
            )
        if not bool(found.isfinite().all()):
            raise self.document.error(path, f"{site!r} cannot start at {value}")
        return found


def build(project: Project) -> Built:
    """Raises ProjectError with the place of what does not fit together."""
    b = _Building(project)
    formulas, groups = b.formulas(), b.groups()
    fixed = _fixed(b, formulas)
    starts = _starts(b, formulas, groups, fixed)
    blocks: dict[str, nn.Module] = {}
    for d in project.data:
        if d.name in b.powder:
            blocks[d.name] = b.powder[d.name] = _begun(b, d.name, starts)
        elif d.observed is not None and d.curve is not None:
            o = d.observed
            here = {n: float(starts[f"{d.name}.{n}"]) for n in d.curve.names}
            blocks[d.name] = CurveBlock(o.x, o.y, o.sigma, d.curve, here)
    joint = Joint(blocks)
    ties = _tied(b, joint, formulas, groups, starts)
    every = entries(joint)
    owners: dict[str, frozenset[str]] = {}
    for e in every.values():
        owners[e.site] = owners.get(e.site, frozenset()) | e.owners
    made = Built(
        project=project,
        joint=joint,
        ties=ties,
        entries=every,
        bounds=_bounds(b, formulas, fixed, every),
        fixed=frozenset(fixed) | b.held,
        held=frozenset(b.held),
        owners=owners,
        starts={n: v.clone() for n, v in site_values(joint).items()},
        powder=dict(b.powder),
    )
    _finite(made)
    return made


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _powder_block(project: Project, name: str, table: Mapping[str, Any]) -> PowderBlock:
    from eadem.project.powder import block  # imported by those who have powder patterns

    return block(project, name, table)


def _begun(b: _Building, name: str, starts: dict[str, Tensor]) -> PowderBlock:
    """A pattern at its starts, its symmetry declared; scale and background by linear least
    squares unless they are told.
    """
    block = b.powder[name]
    _set(block, name, starts)
    if any(s.startswith(f"{name}.") for s in b.told):
        block = block.again()
        estimated = {
            s: p.detach().clone()
            for s in ("scale", "background")
            for p in [block.get_parameter(s)]
        }
        for site, value in estimated.items():
            if f"{name}.{site}" not in b.told:
                starts[f"{name}.{site}"] = value
        _set(block, name, starts)
    block.constrain()
    for site, value in site_values(block).items():
        off = (value - starts[f"{name}.{site}"]).abs().max()
        if float(off) > 1e-4:
            phase = site.partition(".")[0]
            raise b.document.error(
                ("phase", phase),
                f"{name}.{site} starts where the symmetry of {phase!r} does not allow it: "
                f"{starts[f'{name}.{site}'].tolist()}",
            )
    return block


def _set(module: nn.Module, block: str, starts: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(starts[f"{block}.{name}"])


def _fixed(
    b: _Building, formulas: Mapping[str, tuple[Formula, Expression]]
) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {}
    for site, value, path, by_name in b.each(b.project.fixed):
        if site in formulas:
            if by_name:
                raise b.document.error(
                    path, f"{site!r} is tied to an expression; fix what that depends on"
                )
            continue
        assert value is None or isinstance(value, (float, tuple))
        found[site] = None if value is None else b.values(site, value, path)
    return found


def _starts(
    b: _Building,
    formulas: Mapping[str, tuple[Formula, Expression]],
    groups: list[tuple[tuple[str, ...], str, Path_]],
    fixed: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """Where every site starts, in accord with the ties."""
    for site, value, path, _ in b.each(b.project.starts):
        assert isinstance(value, (float, tuple))
        b.told[site] = b.values(site, value, path)
    b.told |= {s: v for s, v in fixed.items() if v is not None}
    told = b.told
    found: dict[str, Tensor | None] = {**b.guesses, **told}
    numbers = [sites for sites, _, _ in groups if not b.single.keys().isdisjoint(sites)]
    for sites, text, path in groups:
        if sites in numbers:
            continue
        said = [v for s in sites if (v := fixed.get(s)) is not None]
        if any(not torch.equal(v, said[0]) for v in said):
            raise b.document.error(path, f"{text}: fixed at different values")
        first = [told[s] for s in sites if s in told]
        guessed = [g for s in sites if (g := found[s]) is not None]
        value = said[0] if said else None
        if value is None and guessed:
            value = first[0] if first else torch.stack(guessed).mean(0)
        found |= dict.fromkeys(sites, value)
        if first and value is not None:
            b.told |= dict.fromkeys(sites, value)
    for single in numbers:
        _one_number(b, single, found, fixed)
    missing = [s for s, v in found.items() if v is None and s not in formulas]
    if missing:
        block, _, name = missing[0].partition(".")
        raise b.document.error(
            ("data", block),
            f"a start is needed for {', '.join(missing[:6])}: start.{name} = …",
        )
    known = {s: v for s, v in found.items() if v is not None}
    for site in formulas:
        known.pop(site, None)
    waiting = dict(formulas)
    while waiting:
        ready = [s for s, (_, e) in waiting.items() if all(n in known for n in e.names)]
        if not ready:
            names = ", ".join(waiting)
            path = next(iter(waiting.values()))[0].path
            raise b.document.error(path, f"these ties go round in a circle: {names}")
        for site in ready:
            formula, expression = waiting.pop(site)
            known[site] = expression(known)
            if not bool(known[site].isfinite()):
                raise b.document.error(
                    formula.path, f"{site} = {formula.text} is not finite at the starts"
                )
    return known


def _one_number(
    b: _Building,
    names: tuple[str, ...],
    found: dict[str, Tensor | None],
    fixed: Mapping[str, Tensor | None],
) -> None:
    """Start single numbers alike: as fixed, as told, or at their mean."""
    at = [b.single.get(n, (n, 0)) for n in names]
    values = {site: v.clone() for site, _ in at if (v := found[site]) is not None}
    for known in (fixed, b.told, values):
        some = [values[s].reshape(-1)[i] for s, i in at if s in known and s in values]
        if some:
            break
    for site, i in at if some else ():
        if site in values:
            values[site].view(-1)[i] = some[0] if known is not values else sum(some) / len(some)
    found |= values


def _tied(
    b: _Building,
    joint: Joint,
    formulas: Mapping[str, tuple[Formula, Expression]],
    groups: list[tuple[tuple[str, ...], str, Path_]],
    starts: Mapping[str, Tensor],
) -> tuple[Declared, ...]:
    made: list[Declared] = []
    path: Path_ = ("ties",)
    try:
        with plan(joint):
            for each, text, path in groups:  # noqa: B007  (the error below names it)
                made.append(Declared(text, each, tie(joint, *map(b.part, each))))
            for site, (formula, expression) in formulas.items():
                path = formula.path
                sites = (*expression.names, site)
                declared = tie(joint, maps(site, expression, starts))
                made.append(Declared(f"{site} = {formula.text}", sites, declared))
            path = ("ties",)
    except EademError as error:
        raise b.document.error(path, f"the ties cannot be made: {error}") from error
    return tuple(made)


def _bounds(
    b: _Building,
    formulas: Mapping[str, tuple[Formula, Expression]],
    fixed: Mapping[str, Tensor | None],
    every: Mapping[str, Entry],
) -> dict[str, tuple[float | None, float | None]]:
    found: dict[str, tuple[float | None, float | None]] = {}
    for site, value, path, by_name in b.each(b.project.bounds):
        if site in fixed or (site in formulas and not by_name):
            continue
        if site in formulas and (
            formulas[site][1].linear is None or len(formulas[site][1].names) > 1
        ):
            raise b.document.error(path, f"{site!r} follows from others; bound those")
        assert isinstance(value, tuple)
        for e in every.values():
            if e.site == site and len(e.columns) == 1:
                found[e.name] = value
    return found


def _finite(made: Built) -> None:
    """Raises ProjectError where a curve is not finite at the starts, with the row."""
    for d in made.project.data:
        block = made.joint[d.name]
        if d.observed is None or not isinstance(block, CurveBlock):
            continue
        with torch.no_grad():
            bad = (~block.model().isfinite()).nonzero().reshape(-1)
        if len(bad):
            i = int(bad[0])
            raise at(
                d.observed.file,
                d.observed.lines[i],
                what=f"the curve of {d.name!r} is not finite at x = {d.observed.x[i]:g} for "
                "the values that it starts from; start elsewhere, set bounds, or leave the "
                "row out",
            )
