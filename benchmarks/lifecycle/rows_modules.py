"""Rows 31 to 36, and 40: averages, edits, threads, modules that keep references, names."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parameters_to_vector,
    parametrizations,
    parametrize,
    prune,
    vector_to_parameters,
)
from torch.optim.swa_utils import AveragedModel

import eadem

from . import oracle
from .oracle import Stopped, event, judge, worst
from .rows import Case, Row, after, always, inner, kept, linked, said
from .subjects import FIVE, Link, Subject, mirrored, quarter, read, same, split, transposed
from .verdict import Outcome, Verdict, short
from .ways import ALIAS, EADEM, PARAMETRIZE, Way

__all__ = ["ROWS"]


# 31: averaged, pruned


def _averaged(way: Way, subject: Subject) -> Outcome:
    """The mean of two models, by torch's AveragedModel."""
    model = way.tied(subject, 1)
    with event(model):
        average = AveragedModel(model)
        average.update_parameters(model)
        model.load_state_dict(way.tied(subject, 2).state_dict())
        average.update_parameters(model)
    one, two = subject.values(1), subject.values(2)
    want = {n: (one[n] + two[n]) / 2 for n in one}
    return judge(average.module, subject, want=want)


def _pruned(way: Way, subject: Subject) -> Outcome:
    """Half of one site is cut: every site is, or nothing."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        module = inner(model, name)
        try:
            with event(model):
                prune.l1_unstructured(module, split(name)[1], amount=0.5)
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        found += oracle.related(model, subject, f"once {name} is pruned, ")
        prune.remove(module, split(name)[1])
        found.append(judge(model, subject))
    return worst(found)


# 32, 33: no stale value


def _fused(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    torch.optim.Adam(model.parameters(), lr=0.1, fused=True).step()


def _data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data * 0.5 + 0.1


def _vector(model: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()) * 0.5, model.parameters())


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5).add_(0.1)


def _edited(way: Way, subject: Subject) -> Outcome:
    found = [kept()]
    for edit in (_in_place, _data, _vector, _fused):
        for mode in (torch.no_grad, torch.inference_mode):
            model = way.tied(subject).eval()
            with event(), mode():
                first = subject.call(model, subject.input()).clone()
            edit(model)
            with event(), mode():
                second = subject.call(model, subject.input())
                expected = subject.call(oracle.follow(model, subject), _wide(subject))
            if torch.equal(first, second) or float((second - expected).abs().max()) > 1e-4:
                found.append(
                    said(Verdict.STALE, f"outputs as before an edit by {edit.__name__}")
                )
    return worst([*found, judge(model, subject)])


def _wide(subject: Subject) -> Tensor:
    x = subject.input()
    return x.double() if x.is_floating_point() else x


def _cached(way: Way, subject: Subject) -> Outcome:
    """parametrize's own cache, which a mapped site needs to be computed once."""
    model = way.tied(subject).eval()
    with torch.no_grad(), parametrize.cached():
        first = model(subject.input()).clone()
        _in_place(model)
        second = model(subject.input())
    expected = model(subject.input())
    if torch.equal(first, second) or float((second - expected).abs().max()) > 1e-5:
        return said(Verdict.STALE, "under cached(), the site keeps its value after an edit")
    return judge(model, subject)


def _threads(way: Way, subject: Subject) -> Outcome:
    models = [way.tied(subject, s).eval() for s in (1, 2)]
    x = subject.input()
    with torch.no_grad():
        expected = [m(x) for m in models]

    def work(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(models[i % 2](x), expected[i % 2]) for _ in range(20))

    with event(*models), ThreadPoolExecutor(4) as pool:
        right = all(pool.map(work, range(12)))
    return judge(models[0], subject) if right else said(Verdict.WRONG, "threads disagree")


# 34: modules that keep their own references


