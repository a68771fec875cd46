"""Row 36: tied in one order and loaded by code that ties in another.

The order of calls, of sites and of patterns changes nothing: one plan, one record, one file to
the byte. Declarations in other words (from another site, or as another chain) are the same
plan too; their files load into each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, assert_tied, values
from torch import nn

import eadem
from eadem import Flip, Palindrome, Rotate, Same, Transpose, bind

Declare = Callable[[nn.Module], object]
SYSTEM = {s.name: s for s in SYSTEMS}
KERNELS = {"k0.weight": Same(), "k1.weight": Rotate(1), "k2.weight": Flip(-1)}


def _kernels(model: nn.Module, order: tuple[str, ...]) -> None:
    eadem.tie(model, {n: KERNELS[n] for n in order})


def _pairs(model: nn.Module, order: tuple[int, ...]) -> None:
    """The kernels, two declarations in a given order."""
    calls = [{n: KERNELS[n] for n in ("k0.weight", other)} for other in list(KERNELS)[1:]]
    for i in order:
        eadem.tie(model, calls[i])


ORDERS: dict[str, list[Declare]] = {
    "equality": [
        lambda m: eadem.tie(m, "embed.weight", "head.weight"),
        lambda m: eadem.tie(m, "head.weight", "embed.weight"),
        lambda m: eadem.tie(m, "head.weight", to="embed.weight"),
        lambda m: eadem.tie(m, "embed.weight", to="head.weight"),
        lambda m: eadem.tie(m, {"head.weight": Same(), "embed.weight": Same()}),
        lambda m: eadem.tie(m, "h*d.weight", "em*.weight"),
    ],
    "transpose": [
        SYSTEM["transpose"].tie,
        lambda m: eadem.tie(m, {"encoder.weight": Same(), "decoder.weight": Transpose()}),
        lambda m: eadem.tie(m, {"decoder.weight": Transpose(), "encoder.weight": Same()}),
    ],
    "kernels": [partial(_kernels, order=order) for order in itertools.permutations(KERNELS)],
    "part": [
        lambda m: eadem.tie(m, "w[1]", "w[3]"),
        lambda m: eadem.tie(m, "w[3]", "w[1]"),
        lambda m: eadem.tie(m, "w[-1]", to="w[1]"),
        lambda m: eadem.tie(m, "w[1, :]", to="w[3, ...]"),
    ],
    "palindrome": [
        lambda m: eadem.tie(m, "conv.weight", via=Palindrome(dim=-1)),
        lambda m: eadem.tie(m, {"c*.weight": Palindrome(dim=-1)}),
        lambda m: eadem.tie(m, "conv.weight[:]", via=Palindrome(dim=-1)),
    ],
}
#: The same plan, said otherwise.
WORDINGS: dict[str, list[Declare]] = {
    "transpose": [
        SYSTEM["transpose"].tie,
        lambda m: eadem.tie(m, "encoder.weight", to="decoder.weight", via=Transpose()),
        lambda m: eadem.tie(m, "encoder.weight", to="decoder.weight", via=Transpose(0, 1)),
    ],
    "kernels": [
        SYSTEM["kernels"].tie,
        lambda m: eadem.tie(
            m,
            {
                "k0.weight": Rotate(-1),
                "k1.weight": Same(),
                "k2.weight": Flip(-1) @ Rotate(-1),
            },
        ),
        lambda m: _pairs(m, (0, 1)),
        lambda m: _pairs(m, (1, 0)),
    ],
    "part": [
        SYSTEM["part"].tie,
        lambda m: eadem.tie(
            m, "w", via=eadem.Gather(torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [3, 4, 5]]))
        ),
    ],
    "palindrome": [
        SYSTEM["palindrome"].tie,
        lambda m: eadem.tie(
            m, {"conv.weight[..., :2]": Same(), "conv.weight[..., 3:]": Flip(-1)}
        ),
    ],
}


def _each(table: dict[str, list[Declare]]) -> list[object]:
    found = []
    for name, ways in table.items():
        for i, way in enumerate(ways):
            found.append(pytest.param(SYSTEM[name], ways[0], way, id=f"{name}-{i}"))
    return found


def _tied(system: System, way: Declare, seed: int = 0) -> nn.Module:
    model = system.stock(seed)
    way(model)
    return model


@pytest.mark.parametrize(("system", "first", "other"), _each(ORDERS))
def test_another_order_is_the_same_record_and_file(
    system: System, first: Declare, other: Declare, tmp_path: Path
) -> None:
    model, again = _tied(system, first), _tied(system, other)
    assert list(again.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert eadem.record(again) == eadem.record(model)
    assert repr(bind.resolved(again)) == repr(bind.resolved(model))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    eadem.save(model, one)
    eadem.save(again, two)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("system", "first", "other"), _each(ORDERS) + _each(WORDINGS))
def test_a_file_of_one_loads_into_the_other(
    system: System, first: Declare, other: Declare, tmp_path: Path
) -> None:
    model = _tied(system, first)
    path = tmp_path / "model.safetensors"
    eadem.save(model, path)
    again = _tied(system, other, seed=7)
    eadem.load(again, path)
    torch.testing.assert_close(
        values(again, system.sites), values(model, system.sites), rtol=0, atol=0
    )
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert eadem.counts(again) == eadem.counts(model)
    assert_tied(again, system)
    plain = _tied(system, other, seed=7)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert_tied(plain, system)


@pytest.mark.parametrize(("system", "first", "other"), _each(WORDINGS))
def test_other_words_are_the_same_plan(system: System, first: Declare, other: Declare) -> None:
    plans = [bind.resolved(_tied(system, way).double()) for way in (first, other)]
    assert [p.in_shape for p in plans] == [p.in_shape for p in plans[::-1]]
    theta = torch.randn(plans[0].in_shape, dtype=torch.float64)
    found, wanted = (p.split(p.expand(theta)) for p in plans)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


# several ties on one model


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.out = nn.Linear(3, 3)


CALLS: list[Declare] = [
    lambda m: eadem.tie(m, "layers.2.weight", "layers.0.weight"),
    lambda m: eadem.tie(m, "out.weight", to="layers.2.weight", via=Transpose()),
    lambda m: eadem.tie(m, "layers.*.bias"),
    lambda m: eadem.tie(m, "layers.3.weight[0]", "layers.1.weight[2]"),
]


@pytest.mark.parametrize("together", [False, True])
def test_several_ties_in_every_order(together: bool, tmp_path: Path) -> None:
    files, records = set(), []
    for order in itertools.permutations(CALLS):
        torch.manual_seed(0)
        model = Layers()
        if together:
            with eadem.plan(model):
                for call in order:
                    call(model)
        else:
            for call in order:
                call(model)
        records.append(eadem.record(model))
        eadem.save(model, tmp_path / "model.safetensors")
        files.add((tmp_path / "model.safetensors").read_bytes())
    assert all(r == records[0] for r in records)
    assert len(files) == 1


def test_modules_registered_in_another_order_have_another_owner(tmp_path: Path) -> None:
    """θ is kept at its first place in the model: another model, so it is said, not guessed."""
    one = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    two = nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    for model in (one, two):
        eadem.tie(model, "a.weight", "b.weight")
    eadem.save(one, tmp_path / "one.safetensors")
    with pytest.raises(eadem.RecordError, match=r"missing: b\.weight.*not in the model: a\.w"):
        eadem.load(two, tmp_path / "one.safetensors")
    two.load_state_dict(eadem.materialize(one))
    assert torch.equal(two["a"].weight, one["a"].weight)
