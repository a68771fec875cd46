"""Row 17: under a GradScaler, θ's gradient is unscaled once."""

import pytest
import torch
from by_hand import assert_same, batches, objective, pair
from lifecycle_systems import System
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_

SCALE = 2.0**10


def scaler() -> GradScaler:
    return GradScaler("cpu", init_scale=SCALE, growth_interval=2)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def test_the_gradient_is_unscaled_once(system: System) -> None:
    model, hand = pair(system)
    (x,) = batches(system, 1)
    objective(hand, x).backward()
    held, optimizer = scaler(), torch.optim.SGD(model.parameters(), lr=0.1)
    held.scale(objective(model, x)).backward()
    torch.testing.assert_close(gradients(model), [SCALE * g for g in gradients(hand)])
    held.unscale_(optimizer)
    torch.testing.assert_close(gradients(model), gradients(hand), rtol=1e-10, atol=1e-12)
    with pytest.raises(RuntimeError, match="already been called"):
        held.unscale_(optimizer)


@pytest.mark.parametrize("clip", [False, True])
def test_training_under_a_scaler_is_training(system: System, clip: bool) -> None:
    """With and without clipping in between, over a change of scale."""
    model, hand = pair(system)
    held = scaler()
    for m in (model, hand):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.02)
        for x in batches(system, 5):
            optimizer.zero_grad()
            loss = objective(m, x)
            (held.scale(loss) if m is model else loss).backward()
            if clip:
                if m is model:
                    held.unscale_(optimizer)
                clip_grad_norm_(m.parameters(), 0.05)
            if m is model:
                held.step(optimizer)
                held.update()
            else:
                optimizer.step()
    assert held.get_scale() == SCALE * 4
    assert_same(model, hand)


def test_a_step_with_an_infinite_gradient_is_left_out(system: System) -> None:
    model, hand = pair(system)
    held, optimizer = scaler(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x in batches(system, 2):
        optimizer.zero_grad()
        held.scale(objective(model, x)).backward()
        next(model.parameters()).grad.view(-1)[0] = torch.inf
        held.step(optimizer)
        held.update()
    assert_same(model, hand)  # as it was
    assert held.get_scale() == SCALE / 4
    assert not any(optimizer.state.values())


def test_two_optimizers_are_unscaled_once_each(system: System) -> None:
    model, hand = pair(system)
    held = scaler()
    for m in (model, hand):
        ps = list(m.parameters())
        both = torch.optim.SGD(ps[:1], lr=0.1), torch.optim.Adam(ps[1:], lr=0.02)
        for x in batches(system, 3):
            m.zero_grad()
            for p in ps:
                p.grad = None
            loss = objective(m, x)
            (held.scale(loss) if m is model else loss).backward()
            for optimizer in both:
                held.step(optimizer) if m is model else optimizer.step()
            if m is model:
                held.update()
    assert_same(model, hand)
