"""Gradients over several backward passes, and forward passes that are done again for them."""

import pytest
import torch
from by_hand import assert_same, batches, objective, pair
from lifecycle_systems import System, values
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import eadem


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_over_micro_batches(system: System, to_none: bool) -> None:
    """Two optimizer steps of three backward passes each, as by hand."""
    model, hand = pair(system)
    for m in (model, hand):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.02)
        for x in batches(system, 2):
            optimizer.zero_grad(set_to_none=to_none)
            for scale in (1.0, 0.5, -0.25):
                (scale * objective(m, x)).backward()
            optimizer.step()
    assert_same(model, hand)


def test_micro_batches_are_one_batch(system: System) -> None:
    model = system.tied().double().eval()
    (x,) = batches(system, 1)
    model(x).square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in x.split(1):
        model(part).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], whole)


def test_one_graph_used_twice(system: System) -> None:
    """`retain_graph`, and the gradient of a part."""
    model, hand = pair(system)
    for m in (model, hand):
        value = objective(m, batches(system, 1)[0])
        value.backward(retain_graph=True)
        value.backward()
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


# activation checkpointing


class Inside(nn.Module):
    """The model within a root that checkpoints it, as block after block of a large one."""

    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant
        self.lead = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        # reentrant: only inputs that want gradients keep the checkpoint in the graph
        def run(x: Tensor, lead: Tensor) -> Tensor:
            return self.inner(x) * lead

        return checkpoint(run, x, self.lead, use_reentrant=self.reentrant)


def _loss(out: Tensor) -> Tensor:
    return (out * torch.linspace(0.5, 1.5, out.numel()).to(out).reshape(out.shape)).sum()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        n.removeprefix("inner."): p.grad.clone()
        for n, p in model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["outside", "inside", "tied_inside"])
def test_checkpointed_is_plain(system: System, reentrant: bool, where: str) -> None:
    """The checkpoint around the tied root, within it, and within a root that ties a part."""
    plain = system.tied().double()
    x = system.input(plain)
    _loss(plain(x)).backward()
    wanted = _gradients(plain)
    if where == "tied_inside":
        model = Inside(system.stock(), reentrant)
        system.tie(model, "inner.")
        model.double()
    else:
        model = Inside(system.tied().double(), reentrant)
    if where == "outside":
        run, ones = model.inner, torch.ones((), dtype=torch.float64, requires_grad=True)
        out = checkpoint(lambda x, one: run(x) * one, x, ones, use_reentrant=reentrant)
    else:
        out = model(x)
    _loss(out).backward()
    found = _gradients(model)
    found.pop("lead", None)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    eadem.check(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_training_is_training(system: System, reentrant: bool) -> None:
    """θ changes between the passes; none sees the value of another."""
    model, hand = pair(system)
    inside = Inside(model, reentrant)
    inside.lead.requires_grad_(reentrant)
    for m in (inside, hand):
        ps = model.parameters() if m is inside else m.parameters()
        optimizer = torch.optim.SGD(ps, lr=0.05, momentum=0.9)
        for x in batches(system, 4):
            optimizer.zero_grad()
            objective(m, x).backward()
            optimizer.step()
    assert_same(model, hand)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("via", [eadem.Same(), eadem.Flip(0)], ids=repr)
def test_ties_across_checkpointed_blocks(reentrant: bool, via: eadem.Map) -> None:
    """One θ in four blocks, each run again by itself in the backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(4))).double()
    eadem.tie(model, "*.up.weight", to="0.up.weight", via=via)
    eadem.tie(model, "*.down.weight", to="0.up.weight", via=via @ eadem.Transpose())
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint_sequential(model, 3, x, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], wanted, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_pass_leaves_values_as_they_are(system: System, reentrant: bool) -> None:
    model = system.tied().double().eval()
    before = values(model, system.sites)
    out = Inside(model, reentrant)(system.input(model))
    with torch.no_grad():
        inside = values(model, system.sites)
    out.sum().backward()
    torch.testing.assert_close(inside, before, rtol=0, atol=0)
    torch.testing.assert_close(values(model, system.sites), before, rtol=0, atol=0)
