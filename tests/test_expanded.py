"""Sites held as plain tensors for a while: same function, same state, and nothing left over."""

import copy
import pickle

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import TieBroken, Unsupported
from eadem.groups import Cyclic
from eadem.nn import group_cnn


@pytest.fixture
def model():
    torch.manual_seed(0)
    return group_cnn(Cyclic(4), 1, (2, 3), classes=2, in_size=8).eval()


def test_the_function_and_the_state_are_the_same(model):
    x = torch.randn(2, 1, 8, 8)
    want, state = model(x).detach(), {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    hooks = [(list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()]
    with eadem.expanded(model):
        assert torch.equal(model(x), want)
        assert model[0].weight is model[0].weight
        assert not model[0].weight.requires_grad
        inside = model.state_dict()
        assert list(inside) == list(state)
        assert all(torch.equal(inside[k], state[k]) for k in state)
        assert isinstance(model[0], nn.Conv2d)
    assert kinds == [type(m) for m in model.modules()]
    again = [(list(m._forward_pre_hooks), list(m._forward_hooks)) for m in model.modules()]
    assert hooks == again
    assert "weight" not in model[0].__dict__
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_dispatches_what_a_plain_model_does(model):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    x, plain, found = torch.randn(1, 1, 8, 8), eadem.twin(model).eval(), []
    with torch.no_grad(), eadem.expanded(model):
        for one in (model, plain):
            calls = []
            with Count():
                one(x)
            found.append(calls)
    assert found[0] == found[1]


def test_an_error_inside_leaves_the_model_tied(model):
    with pytest.raises(ZeroDivisionError), eadem.expanded(model):
        _ = 1 / 0
    eadem.check(model)
    assert "weight" not in model[0].__dict__


def test_what_would_be_lost_is_refused(model):
    with eadem.expanded(model):
        with pytest.raises(TieBroken, match="outside"):
            model[0].weight = nn.Parameter(torch.zeros(8, 1, 3, 3))
        with pytest.raises(Unsupported, match="twin"):
            copy.deepcopy(model)
        with pytest.raises(Unsupported, match="twin"):
            pickle.dumps(model)
    for write in (
        lambda: model[0].weight.zero_(),
        lambda: model[0]._parameters["weight"].zero_(),
    ):
        with pytest.raises(TieBroken, match="was written"), eadem.expanded(model):
            write()


def test_an_untied_model_and_a_forward_hook_of_ones_own(model):
    with eadem.expanded(nn.Linear(2, 2)):
        pass
    seen = []
    hook = model.register_forward_hook(lambda *a: seen.append(1))
    with eadem.expanded(model):
        model(torch.zeros(1, 1, 8, 8))
    hook.remove()
    model(torch.zeros(1, 1, 8, 8))
    assert seen == [1]
