"""Row 16: however the optimizers are cut, each free value is stepped once.

What is split, dead or resized is found by `check_optimizers` and at the next step, by name.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import assert_same, batches, objective, pair
from lifecycle_systems import SYSTEMS, System, assert_tied, assert_unchanged, snapshot
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import eadem

Build = Callable[[Any], torch.optim.Optimizer]

KINDS: dict[str, Build] = {
    "sgd_foreach": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, foreach=True),
    "sgd_fused": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, fused=True),
    "adam_loop": lambda ps: torch.optim.Adam(ps, lr=0.02, foreach=False),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, lr=0.02, fused=True),
    "adam_tensor_lr": lambda ps: torch.optim.Adam(ps, lr=torch.tensor(0.02)),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, centered=True),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.02),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.3, max_iter=3, history_size=4),
}


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, xs: list[Tensor]) -> None:
    """One step on each batch."""
    for x in xs:

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = objective(model, x)
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_optimizer_trains_as_by_hand(system: System, kind: str) -> None:
    model, hand = pair(system)
    for m in (model, hand):
        optimizer = KINDS[kind](m.parameters())
        stepped(m, optimizer, batches(system, 3))
        if m is model:
            eadem.check_optimizers(m, optimizer)
    assert_same(model, hand, 1e-8)
    assert_tied(model.float(), system)


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_that_stepped_before_the_tie_is_refused_by_name(system: System, kind: str) -> None:
    model = system.stock().double()
    optimizer = KINDS[kind](list(model.parameters()))
    stepped(model, optimizer, batches(system, 2))
    if system.name == "positive":
        for name in system.sites:
            model.get_parameter(name).data.abs_()
    system.tie(model)
    before = snapshot(model)
    name = "|".join(system.sites).replace(".", r"\.")  # dead, or of another size
    for look in (lambda: eadem.check_optimizers(model, optimizer), optimizer.step):
        with pytest.raises(eadem.TieBroken, match=rf"'({name})'.*Build it again"):
            look()
    assert_unchanged(model, before)
    again = KINDS[kind](model.parameters())
    stepped(model, again, batches(system, 2))
    eadem.check_optimizers(model, again)


@pytest.mark.parametrize("system", SYSTEMS[3:6], ids=lambda s: s.name)
def test_one_built_before_a_resize_and_not_stepped_goes_on(system: System) -> None:
    """It holds the parameter itself, and no state yet."""
    model, hand = pair(system)
    late = system.stock().double()
    optimizer = torch.optim.Adam(late.parameters(), lr=0.02)
    system.tie(late)
    with torch.no_grad():
        for p, q in zip(late.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    eadem.check_optimizers(late, optimizer)
    stepped(late, optimizer, batches(system, 3))
    stepped(hand, torch.optim.Adam(hand.parameters(), lr=0.02), batches(system, 3))
    assert_same(late, hand)


def test_two_optimizers_and_groups_with_their_own_rates(system: System) -> None:
    """Tied free values under one rule, the rest under others."""
    model, hand = pair(system)
    for m in (model, hand):
        ps = list(m.parameters())
        names = [n for n, _ in model.named_parameters()]
        tied = [p for n, p in zip(names, ps, strict=True) if n in system.sites]
        rest = [p for n, p in zip(names, ps, strict=True) if n not in system.sites]
        both = (
            torch.optim.SGD(
                [{"params": tied, "lr": 0.1}, {"params": rest[:1], "lr": 0.01}], momentum=0.9
            ),
            torch.optim.Adam(rest[1:], lr=0.02),
        )
        if m is model:
            eadem.check_optimizers(m, *both)
        for x in batches(system, 3):
            for optimizer in both:
                optimizer.zero_grad()
            objective(m, x).backward()
            for optimizer in both:
                optimizer.step()
    assert_same(model, hand)


def test_one_theta_in_two_optimizers_is_refused(system: System) -> None:
    model = system.tied()
    owner = next(n for n, count in system.owned.items() if count)
    theta = dict(model.named_parameters())[owner]
    both = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.Adam([theta])
    with pytest.raises(eadem.TieBroken, match=rf"'{owner}' is stepped twice.*optimizer 1"):
        eadem.check_optimizers(model, *both)


def embedding_and_classifier() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    eadem.tie(model, "head.weight", to="embed.weight")
    return model


def test_two_rules_for_two_names_of_one_value_are_refused_with_both_names() -> None:
    model = embedding_and_classifier()
    one, other = torch.optim.AdamW([model.embed.weight]), torch.optim.SGD([model.head.weight])
    said = "'embed.weight' is stepped twice.*one value with 'head.weight', which a tie makes it"
    with pytest.raises(eadem.TieBroken, match=said):
        eadem.check_optimizers(model, one, other)


def test_a_rule_for_a_module_that_a_tie_left_nothing_is_refused() -> None:
    model = embedding_and_classifier()
    groups = [
        {"params": model.embed.parameters(), "weight_decay": 0.0},
        {"params": model.head.parameters(), "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups)
    said = "group 1 of optimizer 0 is empty.*head.weight is held by embed.weight"
    with pytest.raises(eadem.TieBroken, match=said):
        eadem.check_optimizers(model, optimizer)
    eadem.untie(model)
    empty = {"params": [], "weight_decay": 0.1}
    eadem.check_optimizers(model, torch.optim.AdamW([{"params": model.parameters()}, empty]))


def test_free_values_in_no_optimizer_are_refused(system: System) -> None:
    model = system.tied()
    owner = next(n for n, count in system.owned.items() if count)
    rest = [p for n, p in model.named_parameters() if n != owner]
    optimizer = torch.optim.SGD(rest, lr=0.1)
    with pytest.raises(eadem.TieBroken, match=f"no optimizer steps {owner}"):
        eadem.check_optimizers(model, optimizer)
    dict(model.named_parameters())[owner].requires_grad_(False)
    eadem.check_optimizers(model, optimizer)


# one θ whose free values live in two parameters


class Across(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + torch.tanh(self.b(x))


def across() -> Across:
    torch.manual_seed(0)
    model = Across()
    eadem.tie(model, "a.weight[1]", "b.weight[2]")
    return model


SPLIT = r"one tie are split.*a\.weight in optimizer 0 group 0; b\.weight in "


def test_groups_with_different_rules_that_split_a_tie_are_refused() -> None:
    model = across()
    a, b = model.a.parameters(), model.b.parameters()
    groups = [{"params": a, "lr": 0.1}, {"params": b, "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    model(torch.randn(2, 3)).sum().backward()
    before = snapshot(model)
    with pytest.raises(eadem.TieBroken, match=SPLIT + "optimizer 0 group 1"):
        eadem.check_optimizers(model, optimizer)
    with pytest.raises(eadem.TieBroken, match=SPLIT + "optimizer 0 group 1"):
        optimizer.step()
    assert_unchanged(model, before)


def test_groups_with_one_rule_may_share_a_tie() -> None:
    model = across()
    groups = [{"params": model.a.parameters()}, {"params": model.b.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    model(torch.randn(2, 3)).sum().backward()
    eadem.check_optimizers(model, optimizer)
    optimizer.step()
    eadem.check(model)


def test_two_optimizers_that_split_a_tie_are_refused() -> None:
    model = across()
    sgd = torch.optim.SGD
    both = sgd(model.a.parameters(), lr=0.1), sgd(model.b.parameters(), lr=0.1)
    model(torch.randn(2, 3)).sum().backward()
    with pytest.raises(eadem.TieBroken, match=SPLIT + "optimizer 1 group 0"):
        eadem.check_optimizers(model, *both)
    with pytest.raises(eadem.TieBroken, match=SPLIT + "none"):
        both[0].step()


def test_a_group_added_later_is_looked_at() -> None:
    model = across()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    other = across()
    optimizer.add_param_group({"params": [torch.zeros(2), other.a.bias]})
    optimizer.step()
    with torch.no_grad():
        optimizer.add_param_group({"params": [other.b.weight]})
    with pytest.raises(eadem.TieBroken, match=r"the value read at 'b\.weight'"):
        optimizer.step()


# values read at a site


@pytest.mark.parametrize("read", ["no_grad", "frozen"])
@pytest.mark.parametrize(
    ("system", "name"),
    [(s, n) for s in SYSTEMS[1:] for n, count in s.owned.items() if not count or s.free < 40],
    ids=lambda v: getattr(v, "name", v),
)
def test_a_value_in_place_of_a_parameter_is_refused(
    system: System, name: str, read: str
) -> None:
    """torch takes any leaf; a value read under `no_grad` is one, and would never change."""
    model = system.tied()
    module, _, attr = name.rpartition(".")
    owner = next(n for n, count in system.owned.items() if count)
    if read == "frozen":
        model.requires_grad_(False)
    with torch.no_grad():
        found = getattr(model.get_submodule(module), attr)
    if isinstance(found, nn.Parameter):
        eadem.check_optimizers(model, torch.optim.SGD([found], lr=0.1))
        return
    optimizer = torch.optim.SGD([found], lr=0.1)
    for look in (lambda: eadem.check_optimizers(model, optimizer), optimizer.step):
        with pytest.raises(eadem.TieBroken, match=rf"'{name}'.*free values are in {owner}"):
            look()


def test_the_value_of_an_equality_is_its_theta() -> None:
    """`SGD([head.weight])` steps the embedding, as torch's own alias would."""
    model = SYSTEMS[0].tied()
    optimizer = torch.optim.SGD([("head", model.head.weight)], lr=0.1)
    eadem.check_optimizers(model, optimizer)
    assert optimizer.param_groups[0]["params"][0] is model.embed.weight


