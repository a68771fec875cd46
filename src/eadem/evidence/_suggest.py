"""Weights that are nearly tied: how far each candidate is from its tie, and by what chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from scipy.stats import f as f_law
from torch import Tensor, nn

from eadem.bind import Start, Tie, match, resolved, site_values, tie, undone_on_error
from eadem.errors import NoSuchSite, ShapeError, TooLarge, nearest
from eadem.evidence._alike import (
    Chance,
    Moments,
    Order,
    aligned,
    by_draws,
    by_moments,
    moments,
)
from eadem.evidence.score import EvidenceError, holm
from eadem.groups import Cyclic, Orbit
from eadem.maps import Gather, Palindrome, Same, Scale, Transpose
from eadem.maps.base import LinearMap, Map, Shape, numel

__all__ = ["Suggestion", "Suggestions", "suggest_ties"]

#: Pairs of weights that are compared, at most.
PAIRS = 20_000
#: Steps of all alignments, null draws included: some minutes.
STEPS = 2e11
#: Of two ties that fit alike, with as many free values, the first is said.
_ORDER = ("equal", "transposed", "scaled", "scaled transpose")


@dataclass(frozen=True)
class Suggestion:
    """One candidate tie. `kind`, its `sites` with a map for each (`declaration`); `residual`:
    the share of the weights' energy, Σ W², that no value of θ gives, 0 where the tie holds;
    `free`: how many of their `expanded` values it leaves free;
    `pvalue` of so small a residual by chance, `adjusted` for all candidates (Holm), and
    `bound`, the p-value without a normal tail, not adjusted.
    """

    kind: str
    declaration: dict[str, Map]
    residual: float
    free: int
    expanded: int
    pvalue: float
    bound: float
    adjusted: float = math.nan

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(self.declaration)

    def tie(self, model: nn.Module, start: Start = "mean") -> Tie:
        """Declare the tie. Its `.residual` says how far each value was."""
        return tie(model, self.declaration, start=start)


@dataclass(frozen=True)
class Suggestions:
    """All candidates that were tried, the nearest to their ties first; printed as a table.

    `notes` say what was not tried.
    """

    rows: tuple[Suggestion, ...]
    level: float
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> tuple[Suggestion, ...]:
        """The candidates with an adjusted p-value up to the level; for every set of sites the
        one with the fewest free values among those that fit as well as the nearest (whose
        residual for each value that is not free is no larger at 5 %, by an F test).
        """
        kept: dict[frozenset[str], Suggestion] = {}
        nearest_one: dict[frozenset[str], Suggestion] = {}
        for row in sorted(self.rows, key=lambda r: r.residual):
            if row.adjusted > self.level:
                continue
            key = frozenset(row.sites)
            best = nearest_one.setdefault(key, row)
            kept.setdefault(key, row)
            if _as_well(row, best) and _rank(row) < _rank(kept[key]):
                kept[key] = row
        return tuple(sorted(kept.values(), key=lambda r: r.residual))

    @property
    def declarations(self) -> tuple[dict[str, Map], ...]:
        """What `found` declares, as `eadem.tie(model, declaration)` takes it."""
        return tuple(row.declaration for row in self.found)

    def tie(self, model: nn.Module, start: Start = "mean") -> list[Tie]:
        """Declare what was found, together. A pair is left out where nearer ones join its
        weights already: that their scales agree with a third one only nearly would leave zero.

        Raises TieConflict where they contradict; the model is then as it was.
        """
        with undone_on_error(model, values=True):
            return [row.tie(model, start) for row in self._forest()]

    def _forest(self) -> list[Suggestion]:
        """What was found without the pairs that nearer ones join."""
        joined: dict[str, frozenset[str]] = {}
        kept = []
        for row in self.found:
            sets = {joined.get(s, frozenset({s})) for s in row.sites}
            if len(row.sites) > 1 and len(sets) == 1:
                continue
            whole = frozenset[str]().union(*sets)
            joined.update(dict.fromkeys(whole, whole))
            kept.append(row)
        return kept

    def __str__(self) -> str:
        shown = self.rows[:20]
        width = max([4, *(len(" ~ ".join(r.sites)) for r in shown)])
        kinds = max([4, *(len(r.kind) for r in shown)])
        lines = [f"{'tie':<{width}}  {'kind':<{kinds}} {'residual':>9} {'p':>9} {'Holm':>9}"]
        for r in shown:
            mark = " *" if r in self.found else ""
            lines.append(
                f"{' ~ '.join(r.sites):<{width}}  {r.kind:<{kinds}} {r.residual:>9.3g} "
                f"{r.pvalue:>9.3g} {r.adjusted:>9.3g}{mark}"
            )
        if len(self.rows) > len(shown):
            lines.append(f"… {len(self.rows)} candidates")
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def _rank(row: Suggestion) -> tuple[int, int]:
    return row.free, _ORDER.index(row.kind) if row.kind in _ORDER else len(_ORDER)


def _as_well(row: Suggestion, best: Suggestion) -> bool:
    d1, d2 = (max(1, r.expanded - r.free) for r in (row, best))
    most = float(f_law.ppf(0.95, d1, d2))
    return row.residual / d1 <= most * best.residual / d2 + 1e-15


def suggest_ties(
    model: nn.Module,
    *sites: str,
    within: Mapping[str, Map] | None = None,
    align: bool = True,
    level: float = 0.05,
    draws: int = 99,
    seed: int = 0,
) -> Suggestions:
    """Which weights look as if they were tied, against how much that is by chance.

    Candidates are, for all pairs of weights of one shape (or of the shape of the transpose)
    that no tie joins: equality, equality up to a scale or sign, and, with `align`, equality up
    to the order of rows or of columns, the best one found by assignment. Within each weight:
    the maps of `within` by name, on the whole weight or on each kernel of a convolution; by
    default palindromes and quarter turns of kernels. The distance to a tie is the share of Σ W²
    that least squares over θ leave.

    Chance, for a pair: the second weight's rows, and its columns, come in a random order, as if
    units had no names. The mean and variance of ⟨a, b⟩ over all orders are exact, and the
    p-value is that of a normal variable (two-sided for a scale). For an aligned pair: the
    columns come in a random order, and the rows are aligned anew (or the other way), `draws`
    times. Within a weight: each kernel's values come in a random order (without kernels, all
    values). p-values are adjusted for the number of candidates (Holm, Scand. J. Statist. 6,
    1979). Weights trained alike may share large rows or columns and so be significant without
    being near to a tie: look at the residual too.

    Args:
        model: any module.
        sites: names and patterns of the weights to look at; all by default.
        within: maps by name to try within each weight that they fit.
        align: whether orders of rows and columns are searched for.
        level: what `found` holds the probability of any wrong suggestion to.
        draws: how often chance is drawn, where its moments are not known.
        seed: of the draws.

    Raises:
        NoSuchSite: a pattern matches no parameter.
        EvidenceError: a model on the meta device, or `level`, `draws` or `within` out of range.
        TooLarge: more than 20,000 pairs, or alignments of more than 2·10¹¹ steps in all.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20), nn.Linear(20, 30))
    >>> model[1].weight.data = model[2].weight.data.T + 0.01 * torch.randn(20, 30)
    >>> found = suggest_ties(model, "*.weight")
    >>> [(s.kind, s.sites) for s in found.found]
    [('transposed', ('1.weight', '2.weight'))]
    >>> t = found.found[0].tie(model)
    """
    _refuse_odd(within, level, draws)
    values, apart = _looked_at(model, sites)
    broken = [n for n, v in values.items() if not bool(torch.isfinite(v).all())]
    values = {n: v for n, v in values.items() if n not in broken}
    pairs = [
        (a, b)
        for a, b in combinations(values, 2)
        if apart(a, b) and _turns(values[a].shape, values[b].shape)
    ]
    if len(pairs) > PAIRS:
        raise TooLarge(
            f"{len(pairs)} pairs of weights; suggest_ties compares at most {PAIRS}: name the "
            "weights to look at, as in suggest_ties(model, 'blocks.*.attn.*.weight')"
        )
    if align:
        _refuse_long(values, pairs, draws)
    generator = np.random.default_rng(seed)
    parts = {n: moments(v) for n, v in values.items()}
    rows: list[Suggestion] = []
    for a, b in pairs:
        for turned in _turns(values[a].shape, values[b].shape):
            rows += _pair(a, b, values, parts, turned)
            if align and values[a].ndim > 1:
                rows += _orders(a, b, values, turned, draws, generator)
    for name, value in values.items():
        if apart(name, name):
            rows += _inside(name, value, within, draws, generator)
    adjusted = holm([r.pvalue for r in rows])
    rows = [replace(r, adjusted=p) for r, p in zip(rows, adjusted, strict=True)]
    rows.sort(key=lambda r: (r.residual, r.sites, r.kind))
    return Suggestions(tuple(rows), level, _notes(values, align, broken))


def _refuse_odd(within: Mapping[str, Map] | None, level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise EvidenceError(f"level={level!r}; it is a probability between 0 and 1, as 0.05")
    if draws < 2:
        raise EvidenceError(f"draws={draws!r}; chance needs at least 2, and 99 are usual")
    if within is not None and not (
        isinstance(within, Mapping) and all(isinstance(m, Map) for m in within.values())
    ):
        raise EvidenceError(
            f"within={within!r}; it gives maps by name, as within={{'even': Palindrome()}}"
        )


def _notes(values: Mapping[str, Tensor], align: bool, broken: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if broken:
        notes.append(
            f"{', '.join(broken[:4])}{' …' if len(broken) > 4 else ''} hold values that are "
            "not finite, and were not compared"
        )
    constant = [n for n, v in values.items() if bool((v == v.reshape(-1)[0]).all())]
    if constant:
        notes.append(
            f"{', '.join(constant[:4])}{' …' if len(constant) > 4 else ''} hold one value "
            "only, so their being equal says nothing"
        )
    if not align:
        notes.append("orders of rows and columns were not searched for (align=False)")
    return tuple(notes)


class _Apart:
    """Whether no tie joins two sites (or has a say in one, asked of itself)."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.group = {n: i for i, names in enumerate(groups) for n in names}

    def __call__(self, a: str, b: str) -> bool:
        return a not in self.group or b not in self.group or self.group[a] != self.group[b]


