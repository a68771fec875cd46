"""`eadem.share`: a pretrained transformer, made smaller by ties across its own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from eadem._share.allocate import Candidates, candidates, estimated, planned, uniform
from eadem._share.attach import Standing, attach, refuse_tied, replaced, standing, values
from eadem._share.embeddings import apart, checked, plan_of, refuse_one
from eadem._share.factors import remainders, spectrum
from eadem._share.families import Matrix, matrices, named
from eadem._share.loss import Loss, quantity, writes
from eadem._share.measure import operations
from eadem._share.plans import Entry, Plan
from eadem._share.statistics import Moments, moments
from eadem._share.text import Texts, read
from eadem.errors import NoSuchSite, OutOfRange, Unsupported

__all__ = ["MOST", "Method", "Shared", "methods", "redundant", "share", "usual_length"]

#: Most layers of which the similarity is kept.
MOST = 12
#: Shares of the parameters at which the loss is estimated.
KEEPS = tuple(k / 20 for k in range(20, 9, -1))
ALONE, ACROSS = "per-layer, ranks by loss", "bases within and across layers"
Said = Callable[[str, int, int], None]
Text = str | Sequence[str] | Tensor


@dataclass(frozen=True)
class Method:
    """One way to share, measured: numbers kept in the matrices, and the loss on the text for
    choosing (`choose`) and, where it was measured, for the test.
    """

    plan: Plan
    free: int
    choose: float
    test: float | None = None


@dataclass
class Shared:
    """What `share` did to a model.

    `plan` is on `model` now. `original` is the loss of the model as it was, `test` with the
    plan, both on text that no step has seen; `baseline` that of the per-layer whitened SVD at
    the same count; `chosen` the original's on the text for choosing. `methods` are all that
    were compared. `evidence` is what each tie costs of the loss, by its sites, the most first,
    and `curves` what ranks by loss cost at other shares of the parameters, to second order, by
    method: (share kept, loss added). `alike`: by kind, how much the inputs that matter to each
    layer are those of each other one (cosine of AᵀGA, (n, n)).
    `embeddings`: the plan that makes the input and the output embedding one matrix and nothing
    else, measured: it is beside the budget, and not on `model`. None where they are one
    already, and where the model writes no text.
    """

    model: nn.Module
    plan: Plan
    matrices: list[Matrix]
    standing: Standing
    quantity: str
    keep: float
    full: int
    free: int
    original: float
    test: float
    chosen: float = float("nan")
    baseline: float | None = None
    methods: list[Method] = field(default_factory=list)
    alike: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    evidence: list[tuple[str, float]] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    recovered: float | None = None
    cost: dict[str, tuple[float, float]] = field(default_factory=dict)
    embeddings: Method | None = None
    texts: Texts | None = None

    def __repr__(self) -> str:
        share = self.free / self.full
        return (
            f"Shared({self.plan.name}: {self.free} of {self.full} values ({share:.1%}), "
            f"{self.quantity} {self.original:.4f} → {self.test:.4f})"
        )


def _nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


def share(
    model: nn.Module,
    keep: float = 0.8,
    calibration: Text | None = None,
    *,
    tokenizer: Any = None,
    test: Text | None = None,
    plan: Plan | None = None,
    windows: tuple[int, int, int] = (48, 16, 32),
    length: int | None = None,
    reach: int = 2,
    compare: bool = True,
    seed: int = 0,
    progress: Said | None = None,
) -> Shared:
    """Tie a stock transformer's matrices so that `keep` of their numbers are left.

    Groups of matrices get one basis in common, W_l = C_l·B, over the types and layers where
    that costs least of the measured loss; everything else stays as it is. The model is tied in
    place, by `eadem.tie`: `eadem.save`, `untie`, `summary` and training go on from there, and
    its layers multiply by the factors, which are never multiplied out.

    Args:
        model: GPT-2, Llama, BERT, ALBERT, T5 or a relative, of transformers; with a `plan`,
            any module.
        keep: share of the numbers in the blocks' weight matrices; 1 changes nothing.
        calibration: text, a list of texts (for encoders), or token ids (windows, length).
        tokenizer: the model's, where text is given.
        test: the same kind of thing, for the losses that are reported; by default the last
            part of `calibration`, which then nothing else uses.
        plan: groups and ranks, instead of `keep`: `eadem._share.read_plan(file)`.
        windows: the most windows for statistics, for choosing between methods, for the test.
        length: tokens in a window; 256 or what the model can read.
        reach: how many neighbouring layers may share a basis.
        compare: measure the other methods too, and take the best on the choosing text.
        seed: of the tokens that the model draws for its Fisher information.
        progress: called with (what, done, total).

    Raises:
        Unsupported: an unknown architecture, or matrices that are tied already.
        DataError: calibration that is too short (it says how much is needed), or that shares
            passages with the test.
        OutOfRange: a `keep` that ties cannot reach.
    """
    said = progress or _nothing
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise OutOfRange(f"keep={keep!r}; it is a share of the parameters, above 0, at most 1")
    found = matrices(model) if plan is None else _of_plan(model, plan)
    refuse_tied(model, found)
    if calibration is None:
        raise OutOfRange(
            "sharing is fitted to text that is like what the model will read; give "
            "calibration=text with tokenizer=…, or token ids (windows, length)"
        )
    if writes(model) == "seq2seq":  # whose windows are cut in two, and need no padding
        calibration, test = _joined(calibration), _joined(test)
    texts = read(
        calibration,
        tokenizer,
        length=length or usual_length(model),
        most=windows,
        test=test,
    )
    device = next(model.parameters()).device
    texts = Texts(*([b.to(device) for b in part] for part in _parts(texts)))
    mode = model.training
    model.eval()
    try:
        return _shared(model, found, keep, plan, texts, reach, compare, seed, said)
    finally:
        model.train(mode)


def _joined(text: Any) -> Any:
    return "\n".join(text) if isinstance(text, list | tuple) else text


def _parts(texts: Texts) -> Iterator[list[Any]]:
    yield from (texts.fit, texts.choose, texts.test)


def _of_plan(model: nn.Module, plan: Plan) -> list[Matrix]:
    try:
        known = matrices(model)
    except Unsupported:  # a plan names its sites itself
        known = []
    sites = [s for e in plan.entries for s in e.sites]
    for site in sites:
        if sites.count(site) > 1:
            raise NoSuchSite(f"the plan names {site!r} twice; a site is in one tie")
    refuse_one(model, plan)
    known += checked(plan, apart(model))
    planned_ones = named(model, sites, known)
    by_site = {m.site: m for m in known}
    by_site.update({m.site: m for m in planned_ones})
    return list(by_site.values())


def usual_length(model: nn.Module) -> int:
    """Tokens in a window: 256, or what the model can read."""
    config: Any = getattr(model, "config", None)
    for name in ("max_position_embeddings", "n_positions"):
        most = getattr(config, name, None)
        if most:
            return min(256, int(most) - 2)
    return 256


def _shared(
    model: nn.Module,
    found: list[Matrix],
    keep: float,
    plan: Plan | None,
    texts: Texts,
    reach: int,
    compare: bool,
    seed: int,
    said: Said,
) -> Shared:
    full = sum(m.size for m in found)
    tested = Loss(model, texts.test)
    original = tested(model)
    out = Shared(
        model,
        plan or Plan((), 1.0),
        found,
        standing(found),
        quantity(model),
        keep,
        full,
        full,
        original,
        original,
        texts=texts,
    )
    if keep >= 1 and plan is None:
        return out
    pair = apart(model) if compare and plan is None else ()
    choosing = Loss(model, texts.choose)
    out.chosen = choosing(model)
    seen = moments(
        model,
        texts.fit,
        [*found, *pair],
        seed=seed,
        said=lambda a, b: said("reading the text", a, b),
    )
    groups = None
    try:
        if plan is not None:
            out.keep = operations(found, plan)[0] / full
        else:
            groups = candidates(
                model,
                seen,
                found,
                reach=reach,
                said=lambda a, b: said("finding common bases", a, b),
            )
            least = planned(groups, keep)
            plan = least
            if compare:
                plan = _compared(out, seen, groups, choosing, least, said)
                out.baseline = _measured(out, seen, out.methods[0].plan, tested)
                for name, some in ((ALONE, _within(groups, alone=True)), (ACROSS, groups)):
                    out.curves[name] = estimated(some, KEEPS)
            if pair:
                one = plan_of(pair)
                with replaced(model, values(model, seen, one, pair)):
                    out.embeddings = Method(one, pair[0].size, choosing(model), tested(model))
        out.evidence = _evidence(out, seen, groups, plan, choosing)
        out.alike = _alike(model, seen, found)
        out.plan = plan
        attach(model, seen, plan, found, lambda a, b: said("tying", a, b))
    finally:
        seen.close()
    out.free = operations(found, plan)[0]
    out.test = tested(model)
    return out


def _measured(out: Shared, seen: Moments, plan: Plan, loss: Loss) -> float:
    with replaced(out.model, values(out.model, seen, plan, out.matrices)):
        return loss(out.model)


def _compared(
    out: Shared,
    seen: Moments,
    groups: Candidates,
    loss: Loss,
    least: Plan,
    said: Said,
) -> Plan:
    """Every method at the same count, measured; the best but for the baseline."""
    plans = methods(out.model, seen, out.matrices, groups, out.keep, least)
    for i, one in enumerate(plans):
        measured = _measured(out, seen, one, loss)
        free = operations(out.matrices, one)[0]
        if i == 0:  # published as two full factors
            free = redundant(out.matrices, one)
        out.methods.append(Method(one, free, measured))
        said("measuring methods", i + 1, len(plans))
    return min(out.methods[1:], key=lambda m: m.choose).plan


def _within(groups: Candidates, *, alone: bool = False) -> Candidates:
    """The groups of one layer, or (`alone`) of one matrix."""
    return Candidates(
        tuple(
            (n, {run: cuts[:1] if alone else cuts for run, cuts in ways.items() if run[1] == 1})
            for n, ways in groups.bundles
        )
    )


def methods(
    model: nn.Module,
    seen: Moments,
    found: Sequence[Matrix],
    groups: Candidates,
    keep: float,
    least: Plan | None = None,
) -> list[Plan]:
    """The plans that are compared at one count; the first is the published baseline, the fifth
    (`least`, where it is known already) may use every group.
    """
    least = least or planned(groups, keep)
    most = keep * sum(m.size for m in found)
    plans = [
        uniform(found, keep, redundant=True),
        uniform(found, keep, redundant=False),
        planned(_within(groups, alone=True), keep, name=ALONE),
        planned(_within(groups), keep, name="bases within layers"),
        replace(least, name=ACROSS),
    ]
    for tied in (_recursive(model, seen, found, keep), _neighbours(found, keep)):
        if tied is not None:
            plans.append(tied)
    # where little is kept, a rank of one in every matrix may be too much
    return plans[:1] + [p for p in plans[1:] if operations(found, p)[0] <= most]


def redundant(found: Sequence[Matrix], plan: Plan) -> int:
    """Numbers of a plan of matrices alone, counted as two full factors each."""
    by_site = {m.site: m for m in found}
    free = sum(m.size for m in found)
    for e in plan.entries:
        m = by_site[e.sites[0]]
        free += e.rank * (m.shape[0] + m.shape[1]) - m.size
    return free


def _pairs(found: Sequence[Matrix], kinds: Sequence[str] | None) -> list[list[Matrix]]:
    """Matrices of one kind in layers 0 and 1, 2 and 3, …"""
    by: dict[tuple[str, str], list[Matrix]] = {}
    for m in found:
        if kinds is None or m.kind in kinds:
            by.setdefault((m.stack, m.kind), []).append(m)
    pairs = [ms[i : i + 2] for ms in by.values() for i in range(0, len(ms) - 1, 2)]
    return [p for p in pairs if p[0].shape == p[1].shape]


def _recursive(
    model: nn.Module, moments: Moments, found: Sequence[Matrix], keep: float
) -> Plan | None:
    """Layers two by two, each their mean and a remainder of low rank (relaxed recursion; Bae et
    al. 2025). The singular values of all remainders say which ranks gain most for a parameter.
    """
    pairs = _pairs(found, None)
    left = keep * sum(m.size for m in found) - sum(m.size for m in found)
    left += sum(p[0].size for p in pairs)
    if not pairs or left < 0:
        return None
    offers = []
    for i, p in enumerate(pairs):
        price = 2 * sum(p[0].shape)
        gains = remainders(model, moments, p)[: int(p[0].size // price)]
        offers += [(float(g) / price, i, price) for g in gains]
    ranks = [0] * len(pairs)
    for _, i, price in sorted(offers, reverse=True):
        if price <= left:
            ranks[i] += 1
            left -= price
    entries = [
        Entry("tied", tuple(m.site for m in p), r) for p, r in zip(pairs, ranks, strict=True)
    ]
    return Plan(tuple(entries), keep, "loss", "layers tied, low-rank remainder")


def _neighbours(found: Sequence[Matrix], keep: float) -> Plan | None:
    """Keys and values of neighbouring layers are one; the rest per layer."""
    pairs = _pairs(found, ("k", "v"))
    if not pairs:
        return None
    inside = {m.site for p in pairs for m in p}
    rest = [m for m in found if m.site not in inside]
    total = sum(m.size for m in rest)
    budget = keep * sum(m.size for m in found) - sum(p[0].size for p in pairs)
    if budget <= 0:
        return None
    entries = tuple(Entry("tied", tuple(m.site for m in p), 0) for p in pairs)
    others = uniform(rest, min(budget / total, 1.0), redundant=False, metric="loss")
    return Plan((*entries, *others.entries), keep, "loss", "keys and values of neighbours tied")


def _evidence(
    out: Shared, seen: Moments, groups: Candidates | None, plan: Plan, choosing: Loss
) -> list[tuple[str, float]]:
    """What each tie of a plan costs, by its sites, the most first: to second order where it is
    a basis that the loss has chosen; or else by itself, on the text for choosing.
    """
    cuts = groups.bundles if groups is not None else ()
    curves = {
        tuple(m.site for m in c.group): c.loss
        for _, ways in cuts
        for options in ways.values()
        for cut in options
        for c in cut
    }
    by_site = {m.site: m for m in out.matrices}
    found = []
    for e in plan.entries:
        if e.method == "tied" or plan.metric != "loss":
            alone = Plan((e,), metric=plan.metric)
            cost = _measured(out, seen, alone, choosing) - out.chosen
        elif e.sites in curves:
            cost = float(curves[e.sites][e.rank])
        else:
            gains = spectrum(out.model, seen, [by_site[s] for s in e.sites])
            cost = float(gains[e.rank :].sum())
        found.append((", ".join(e.sites), cost))
    return sorted(found, key=lambda pair: -pair[1])


def _alike(
    model: nn.Module, seen: Moments, found: Sequence[Matrix]
) -> dict[str, NDArray[np.float64]]:
    by: dict[str, list[Matrix]] = {}
    for m in found:
        if m.stack != "embeddings":
            by.setdefault(f"{m.stack} {m.kind}".strip(), []).append(m)
    alike = {}
    for kind, ms in by.items():
        chosen = [ms[i] for i in sorted({round(x) for x in np.linspace(0, len(ms) - 1, MOST)})]
        alike[kind] = _cosines(seen, chosen)
    return alike


def _cosines(seen: Moments, chosen: Sequence[Matrix]) -> NDArray[np.float64]:
    """Of the matrices' contents, two of which are in memory at a time."""
    found = np.ones((len(chosen), len(chosen)))
    for i, m in enumerate(chosen):
        one = seen.content(m)
        size = float(one.norm())
        for j, other in enumerate(chosen[:i]):
            two = seen.content(other)
            scale = max(size * float(two.norm()), 1e-300)
            found[i, j] = found[j, i] = float((one * two).sum()) / scale
    return found
