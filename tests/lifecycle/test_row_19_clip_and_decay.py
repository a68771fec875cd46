"""Row 19: clipping and decay meet each free value once."""

from collections.abc import Callable

import pytest
import torch
from by_hand import assert_same, batches, objective, pair
from lifecycle_systems import System
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm


def backward(model: nn.Module, system: System) -> Tensor:
    """All gradients, flat."""
    objective(model, batches(system, 1)[0]).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("kind", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_norm_is_that_of_the_summed_gradients(
    system: System, kind: float, foreach: bool
) -> None:
    model, hand = pair(system)
    wanted = torch.linalg.vector_norm(backward(hand, system), kind)
    backward(model, system)
    norm = get_total_norm([p.grad for p in model.parameters()], norm_type=kind)
    torch.testing.assert_close(norm, wanted, rtol=1e-10, atol=0)
    found = clip_grad_norm_(model.parameters(), 1e-3, norm_type=kind, foreach=foreach)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    left = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(
        torch.linalg.vector_norm(left, kind), torch.tensor(1e-3).double(), rtol=2e-3, atol=0
    )


Clip = Callable[[nn.Module], object]
CLIPS: dict[str, Clip] = {
    "norm": lambda m: clip_grad_norm_(m.parameters(), 0.02),
    "value": lambda m: clip_grad_value_(m.parameters(), 0.005),
}


@pytest.mark.parametrize("clip", list(CLIPS))
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_clipped_and_decayed_training(system: System, clip: str, decay: str) -> None:
    model, hand = pair(system)
    for m in (model, hand):
        kind = torch.optim.Adam if decay == "coupled" else torch.optim.AdamW
        optimizer = kind(m.parameters(), lr=0.02, weight_decay=0.3)
        for x in batches(system, 4):
            optimizer.zero_grad()
            objective(m, x).backward()
            CLIPS[clip](m)
            optimizer.step()
    assert_same(model, hand)


def test_decay_alone_shrinks_each_free_value_once(system: System) -> None:
    model = system.tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = [p.detach() for p in model.parameters()]
    torch.testing.assert_close(after, [0.95 * b for b in before])