def _looked_at(model: nn.Module, sites: Sequence[str]) -> tuple[dict[str, Tensor], _Apart]:
    values = site_values(model)
    names = dict.fromkeys(values)
    if sites:
        names = {}
        for text in sites:
            if not isinstance(text, str):
                raise NoSuchSite(f"a site is named by text, not by {text!r}")
            found = match(text, values) if "*" in text else [n for n in values if n == text]
            if not found:
                raise NoSuchSite(f"no parameter matches {text!r}; {nearest(text, values)}")
            names.update(dict.fromkeys(found))
    if any(values[n].is_meta for n in names):
        raise EvidenceError("the model is on the meta device and has no values; load it first")
    held = {
        n: values[n].detach().to(torch.float64).cpu()
        for n in names
        if values[n].is_floating_point() and values[n].ndim > 0 and values[n].numel() > 1
    }
    return {n: v for n, v in held.items() if bool(v.any())}, _Apart(resolved(model).groups)


def _turns(a: Shape, b: Shape) -> list[bool]:
    """Whether b is compared as it is (False), transposed (True), both or not at all."""
    found = [False] if tuple(a) == tuple(b) else []
    if len(a) == 2 and tuple(a) == tuple(b)[::-1] and min(a) > 1:
        found.append(True)
    return found