class _Two(nn.Module):
    """Two layers of one kind, one after the other."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.a = kind(3, 3, batch_first=True)
        self.b = kind(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x)[0])[0]
        return found


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x, x, x, need_weights=False)[0]
        found: Tensor = x + self.b(x, x, x, need_weights=False)[0]
        return found


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _two_sites(
    name: str,
    factory: Callable[[], nn.Module],
    shape: tuple[int, ...],
    derived: str,
    owner: str,
    link: Callable[[Tensor], Tensor] = same,
    plain: Callable[[], nn.Module] | None = None,
) -> Subject:
    maps: Mapping[Any, Any] = {
        same: (eadem.Same(), "same"),
        transposed: (eadem.Transpose(), "view"),
        mirrored: (eadem.Flip(-1), "map"),
    }
    phi, kind = maps[link]
    return Subject(
        name,
        factory,
        lambda m, at="": eadem.tie(m, {f"{at}{owner}": eadem.Same(), f"{at}{derived}": phi}),
        lambda: torch.randn(shape),
        links={derived: Link(owner, link, kind)},
        plain=plain,
    )


def _own_references() -> tuple[Subject, ...]:
    hh = ("b.weight_hh_l0", "a.weight_hh_l0")
    rows, wide = (2, 4, 3), (2, 4, 8)
    return (
        _two_sites("LSTM", lambda: _Two(nn.LSTM), rows, *hh),
        _two_sites("LSTM, flipped", lambda: _Two(nn.LSTM), rows, *hh, mirrored),
        _two_sites("GRU", lambda: _Two(nn.GRU), rows, *hh),
        _two_sites("attention", _Attention, wide, "b.in_proj_weight", "a.in_proj_weight"),
        _two_sites(
            "encoder layers",
            _encoder,
            wide,
            "layers.1.self_attn.in_proj_weight",
            "layers.0.self_attn.in_proj_weight",
        ),
        _two_sites(
            "encoder layers, transposed",
            _encoder,
            wide,
            "layers.1.linear2.weight",
            "layers.0.linear1.weight",
            transposed,
        ),
    )


def _copied_and_cast(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model.double()).float()


def _pair_of(second: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 3, bias=False), second())


def _lazies() -> tuple[Subject, ...]:
    plain = _pair_of(lambda: nn.Linear(3, 3, bias=False))
    lazy = _pair_of(lambda: nn.LazyLinear(3, bias=False))
    return (_two_sites("equality", lazy, (2, 3), "1.weight", "0.weight", plain=plain),)


def _parametrized() -> tuple[Subject, ...]:
    plain = _pair_of(lambda: nn.Linear(3, 3, bias=False))
    normed = _pair_of(lambda: parametrizations.weight_norm(nn.Linear(3, 3, bias=False)))
    return (_two_sites("equality", normed, (2, 3), "1.weight", "0.weight", plain=plain),)


def _tied_and_called(way: Way, subject: Subject) -> Outcome:
    """For modules that are not what they seem when the tie is made."""
    model = subject.stock()
    try:
        way.tie(model, subject)
    except Exception as error:
        return oracle.stopped(Stopped(error, ""), way is EADEM)
    with event():
        model(subject.input())
    return judge(model, subject)


# 35: asked for by name


def _asked(way: Way, subject: Subject) -> Outcome:
    """`get_parameter`: the value, or an error that names θ's owner."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        try:
            p = model.get_parameter(name)
        except Exception as error:
            owner = subject.links[name].owner if name in subject.links else "free value"
            if owner in str(error):
                found.append(
                    said(Verdict.REFUSED, f"{type(error).__name__}: {short(str(error))}")
                )
            else:
                text = f"{type(error).__name__}, without a word of θ: {short(str(error))}"
                found.append(said(Verdict.RAISES, text))
            continue
        value = read(model, name)
        if p.shape != value.shape:
            shapes = f"{tuple(p.shape)}, read as {tuple(value.shape)}"
            found.append(kept(f"the free values of {name}: {shapes}"))
        elif not torch.equal(p.detach(), value):
            found.append(said(Verdict.WRONG, f"{name} is not what is read there"))
        else:
            found.append(kept())
    return worst(found)


