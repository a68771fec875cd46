"""Rows 15, 17 and 19: an optimizer has one state and takes one step for each free value."""

import copy

import torch
from lifecycle_systems import System, loss, values
from torch.nn.utils import clip_grad_norm_


def test_one_state_and_one_step_for_each_parameter(system: System) -> None:
    model = system.tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss(model, system).backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert len(optimizer.state) == len(before)
    for p, old in zip(model.parameters(), before, strict=True):
        # Adam's first step is lr·sign(g) for every value: more than that is a second step
        assert float((p.detach() - old).abs().max()) <= 0.1 + 1e-6


def test_decay_is_taken_once(system: System) -> None:
    model = system.tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * 0.95)


def test_the_norm_counts_each_free_value_once(system: System) -> None:
    model = system.tied()
    loss(model, system).backward()
    want = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
    found = clip_grad_norm_(model.parameters(), 1e-3)
    torch.testing.assert_close(found, want)
    clipped = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
    torch.testing.assert_close(clipped, torch.tensor(1e-3), rtol=1e-3, atol=1e-6)


def test_optimizer_state_survives_a_round_trip(system: System) -> None:
    model = system.tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss(model, system).backward()
    optimizer.step()
    other = system.tied(seed=3)
    again = torch.optim.Adam(other.parameters(), lr=0.1)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, again)):
        m.zero_grad()
        loss(m, system).backward()
        o.step()
    torch.testing.assert_close(values(model, system.sites), values(other, system.sites))