def _refuse_long(
    values: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]], draws: int
) -> None:
    steps = 0.0
    for a, b in pairs:
        if values[a].ndim > 1:
            p, q = values[a].shape[:2]
            each = (p + q) * values[a].numel() + p**3 + q**3
            steps += len(_turns(values[a].shape, values[b].shape)) * (1 + draws) * each
    if steps > STEPS:
        raise TooLarge(
            f"the alignments of {len(pairs)} pairs take {steps:.1g} steps, and suggest_ties "
            f"goes up to {STEPS:.1g}; name the weights to look at, lower draws, or pass "
            "align=False"
        )


def _energy(*weights: Tensor) -> float:
    return sum(float(w.square().sum()) for w in weights)


def _pair(
    a: str,
    b: str,
    values: Mapping[str, Tensor],
    parts: Mapping[str, Moments],
    turned: bool,
) -> Iterator[Suggestion]:
    """Equality, and equality up to a scale."""
    x, y = values[a], values[b].T if turned else values[b]
    inner = float((x * y).sum())
    xx, yy = _energy(x), _energy(y)
    other = parts[b].transposed() if turned else parts[b]
    turn: Map = Transpose() if turned else Same()
    chance = by_moments(inner, parts[a], other, two_sided=False)
    away = max(0.0, 0.5 - inner / (xx + yy))
    kind = "transposed" if turned else "equal"
    n = x.numel()
    declared: dict[str, Map] = {a: Same(), b: turn}
    yield Suggestion(kind, declared, away, n, 2 * n, chance.pvalue, chance.bound)
    # the best line through the two: the larger eigenvalue of [[xx, inner], [inner, yy]]
    root = math.hypot((xx - yy) / 2, inner)
    angle = 0.5 * math.atan2(2 * inner, xx - yy)
    if abs(math.cos(angle)) < 1e-6 or abs(math.sin(angle)) < 1e-6:
        return
    ratio = math.tan(angle)
    chance = by_moments(inner, parts[a], other, two_sided=True)
    left = max(0.0, 0.5 - root / (xx + yy))
    scaled: Map = Transpose() @ Scale(ratio) if turned else Scale(ratio)
    kind = "scaled transpose" if turned else "scaled"
    declared = {a: Same(), b: scaled}
    yield Suggestion(kind, declared, left, n + 1, 2 * n, chance.pvalue, chance.bound)