def _hooked(way: Way, subject: Subject) -> Outcome:
    """A gradient hook on what is read at a site: called, or an error."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        calls: list[Tensor] = []
        try:
            with event(model):
                getattr(inner(model, name), split(name)[1]).register_hook(calls.append)
                oracle.loss(model(subject.input())).backward()
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        if len(calls) != 1:
            what = f"a hook on {name} is called {len(calls)} times, without a word"
            found.append(said(Verdict.WRONG, what))
        else:
            found.append(kept())
    return worst(found)


# 36: tied in one order, loaded by code that ties in another


_ANOTHER_ORDER: dict[str, Callable[..., Any]] = {
    "equality": lambda m, at="": eadem.tie(m, f"{at}head.weight", f"{at}embed.weight"),
    "transpose": lambda m, at="": eadem.tie(
        m, f"{at}encoder.weight", to=f"{at}decoder.weight", via=eadem.Transpose()
    ),
    "kernels": lambda m, at="": eadem.tie(
        m,
        {
            f"{at}k2.weight": eadem.Flip(-1),
            f"{at}k1.weight": eadem.Rotate(1),
            f"{at}k0.weight": eadem.Same(),
        },
    ),
    "part": lambda m, at="": eadem.tie(m, f"{at}w[-1]", f"{at}w[1]"),
}


def _after_mirror(w: Tensor) -> Tensor:
    return quarter(mirrored(w))


_OTHER_OWNERS: dict[str, dict[str, Link]] = {
    "equality": {"embed.weight": Link("head.weight", same, "same")},
    "transpose": {"encoder.weight": Link("decoder.weight", transposed, "view")},
    "kernels": {
        "k0.weight": Link("k2.weight", mirrored),
        "k1.weight": Link("k2.weight", _after_mirror),
    },
}


def _other_order(way: Way, subject: Subject) -> Outcome:
    links = _OTHER_OWNERS.get(subject.name, {})
    other = Subject(
        subject.name,
        subject.factory,
        _ANOTHER_ORDER[subject.name],
        subject.x,
        links,
        subject.folds,
    )
    source, model = way.tied(subject, 7), way.tied(other, 3)
    state = {k: v.detach().clone() for k, v in source.state_dict().items()}
    if way is EADEM and eadem.record(source) != eadem.record(model):
        return said(Verdict.WRONG, "the two records differ")
    with event(model):
        model.load_state_dict(state, strict=True)
    return judge(model, subject, want=subject.values(7))


# 40: replicated, scripted


def _replicated(way: Way, subject: Subject) -> Outcome:
    """What DataParallel does for each device, with copies in the place of transfers."""
    from torch.nn.parallel import replicate

    def copies(tensors: Any, devices: Any, detach: bool = False) -> list[list[Tensor]]:
        return [[t.clone() for t in tensors] for _ in devices]

    model = way.tied(subject).eval()
    with (
        event(model),
        patch(f"{replicate.__module__}._get_device_index", lambda d, _: d),
        patch(f"{replicate.__module__}._broadcast_coalesced_reshape", copies),
    ):
        _, other = replicate(model, [0, 1])
    values = {n: read(other, n) for n in subject.sites}
    for name, w in subject.expand(subject.theta(values)).items():
        if not torch.equal(w, values[name]):
            return said(Verdict.UNTIED, f"in a replica {name} differs")
    loss = oracle.loss(other(subject.input()))
    loss.backward()
    expected = oracle.expected_gradients(model, subject)
    want = torch.cat([g.reshape(-1) for g in expected.values()])
    got = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    if got.numel() != want.numel():
        return said(Verdict.TWICE, f"{got.numel()} gradients for {want.numel()} free values")
    far = float((got.double().sort().values - want.sort().values).abs().max())
    return kept() if far < 1e-4 else said(Verdict.WRONG, f"a gradient is {far:.2g} away")


def _scripted(way: Way, subject: Subject) -> Outcome:
    """Scripted, saved and loaded."""
    model = way.tied(subject)
    stream = io.BytesIO()
    with event(model):
        torch.jit.save(torch.jit.script(model), stream)
    stream.seek(0)
    loaded: nn.Module = torch.jit.load(stream)
    return judge(loaded, subject)


ROWS = (
    Row(
        31,
        "averaged (EMA, SWA), or pruned at one site",
        (
            Case("averaged", _averaged),
            Case("pruned", _pruned, refusable=always),
        ),
    ),
    Row(
        32,
        "edited in place between two evaluations",
        (
            Case("", _edited),
            Case("under its cache", _cached, ways=(PARAMETRIZE,)),
        ),
    ),
    Row(33, "evaluated from several threads", (Case("", _threads),)),
    Row(
        34,
        "made of modules that keep references of their own",
        (
            Case("as built", after(lambda m: None), subjects=_own_references),
            Case("copied and cast", after(_copied_and_cast), subjects=_own_references),
            Case(
                "lazy",
                _tied_and_called,
                refusable=always,
                subjects=_lazies,
                ways=(EADEM, ALIAS),
            ),
            Case(
                "with weight_norm", _tied_and_called, refusable=always, subjects=_parametrized
            ),
        ),
    ),
    Row(
        35,
        "asked for a site by name",
        (
            Case("get_parameter", _asked, refusable=always),
            Case("a hook on what is read", _hooked, refusable=always),
        ),
    ),
    Row(
        36,
        "tied in one order, loaded by code that ties in another",
        (
            Case("", _other_order, subjects=linked),
            Case("", _other_order, subjects=lambda: (FIVE[3],), ways=(EADEM,)),
        ),
    ),
    Row(
        40,
        "replicated by DataParallel, scripted",
        (
            Case("replicate", _replicated, refusable=always),
            Case("jit.script", _scripted, refusable=always),
        ),
    ),
)
