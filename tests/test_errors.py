"""Every error says what was asked, what was found and what to do, and is of Eadem's kind."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import eadem
from eadem import errors

KINDS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, Exception)
]


def test_all_kinds_derive_from_one() -> None:
    assert len(KINDS) >= 9
    for kind in KINDS:
        assert issubclass(kind, eadem.EademError)
        assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_kinds_are_public(kind: type[Exception]) -> None:
    assert getattr(eadem, kind.__name__) is kind


def test_kinds_are_also_what_python_would_raise() -> None:
    """So that code which knows nothing of Eadem catches them where it expects to."""
    assert issubclass(errors.NoSuchSite, LookupError)
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(errors.Unsupported, TypeError)
    assert issubclass(errors.MissingPackage, ImportError)


def test_nearest_names() -> None:
    known = ["encoder.weight", "decoder.weight", "decoder.bias"]
    assert "encoder.weight" in errors.nearest("encoder.wieght", known)
    assert errors.nearest("x", []) == "there are none"
    assert "decoder.bias" in errors.nearest("zzz", known)
    assert errors.nearest("decoder", iter(known))


MESSAGES = {
    "unknown site": (
        lambda m: eadem.tie(m, "0.wieght", "1.weight"),
        ["0.wieght", "0.weight"],
    ),
    "pattern": (lambda m: eadem.tie(m, "block.*.weight"), ["block.*.weight", "0.weight"]),
    "shapes": (
        lambda m: eadem.tie(m, "0.weight", "2.weight"),
        ["0.weight", "2.weight", "(3, 3)", "(2, 3)"],
    ),
    "conflict": (
        lambda m: (eadem.tie(m, "0.weight", "1.weight"), _twice(m)),
        ["0.weight", "1.weight", "Scale", "Same"],
    ),
    "index": (lambda m: eadem.tie(m, "0.bias[7]", "1.bias[0]"), ["0.bias[7]", "(3,)"]),
    "start": (
        lambda m: eadem.tie(m, "0.weight", "1.weight", start="strict"),
        ["1.weight", "strict"],
    ),
    "start value": (
        lambda m: eadem.tie(m, "0.weight", "1.weight", start=torch.zeros(7)),
        ["(7,)", "(3, 3)"],
    ),
}


def _twice(model: nn.Module) -> None:
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Scale(2.0)})


@pytest.mark.parametrize("case", list(MESSAGES))
def test_a_message_names_what_it_is_about(case: str) -> None:
    call, words = MESSAGES[case]
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(eadem.EademError) as caught:
        call(model)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