def test_a_value_that_depends_on_theta_is_torchs_own_refusal() -> None:
    model = SYSTEMS[1].tied()
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD([model.decoder.weight], lr=0.1)


# state


@pytest.mark.parametrize("kind", ["adamw_fused", "sgd_foreach", "lbfgs"])
def test_saved_and_resumed(system: System, kind: str, tmp_path: Path) -> None:
    """Model and optimizer written after two steps go on as if nothing had been."""
    model = system.tied().double()
    optimizer = KINDS[kind](model.parameters())
    first, second = batches(system, 2), batches(system, 4)[2:]
    stepped(model, optimizer, first)
    eadem.save(model, tmp_path / "model.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    stepped(model, optimizer, second)

    other = system.stock(seed=3).double()
    eadem.load(other, tmp_path / "model.safetensors")
    again = KINDS[kind](other.parameters())
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    eadem.check_optimizers(other, again)
    stepped(other, again, second)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_copy_of_model_and_optimizer_goes_on_alone(system: System) -> None:
    model = system.tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    both = copy.deepcopy((model, optimizer))
    before = parameters_to_vector(model.parameters()).clone()
    eadem.check_optimizers(*both)
    both[0](system.input()).square().sum().backward()
    both[1].step()
    torch.testing.assert_close(parameters_to_vector(model.parameters()), before)
    assert not torch.equal(parameters_to_vector(both[0].parameters()), before)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_reaches_theta(system: System, to_none: bool) -> None:
    model = system.tied()
    objective(model, system.input()).backward()
    for what in (model, torch.optim.SGD(model.parameters(), lr=0.1)):
        what.zero_grad(set_to_none=to_none)
        for p in model.parameters():
            assert p.grad is None if to_none else not p.grad.any()


def test_a_vector_of_parameters_is_theta_and_goes_back(system: System) -> None:
    model = system.tied()
    vector = parameters_to_vector(model.parameters())
    assert vector.numel() == system.free
    other = system.tied(seed=4)
    vector_to_parameters(vector.detach(), other.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(other.eval()(system.input()), model.eval()(system.input()))
    assert_tied(other, system)


@pytest.mark.parametrize("system", SYSTEMS[3:4], ids=lambda s: s.name)
def test_a_compiled_step_steps_theta(system: System) -> None:
    model, hand = pair(system)
    for m in (model, hand):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.05)
        step = torch.compile(optimizer.step, backend="eager") if m is model else optimizer.step
        for x in batches(system, 2):
            optimizer.zero_grad()
            objective(m, x).backward()
            step()
    assert_same(model, hand)
