"""What a project file says, checked: data, curves, starts, bounds, ties, stages and options."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from eadem.errors import nearest
from eadem.project.document import Document, Path_, read
from eadem.project.errors import ProjectError
from eadem.project.expression import LENGTH, Expression, usable
from eadem.project.models import MODELS, Model, polynomial
from eadem.project.observed import Observed, observed
from eadem.solvers.losses import LOSSES

__all__ = ["POWDER", "DataSet", "Function", "Options", "Project", "load"]

#: Terms of one curve above which a project is refused.
TERMS = 300
#: The name of the model that `eadem.powder` brings.
POWDER = "powder"
_TOP = ("title", "data", "start", "bounds", "fixed", "ties", "stage", "options")
_DATA = (
    "file",
    "x",
    "y",
    "sigma",
    "range",
    "exclude",
    "model",
    "degree",
    "prefix",
    "expression",
    "terms",
    "start",
    "bounds",
    "fixed",
)
_TERM = ("model", "degree", "prefix", "expression")
_OPTIONS = (
    "absolute_sigma",
    "cluster",
    "loss",
    "loss_scale",
    "max_iterations",
    "seed",
    "starts",
    "tolerance",
)
#: Names that a block of a fit has for something else, and y, which is what was observed.
_MODULE = frozenset(dir(nn.Module())) | {"at", "model", "observed", "residual", "x", "y"}


@dataclass(frozen=True)
class Options:
    """How the fit is made; as the arguments of `eadem.least_squares`, and `cluster`."""

    absolute_sigma: bool = False
    cluster: int | None = None
    loss: str = "linear"
    loss_scale: float = 1.0
    max_iterations: int = 1000
    seed: int = 0
    starts: int = 0
    tolerance: float = 1e-8


@dataclass(frozen=True, eq=False)
class DataSet:
    """One data set: what was observed, its curve, and a guessed start by parameter (None
    where the project must give one). A data set of another kind has its `table` instead.
    """

    name: str
    observed: Observed | None
    curve: Expression | None
    guesses: dict[str, float | None]
    table: dict[str, Any] | None = None


@dataclass(frozen=True)
class Function:
    """A tie `site = expression`; `path`: where it is written."""

    site: str
    text: str
    path: Path_


@dataclass(frozen=True, eq=False)
class Project:
    """A whole project. `starts`, `bounds` and `fixed` are by site or pattern, in the order
    written; `equal` lists the names and patterns of every equality.
    """

    document: Document
    folder: Path
    title: str
    data: tuple[DataSet, ...]
    starts: dict[str, tuple[float, Path_]]
    bounds: dict[str, tuple[tuple[float | None, float | None], Path_]]
    fixed: dict[str, tuple[float | None, Path_]]
    equal: tuple[tuple[tuple[str, ...], Path_], ...]
    functions: tuple[Function, ...]
    stages: tuple[tuple[tuple[str, ...], Path_], ...]
    options: Options = field(default_factory=Options)


def load(path: Path) -> Project:
    """Read a project and its data. Raises ProjectError with the place of what is wrong."""
    document = read(path)
    top, folder = document.top, path.resolve().parent
    document.only(top, _TOP, ())
    title = top.get("title", path.stem)
    if not isinstance(title, str):
        raise document.error(("title",), f"the title is a string, not {title!r:.40}")
    tables = document.table(top.get("data", {}), ("data",))
    if not tables:
        raise document.error(("data",), "a project needs data: [data.NAME] with file = …")
    data = tuple(_data(document, folder, name, t) for name, t in tables.items())
    ties = document.table(top.get("ties", {}), ("ties",))
    settings: dict[str, dict[str, tuple[Any, Path_]]] = {}
    for key in ("start", "bounds", "fixed"):
        found = document.flat(top.get(key, {}), (key,))
        for name, table in tables.items():
            inner = document.flat(table.get(key, {}), ("data", name, key))
            for parameter, item in inner.items():
                if f"{name}.{parameter}" in found:
                    raise document.error(
                        item[1], f"{key} of '{name}.{parameter}' is written twice"
                    )
                found[f"{name}.{parameter}"] = item
        settings[key] = found
    return Project(
        document=document,
        folder=folder,
        title=title,
        data=data,
        starts={n: (document.number(v, p), p) for n, (v, p) in settings["start"].items()},
        bounds={n: (_bound(document, v, p), p) for n, (v, p) in settings["bounds"].items()},
        fixed={n: (_fixed(document, v, p), p) for n, (v, p) in settings["fixed"].items()},
        equal=tuple(_equal(document, ties.get("equal", []))),
        functions=tuple(_functions(document, ties)),
        stages=tuple(_stages(document, top.get("stage", []))),
        options=_options(document, top.get("options", {})),
    )


def _data(document: Document, folder: Path, name: str, value: object) -> DataSet:
    path: Path_ = ("data", name)
    table = document.table(value, path)
    if not usable(name) or name in _MODULE:
        raise document.error(
            path,
            f"a data set cannot be called {name!r:.40}: letters, digits and _ that are no word "
            "of Python or PyTorch",
        )
    if table.get("model") == POWDER:
        return DataSet(name, None, None, {}, table)
    document.only(table, _DATA, path)
    if "file" not in table:
        raise document.error(path, f"data set {name!r} needs file = …")
    found = observed(document, folder, path, table)
    curve, guesses = _curve(document, path, table, found)
    for parameter in curve.names:
        if parameter in _MODULE:
            raise document.error(
                path,
                f"a parameter cannot be called {parameter!r}: the name is taken; choose "
                "another",
            )
    if not curve.names:
        raise document.error(path, f"the curve of {name!r} has no parameter to fit")
    return DataSet(name, found, curve, guesses)


def _curve(
    document: Document, path: Path_, table: Mapping[str, Any], found: Observed
) -> tuple[Expression, dict[str, float | None]]:
    """The curve of a data set as one expression, and guesses for its parameters."""
    given = [k for k in ("model", "expression", "terms") if k in table]
    if len(given) != 1:
        raise document.error(
            path,
            "a data set has one of model = …, expression = … and terms = […]"
            + (f", not {' and '.join(given)}" if given else f"; models: {', '.join(MODELS)}"),
        )
    terms = [table] if given[0] != "terms" else table["terms"]
    if not isinstance(terms, list) or not 0 < len(terms) <= TERMS:
        raise document.error(
            (*path, "terms"), f"terms is a list of 1 to {TERMS} tables, as {{model = …}}"
        )
    texts: list[str] = []
    guesses: dict[str, float | None] = {}
    for term in terms:
        here = (*path, "terms") if given[0] == "terms" else path
        inner = document.table(term, here)
        if given[0] == "terms":
            document.only(inner, _TERM, here)
        text, more = _term(document, here, inner, found)
        if twice := sorted(guesses.keys() & more.keys()):
            raise document.error(
                here, f"two terms have a parameter {twice[0]!r}; give one of them a prefix = …"
            )
        texts.append(text)
        guesses |= more
    whole = _sum(texts)
    try:
        return Expression.parse(whole, {"x"}, length=2 * LENGTH * len(texts)), guesses
    except ProjectError as error:
        raise document.error((*path, given[0]), str(error)) from None


def _sum(texts: list[str]) -> str:
    """The sum of expressions, halved again and again so that it is not deep.

    >>> _sum(["a", "b", "c"])
    '(a) + ((b) + (c))'
    """
    if len(texts) == 1:
        return texts[0]
    half = len(texts) // 2
    return f"({_sum(texts[:half])}) + ({_sum(texts[half:])})"


def _term(
    document: Document, path: Path_, term: Mapping[str, Any], found: Observed
) -> tuple[str, dict[str, float | None]]:
    """One term with its prefix, and guesses for its parameters."""
    prefix = term.get("prefix", "")
    if not isinstance(prefix, str) or (prefix and not usable(prefix + "a")):
        raise document.error((*path, "prefix"), f"a prefix is letters, not {prefix!r:.40}")
    if "expression" in term:
        if "model" in term:
            raise document.error(path, "a term has a model or an expression, not both")
        parsed = _parsed(document, (*path, "expression"), term["expression"], {"x"})
        text, guesses = parsed.text, dict.fromkeys(parsed.names)
    else:
        model = _model(document, path, term)
        text = model.text
        guesses = {n: g(found.sorted_x, found.sorted_y) for n, g in model.guesses.items()}
    renamed = {n: f"{prefix}{n}" for n in guesses}
    text = re.sub(r"\b[A-Za-z_]\w*", lambda m: renamed.get(m.group(), m.group()), text)
    return text, {renamed[n]: g for n, g in guesses.items()}


def _model(document: Document, path: Path_, term: Mapping[str, Any]) -> Model:
    name = term.get("model")
    if name == "polynomial":
        try:
            return polynomial(term.get("degree", 2))
        except ProjectError as error:
            raise document.error((*path, "degree"), str(error)) from None
    if "degree" in term:
        raise document.error((*path, "degree"), "only model = 'polynomial' has a degree")
    if not isinstance(name, str) or name not in MODELS:
        known = [*MODELS, "polynomial", POWDER]
        raise document.error(
            (*path, "model"), f"there is no model {name!r:.40}; {nearest(str(name), known)}"
        )
    return MODELS[name]


def _parsed(document: Document, path: Path_, text: Any, given: set[str]) -> Expression:
    try:
        return Expression.parse(text, given)
    except ProjectError as error:
        raise document.error(path, str(error)) from None


def _bound(document: Document, value: object, path: Path_) -> tuple[float | None, float | None]:
    if not isinstance(value, list) or len(value) != 2:
        raise document.error(path, f"a bound is [low, high] (inf for none), not {value!r:.40}")
    low, high = (document.number(v, path) for v in value)
    if not low < high:
        raise document.error(path, f"the bounds [{low:g}, {high:g}] leave nothing between them")
    return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


def _fixed(document: Document, value: object, path: Path_) -> float | None:
    """The value to stay at; None: where it starts (true)."""
    return None if value is True else document.number(value, path)


def _equal(document: Document, value: object) -> list[tuple[tuple[str, ...], Path_]]:
    path: Path_ = ("ties", "equal")
    each = [value] if isinstance(value, str) else value
    if not isinstance(each, list):
        raise document.error(path, "equal is a list of patterns, or of lists of names")
    return [(document.strings(entry, path), path) for entry in each]


def _functions(document: Document, ties: Mapping[str, Any]) -> list[Function]:
    rest = {k: v for k, v in ties.items() if k != "equal"}
    found = []
    for site, (value, path) in document.flat(rest, ("ties",)).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise document.error(path, f"{site!r} is tied to a number; write it in [fixed]")
        if not isinstance(value, str):
            raise document.error(path, f"the tie of {site!r} is an expression in quotes")
        found.append(Function(site, value, path))
    return found


def _stages(document: Document, value: object) -> list[tuple[tuple[str, ...], Path_]]:
    if not isinstance(value, list):
        raise document.error(("stage",), "stages are written [[stage]] with free = […]")
    found = []
    for i, table in enumerate(value):
        path: Path_ = ("stage", i)
        document.only(document.table(table, path), ("free",), path)
        if "free" not in table:
            raise document.error(path, "a stage says which parameters are free: free = […]")
        found.append((document.strings(table["free"], (*path, "free")), (*path, "free")))
    return found


def _options(document: Document, value: object) -> Options:
    table = document.table(value, ("options",))
    document.only(table, _OPTIONS, ("options",))
    found: dict[str, Any] = {}
    for key, item in table.items():
        path: Path_ = ("options", key)
        if key == "absolute_sigma":
            good = isinstance(item, bool)
        elif key == "loss":
            good = item == "linear" or item in LOSSES
        elif key in ("loss_scale", "tolerance"):
            good = 0 < document.number(item, path) < math.inf
        else:
            least = 0 if key in ("seed", "starts") else 1
            good = isinstance(item, int) and not isinstance(item, bool)
            good = good and least <= item <= 10**9
        if not good:
            hint = f"; there are linear, {', '.join(LOSSES)}" if key == "loss" else ""
            raise document.error(path, f"{key} cannot be {item!r:.40}{hint}")
        found[key] = float(item) if key in ("loss_scale", "tolerance") else item
    return Options(**found)
