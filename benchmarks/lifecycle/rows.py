"""What a row of the table is: cases, each a function of a way of tying and a subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .oracle import event, judge
from .subjects import FIVE, Subject, split
from .verdict import Outcome, Verdict
from .ways import GENERAL, Way

__all__ = [
    "Case",
    "Probe",
    "Row",
    "after",
    "always",
    "first_two",
    "five",
    "inner",
    "kept",
    "linked",
    "said",
    "state_of",
    "with_modules",
]

Probe = Callable[[Way, Subject], Outcome]


def five() -> tuple[Subject, ...]:
    """The five systems of `tests/lifecycle`."""
    return FIVE


def first_two() -> tuple[Subject, ...]:
    """Equality and transpose."""
    return FIVE[:2]


def linked() -> tuple[Subject, ...]:
    """The systems with more than one site."""
    return tuple(s for s in FIVE if s.links)


def with_modules() -> tuple[Subject, ...]:
    """The systems whose sites are in modules below the model."""
    return tuple(s for s in FIVE if all("." in n for n in s.sites))


@dataclass(frozen=True)
class Case:
    """One event. `refusable`: whether the row lets Eadem refuse it, for this declaration.

    `library` names whose tie it is in the last column, `needs` what must be installed.
    """

    name: str
    probe: Probe
    refusable: Callable[[Subject], bool] = lambda subject: False
    subjects: Callable[[], tuple[Subject, ...]] = five
    ways: tuple[Way, ...] = GENERAL
    library: str = ""
    needs: tuple[str, ...] = ()
    seconds: float = 60


@dataclass(frozen=True)
class Row:
    """A line of the table: the model is `title`."""

    number: int
    title: str
    cases: tuple[Case, ...]


def always(subject: Subject) -> bool:
    """For `Case.refusable`: the row allows a refusal."""
    return True


def kept(detail: str = "") -> Outcome:
    """The tie is kept, or the right thing happened."""
    return Outcome(Verdict.KEPT, detail)


def said(verdict: Verdict, detail: str) -> Outcome:
    """Any other outcome."""
    return Outcome(verdict, detail)


def inner(model: nn.Module, name: str) -> nn.Module:
    """The module that a site is a parameter of."""
    return model.get_submodule(split(name)[0])


def state_of(way: Way, subject: Subject, seed: int) -> dict[str, Tensor]:
    """The state dict of a model tied in this way, each tensor on its own, as from a file."""
    return {k: v.detach().clone() for k, v in way.tied(subject, seed).state_dict().items()}


def after(
    change: Callable[[nn.Module], nn.Module | None],
    want: Callable[[Subject], Mapping[str, Tensor]] | None = None,
) -> Probe:
    """The probe of an event that changes a model, or gives another one in its place."""

    def probe(way: Way, subject: Subject) -> Outcome:
        torch.manual_seed(0)
        model = way.tied(subject)
        with event(model):
            model = change(model) or model
        return judge(model, subject, want=want(subject) if want else None)

    return probe
