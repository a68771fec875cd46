"""Rows 20 to 22: what is done at one site of a tie."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import eadem

from . import oracle
from .oracle import Stopped, event, judge, worst
from .rows import Case, Row, always, inner, kept, said, with_modules
from .subjects import Subject, head, llama, read, split
from .verdict import Outcome, Verdict
from .ways import EADEM, NATIVE, Way

__all__ = ["ROWS"]


def _frozen(way: Way, subject: Subject) -> Outcome:
    """Freezing one site's module stops that site, and so θ; or it is refused."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        try:
            with event(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inner(model, name).requires_grad_(False)
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        before = read(model, name)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1)
        oracle.loss(subject.call(model, subject.input())).backward()
        optimizer.step()
        if not torch.equal(read(model, name), before):
            found.append(said(Verdict.WRONG, f"{name}, frozen, is trained on"))
            continue
        values = {n: read(model, n) for n in subject.sites}
        found.append(worst([kept("θ is frozen"), *oracle.related(model, subject, values)]))
    return worst(found)


def _assigned(way: Way, subject: Subject) -> Outcome:
    """`module.weight = nn.Parameter(...)`, with a value that the tie can hold."""
    found = []
    for name in subject.sites:
        model, new = way.tied(subject), subject.values(8)
        try:
            with event(model):
                setattr(inner(model, name), split(name)[1], nn.Parameter(new[name].clone()))
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        found.append(judge(model, subject, want=new))
    return worst(found)


def _module_replaced(way: Way, subject: Subject) -> Outcome:
    """A new module in the place of a site's, then a step of training."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        path = split(name)[0]
        fresh = subject.stock(6).get_submodule(path)
        try:
            with event(model):
                outer, leaf = split(path)
                setattr(model.get_submodule(outer), leaf, fresh)
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        found.append(_found_out(model, subject))
    return worst(found)


def _found_out(model: nn.Module, subject: Subject) -> Outcome:
    """After the event, the tie holds, or the next step is refused, or it is gone."""
    try:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        oracle.loss(subject.call(model, subject.input())).backward()
        optimizer.step()
    except eadem.EademError as error:
        return said(Verdict.REFUSED, str(error))
    return judge(model, subject)


def _resized(way: Way, subject: Subject) -> Outcome:
    """transformers' `resize_token_embeddings`, with two words more."""
    model = way.tied(subject)
    with event(model):
        model.resize_token_embeddings(13)  # type: ignore[operator]
    embed, out = (read(model, n) for n in subject.sites)
    if embed.shape != (13, 8) or out.shape != embed.shape:
        shapes = f"{tuple(embed.shape)} and {tuple(out.shape)}"
        return said(Verdict.UNTIED, f"the sites have the shapes {shapes}")
    return _grown(model, subject)


def _grown(model: nn.Module, subject: Subject) -> Outcome:
    """The oracle for a model whose vocabulary is larger than its stock class's."""

    def larger() -> nn.Module:
        grown = llama()
        grown.resize_token_embeddings(13)  # type: ignore[operator]
        return grown

    return judge(model, dataclasses.replace(subject, plain=larger))


def _initialised(way: Way, subject: Subject) -> Outcome:
    """`model.apply` of torch's own initialisers."""
    model = way.tied(subject)
    before = {n: read(model, n) for n in subject.sites}

    def init(m: nn.Module) -> None:
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()  # type: ignore[operator]
        for w in (getattr(m, "w", None),):
            if isinstance(w, Tensor):
                nn.init.constant_(w, 0.5)

    with event(model):
        model.apply(init)
    for name, old in before.items():
        if torch.equal(read(model, name), old):
            return said(Verdict.WRONG, f"{name} was not initialised: the write is lost")
    return judge(model, subject)


def _written(way: Way, subject: Subject) -> Outcome:
    """An initialiser at one site alone: θ takes the values, or it is refused."""
    found = []
    for name in subject.sites:
        model = way.tied(subject)
        try:
            with event(model):
                nn.init.constant_(getattr(inner(model, name), split(name)[1]), 0.5)
        except Stopped as error:
            found.append(oracle.stopped(error, way is EADEM))
            continue
        if not bool((read(model, name) == 0.5).all()):
            found.append(said(Verdict.WRONG, f"the write at {name} is lost without a word"))
            continue
        found.append(judge(model, subject))
    return worst(found)


def _heads(tied: bool) -> Callable[[], tuple[Subject, ...]]:
    return lambda: (head(tied),)


ROWS = (
    Row(
        20, "frozen at one site", (Case("", _frozen, refusable=always, subjects=with_modules),)
    ),
    Row(
        21,
        "assigned at a tied site, replaced, or resized",
        (
            Case("a parameter assigned", _assigned, refusable=always),
            Case(
                "a module replaced", _module_replaced, refusable=always, subjects=with_modules
            ),
            Case(
                "resize_token_embeddings",
                _resized,
                refusable=always,
                subjects=_heads(False),
                needs=("transformers",),
            ),
            Case(
                "resize_token_embeddings",
                _resized,
                subjects=_heads(True),
                ways=(NATIVE,),
                library="transformers",
                needs=("transformers",),
            ),
        ),
    ),
    Row(
        22,
        "initialised with `model.apply`, or at one site",
        (
            Case("apply", _initialised, refusable=lambda s: bool(s.folds)),
            Case("at one site", _written, refusable=always),
        ),
    ),
)
