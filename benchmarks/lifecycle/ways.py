"""Ways of tying: Eadem, and what one writes without it, each as well as it can be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .subjects import Fold, Link, Subject, split

__all__ = ["ALIAS", "EADEM", "GENERAL", "NATIVE", "PARAMETRIZE", "VIEW", "Way"]


@dataclass(frozen=True)
class Way:
    """`tie(model, subject)` ties a stock model; `lacks` says why it cannot, or nothing."""

    key: str
    title: str
    tie: Callable[[nn.Module, Subject], Any]
    lacks: Callable[[Subject], str]

    def tied(self, subject: Subject, seed: int = 0) -> nn.Module:
        """The subject's model, tied in this way."""
        model = subject.stock(seed)
        self.tie(model, subject)
        return model


def _nothing(subject: Subject) -> str:
    return ""


def _declare(model: nn.Module, subject: Subject) -> None:
    subject.declare(model)


def _missing(model: nn.Module, subject: Subject) -> dict[str, Link]:
    """The links that the model's own class has not made already."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {
        n: link
        for n, link in subject.links.items()
        if link.kind != "same" or named.get(n) is not named.get(link.owner, n)
    }


def _alias(model: nn.Module, subject: Subject) -> None:
    for name, link in _missing(model, subject).items():
        module, leaf = split(name)
        owner, attr = split(link.owner)
        p = getattr(model.get_submodule(owner), attr)
        if link.kind == "view":
            p = nn.Parameter(link.map(p.data))
        setattr(model.get_submodule(module), leaf, p)


def _no_alias(subject: Subject) -> str:
    alike = all(link.kind == "same" for link in subject.links.values())
    return "" if alike and not subject.folds else "an alias says equality only"


def _no_view(subject: Subject) -> str:
    viewed = any(link.kind == "view" for link in subject.links.values())
    mapped = any(link.kind == "map" for link in subject.links.values())
    if viewed and not mapped and not subject.folds:
        return ""
    return "neither an alias nor a strided view says it" if mapped else "an alias says it"


class _FromOwner(nn.Module):
    """Parametrization of a derived site; the owner is held so that it is not registered."""

    def __init__(self, module: nn.Module, attr: str, link: Link) -> None:
        super().__init__()
        self.source = (module,)
        self.attr, self.link = attr, link

    def forward(self, *given: Tensor) -> Tensor:
        return self.link.map(getattr(self.source[0], self.attr))

    def right_inverse(self, value: Tensor) -> tuple[()]:
        return ()


class _FromFew(nn.Module):
    """Parametrization of a site with structure: its free values are the original."""

    def __init__(self, fold: Fold) -> None:
        super().__init__()
        self.fold = fold

    def forward(self, theta: Tensor) -> Tensor:
        return self.fold.widen(theta)

    def right_inverse(self, value: Tensor) -> Tensor:
        return self.fold.narrow(value).clone()


def _parametrized(model: nn.Module, subject: Subject) -> None:
    for name, fold in subject.folds.items():
        module, leaf = split(name)
        parametrize.register_parametrization(
            model.get_submodule(module), leaf, _FromFew(fold), unsafe=True
        )
    for name, link in _missing(model, subject).items():
        module, leaf = split(name)
        owner, attr = split(link.owner)
        parametrize.register_parametrization(
            model.get_submodule(module),
            leaf,
            _FromOwner(model.get_submodule(owner), attr, link),
            unsafe=True,
        )


def _already(model: nn.Module, subject: Subject) -> None:
    """The model's own class has tied it."""


EADEM = Way("eadem", "Eadem", _declare, _nothing)
ALIAS = Way("alias", "`b.weight = a.weight`", _alias, _no_alias)
VIEW = Way("view", "`Parameter(a.weight.data.t())`", _alias, _no_view)
PARAMETRIZE = Way("parametrize", "`torch.nn.utils.parametrize`", _parametrized, _nothing)
NATIVE = Way("library", "the library's own", _already, _nothing)
GENERAL = (EADEM, ALIAS, VIEW, PARAMETRIZE)