def _orders(
    a: str,
    b: str,
    values: Mapping[str, Tensor],
    turned: bool,
    draws: int,
    generator: np.random.Generator,
) -> Iterator[Suggestion]:
    """Equality up to the order of the first weight's rows, and of its columns."""
    x, y = values[a], values[b].T if turned else values[b]
    total = _energy(x, y)
    for axis, kind in ((0, "rows"), (1, "columns")):
        if min(x.shape[:2]) < 2:
            continue
        one, other = (_lines(w, axis) for w in (x, y))  # (n, m, rest)
        count, across = one.shape[:2]
        flat = one.reshape(count, -1)
        order, inner = aligned(flat, other.reshape(count, -1))
        null = np.empty(draws)
        for k in range(draws):
            mixed = other[:, torch.from_numpy(generator.permutation(across))]
            null[k] = aligned(flat, mixed.reshape(count, -1))[1]
        chance = by_draws(inner, null, math.exp(min(math.lgamma(across + 1), 700)))
        away = max(0.0, 0.5 - inner / total)
        yield Suggestion(
            f"{kind} permuted" + (" of the transpose" if turned else ""),
            {a: Same(), b: _gathered(x.shape, values[b].shape, order, axis, turned)},
            away,
            x.numel(),
            2 * x.numel(),
            chance.pvalue,
            chance.bound,
        )


def _lines(weight: Tensor, axis: int) -> Tensor:
    blocks = weight.reshape(*weight.shape[:2], -1)
    return blocks.transpose(0, axis) if axis else blocks


def _gathered(
    a: Shape,
    b: Shape,
    order: Order,
    axis: int,
    turned: bool,
) -> Map:
    """The map from a to b where the lines of a are lines `order` of b (turned)."""
    places = np.arange(numel(a)).reshape(tuple(a))
    back = np.argsort(order)
    moved = places[back] if axis == 0 else places[:, back]
    moved = moved.T if turned else moved
    return Gather(torch.from_numpy(np.ascontiguousarray(moved)), tuple(a))


def _inside(
    name: str,
    value: Tensor,
    within: Mapping[str, Map] | None,
    draws: int,
    generator: np.random.Generator,
) -> Iterator[Suggestion]:
    """Structure within one weight."""
    for kind, phi in _structures(value.shape, within):
        count = numel(value.shape[2:]) if value.ndim > 2 else value.numel()
        lines = value.reshape(-1, count).numpy()
        total = _energy(value)
        kept = _kept(phi, value)
        null = np.empty(draws)
        for k in range(draws):
            mixed = torch.from_numpy(generator.permuted(lines, axis=1)).reshape(value.shape)
            null[k] = _kept(phi, mixed)
        arrangements = math.exp(min(len(lines) * math.lgamma(count + 1), 700))
        chance: Chance = by_draws(kept, null, arrangements)
        away = max(0.0, 1 - kept / total)
        size = phi.rank, value.numel()
        yield Suggestion(kind, {name: phi}, away, *size, chance.pvalue, chance.bound)


def _kept(phi: LinearMap, value: Tensor) -> float:
    """How much of the energy a tie keeps."""
    return _energy(value) - _energy(value - phi.expand(phi.lift(value)))


def _structures(
    shape: Shape, within: Mapping[str, Map] | None
) -> Iterator[tuple[str, LinearMap]]:
    """The maps to try within a weight, bound to its shape."""
    wanted: dict[str, Map] = dict(within or {})
    kernel = tuple(shape[2:])
    if within is None and kernel:
        for dim in range(-len(kernel), 0):
            if shape[dim] > 1:
                wanted[f"palindrome, axis {dim}"] = Palindrome(dim=dim)
        if len(kernel) == 2 and kernel[0] == kernel[1] > 1:
            turns = Cyclic(4)
            wanted["quarter turns"] = Orbit(turns, turns.grid(kernel))
    for kind, phi in wanted.items():
        bound = _fitted(phi, tuple(shape))
        if bound is not None and bound.rank < numel(shape):
            yield kind, bound


def _fitted(phi: Map, shape: Shape) -> LinearMap | None:
    """A linear map bound to a weight, or to each of its kernels; None where it fits neither."""
    for part in (shape, shape[2:]):
        if not part:
            continue
        try:
            bound = phi.bind(part)
        except ShapeError:
            continue
        if not isinstance(bound, LinearMap):
            return None
        if part == shape:
            return bound
        index = bound.index()
        if index is None or index.scale is not None or index.shift is not None:
            return None
        filters = torch.arange(numel(shape[:2])).reshape(-1, 1) * index.size
        live = index.position >= 0
        moved = torch.where(live, index.position + filters, -1).reshape(shape)
        return Gather(moved).bind(shape)
    return None
