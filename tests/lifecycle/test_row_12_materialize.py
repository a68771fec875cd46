"""Row 12: `materialize` gives the stock class's state dict."""

import torch
from lifecycle_systems import System, assert_tied, assert_unchanged, snapshot, trained, values
from torch import nn

import eadem


def test_loads_in_the_stock_class_with_the_same_outputs(system: System) -> None:
    model = system.tied(seed=2)
    trained(model, system)
    model.eval()
    before = snapshot(model)
    state = eadem.materialize(model)
    stock = system.stock().eval()
    assert list(state) == list(stock.state_dict())
    stock.load_state_dict(state, strict=True)
    torch.testing.assert_close(values(stock, system.sites), values(model, system.sites))
    # rounding may differ by the layout of a transposed value, its bits do not
    torch.testing.assert_close(stock(system.input()), model(system.input()))
    assert_unchanged(model, before)


def test_it_is_plain_and_independent(system: System) -> None:
    model = system.tied()
    state = eadem.materialize(model)
    held = values(model, system.sites)
    for v in state.values():
        assert type(v) is torch.Tensor
        assert not v.requires_grad
        assert v.grad_fn is None
        assert v.is_contiguous()
        v.zero_()
    torch.testing.assert_close(values(model, system.sites), held, rtol=0, atol=0)
    pointers = [v.data_ptr() for v in state.values()]
    assert len(set(pointers)) == len(pointers)
    assert_tied(model, system)


def test_it_loads_back_into_the_tied_model(system: System) -> None:
    state = eadem.materialize(system.tied(seed=2))
    model = system.tied()
    model.load_state_dict(state, strict=True)
    assert_tied(model, system)


def test_untied_models_are_their_own_state_dict() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = eadem.materialize(model)
    assert list(state) == list(model.state_dict())
    for k, v in model.state_dict().items():
        torch.testing.assert_close(state[k], v, rtol=0, atol=0)
