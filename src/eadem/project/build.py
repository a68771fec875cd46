"""A project as a tied `eadem.Joint`: starts set, ties declared, fixed values frozen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eadem._plan import PlanArrays
from eadem.bind import Tie, free_vector, plan, resolved, site_values, tie
from eadem.errors import EademError, nearest
from eadem.joint import Joint
from eadem.maps import Affine, Function, Gather, Map, Same
from eadem.project.block import CurveBlock, powder_block
from eadem.project.document import Path_
from eadem.project.errors import ProjectError, at
from eadem.project.expression import Expression
from eadem.project.spec import Function as Formula
from eadem.project.spec import Project

__all__ = ["Built", "Declared", "build", "matches"]


@dataclass(frozen=True, eq=False)
class Declared:
    """One tie of a project: how it was written, and the sites that it holds."""

    text: str
    sites: tuple[str, ...]
    tie: Tie


@dataclass(frozen=True, eq=False)
class Built:
    """A project ready to fit. `bounds` are by site; `fixed` the sites that stay where they
    are; `owners` the parameters that each site's value comes from.
    """

    project: Project
    joint: Joint
    ties: tuple[Declared, ...]
    bounds: dict[str, tuple[float | None, float | None]]
    fixed: frozenset[str]
    owners: dict[str, frozenset[str]]
    starts: dict[str, float]

    def free_only(self, sites: Iterable[str]) -> None:
        """Let these sites move, with what is tied to them, and no others; no fixed one."""
        held = {o for s in self.fixed for o in self.owners[s]}
        moving = {o for s in sites for o in self.owners[s]} - held
        for name, parameter in self.joint.named_parameters():
            parameter.requires_grad_(name in moving)

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
    """What is known while a project is put together."""

    def __init__(self, project: Project) -> None:
        self.project, self.document = project, project.document
        self.guesses = {f"{d.name}.{n}": g for d in project.data for n, g in d.guesses.items()}
        self.modules: dict[str, nn.Module] = {}
        for d in project.data:
            if d.table is not None:
                made = powder_block(self.document, project.folder, d.name, d.table)
                self.modules[d.name] = made
                for name, parameter in made.named_parameters():
                    if parameter.numel() == 1:
                        self.guesses[f"{d.name}.{name}"] = float(parameter.detach())
        self.known = list(self.guesses)

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
            try:
                expression = Expression.parse(f.text, (), self.known)
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

    def groups(self) -> list[tuple[tuple[str, ...], str, Path_]]:
        """The equalities: sites, text and place."""
        found = []
        for patterns, path in self.project.equal:
            sites = list(dict.fromkeys(s for p in patterns for s in self.meant(p, path)))
            if len(sites) < 2:
                raise self.document.error(
                    path, f"equal = {list(patterns)} is one parameter only: {sites[0]}"
                )
            found.append((tuple(sites), " = ".join(patterns), path))
        return found


def build(project: Project) -> Built:
    """Raises ProjectError with the place of what does not fit together."""
    b = _Building(project)
    formulas, groups = b.formulas(), b.groups()
    fixed = _fixed(b, formulas)
    starts = _starts(b, formulas, groups, fixed)
    blocks = dict(b.modules)
    for d in project.data:
        if d.observed is not None and d.curve is not None:
            o = d.observed
            here = {n: starts[f"{d.name}.{n}"] for n in d.curve.names}
            blocks[d.name] = CurveBlock(o.x, o.y, o.sigma, d.curve, here)
    joint = Joint({d.name: blocks[d.name] for d in project.data})
    for site, module in b.modules.items():
        _set(module, site, starts)
    ties = _tied(b, joint, formulas, groups, starts)
    owners = _owners(joint)
    bounds = _bounds(b, formulas, fixed)
    made = Built(
        project,
        joint,
        ties,
        bounds,
        frozenset(fixed),
        owners,
        {n: float(v) for n, v in site_values(joint).items() if v.numel() == 1},
    )
    _finite(made)
    return made


def _set(module: nn.Module, block: str, starts: Mapping[str, float]) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel() == 1:
                parameter.fill_(starts[f"{block}.{name}"])


def _fixed(
    b: _Building, formulas: Mapping[str, tuple[Formula, Expression]]
) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for site, value, path, named in b.each(b.project.fixed):
        if site in formulas:
            if named:
                raise b.document.error(
                    path, f"{site!r} is tied to an expression; fix what that depends on"
                )
            continue
        assert value is None or isinstance(value, float)
        found[site] = value
    return found


def _starts(
    b: _Building,
    formulas: Mapping[str, tuple[Formula, Expression]],
    groups: list[tuple[tuple[str, ...], str, Path_]],
    fixed: Mapping[str, float | None],
) -> dict[str, float]:
    """Where every site starts, in accord with the ties."""
    told: dict[str, float] = {}
    for site, value, path, _ in b.each(b.project.starts):
        assert isinstance(value, float)
        if not math.isfinite(value):
            raise b.document.error(path, f"{site!r} cannot start at {value:g}")
        told[site] = value
    told |= {s: v for s, v in fixed.items() if v is not None}
    found: dict[str, float | None] = {**b.guesses, **told}
    for sites, text, path in groups:
        said = {fixed[s] for s in sites if fixed.get(s) is not None}
        if len(said) > 1:
            raise b.document.error(path, f"{text}: fixed at different values")
        first = [told[s] for s in sites if s in told]
        guessed = [g for s in sites if (g := found[s]) is not None]
        value = next(iter(said), None)
        if value is None and guessed:
            value = first[0] if first else sum(guessed) / len(guessed)
        found |= dict.fromkeys(sites, value)
    missing = [s for s, v in found.items() if v is None and s not in formulas]
    if missing:
        block, _, name = missing[0].partition(".")
        raise b.document.error(
            ("data", block),
            f"a start is needed for {', '.join(missing[:6])}: start.{name} = …",
        )
    known = {s: torch.tensor(v, dtype=torch.float64) for s, v in found.items() if v is not None}
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
    return {s: float(v) for s, v in known.items()}


def _tied(
    b: _Building,
    joint: Joint,
    formulas: Mapping[str, tuple[Formula, Expression]],
    groups: list[tuple[tuple[str, ...], str, Path_]],
    starts: Mapping[str, float],
) -> tuple[Declared, ...]:
    made: list[Declared] = []
    path: Path_ = ("ties",)
    try:
        with plan(joint):
            for each, text, path in groups:  # noqa: B007  (the error below names it)
                made.append(Declared(text, each, tie(joint, *each)))
            for site, (formula, expression) in formulas.items():
                path = formula.path
                sites = (*expression.names, site)
                declared = tie(joint, _maps(site, expression, starts))
                made.append(Declared(f"{site} = {formula.text}", sites, declared))
            path = ("ties",)
    except EademError as error:
        raise b.document.error(path, f"the ties cannot be made: {error}") from error
    return tuple(made)


def _maps(site: str, expression: Expression, starts: Mapping[str, float]) -> dict[str, Map]:
    """The map of each site of a tie by expression, from one θ for each name in it."""
    names = expression.names
    if len(names) == 1 and expression.linear is not None:
        slope, level = expression.linear[0][names[0]], expression.linear[1]
        if slope:
            return {names[0]: Same(), site: Affine(slope, level)}
    value = _Value(expression)
    theta = torch.tensor([starts[n] for n in names], dtype=torch.float64)
    if len(names) == 1:
        return {names[0]: Same(), site: Function(value, _Inverse(value, theta[0]))}
    maps: dict[str, Map] = {n: Gather(torch.tensor(i)) for i, n in enumerate(names)}
    return maps | {site: Function(value, _Inverse(value, theta), in_shape=(len(names),))}


@dataclass(frozen=True)
class _Value:
    """An expression as a function of the values of its names, in a tensor."""

    expression: Expression

    def __call__(self, theta: Tensor) -> Tensor:
        each = theta.reshape(-1).unbind()
        return self.expression(dict(zip(self.expression.names, each, strict=True)))


@dataclass(frozen=True, eq=False)
class _Inverse:
    """Values of the names for which an expression has a value, by steps from where they start
    (Newton's, the least in length, halved where the misfit grows).
    """

    value: _Value
    start: Tensor

    def __call__(self, wanted: Tensor) -> Tensor:
        theta = self.start.clone()
        for _ in range(50):
            rest = wanted - self.value(theta)
            if not float(rest.abs()) > 1e-14 * (1.0 + float(wanted.abs())):
                break
            slope = torch.func.grad(self.value)(theta)
            step = slope * rest / slope.square().sum()
            for halvings in range(30):
                tried = theta + step / 2**halvings
                if float((wanted - self.value(tried)).abs()) < float(rest.abs()):
                    break
            else:
                break
            theta = tried
        return theta


def _owners(joint: Joint) -> dict[str, frozenset[str]]:
    """The parameters that hold the free values that each site depends on."""
    found = resolved(joint)
    held = [name for name, owner in found.owners.items() for _ in range(_size(owner.shape))]
    rows, columns, _ = PlanArrays(found).entries(free_vector(joint))
    by_row: dict[int, set[str]] = {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        by_row.setdefault(row, set()).add(held[column])
    return {
        site: frozenset(o for i in range(at.start, at.stop) for o in by_row.get(i, ()))
        for site, at in found.slices.items()
    }


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _bounds(
    b: _Building,
    formulas: Mapping[str, tuple[Formula, Expression]],
    fixed: Mapping[str, float | None],
) -> dict[str, tuple[float | None, float | None]]:
    found: dict[str, tuple[float | None, float | None]] = {}
    for site, value, path, named in b.each(b.project.bounds):
        if site in fixed or (site in formulas and not named):
            continue
        if site in formulas and (
            formulas[site][1].linear is None or len(formulas[site][1].names) > 1
        ):
            raise b.document.error(path, f"{site!r} follows from others; bound those")
        assert isinstance(value, tuple)
        found[site] = value
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
