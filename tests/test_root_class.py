"""Where a forward of a tied model begins and ends: in a class of its root, or in hooks."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eadem


class Plain(nn.Module):
    """A root that holds no site itself and reads one of its layer's twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.stops = self.writes = False
        self.read: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.read = [weakref.ref(self.layer.weight), self.layer.weight is self.layer.weight]
        if self.stops:
            raise KeyboardInterrupt
        if self.writes:
            with torch.no_grad():
                self.layer.weight.clamp_(0, 1)
        return self.layer(x) + self.layer(x)


class Own(Plain):
    """A root whose subclasses are told of: it gets hooks, and no class."""

    def __init_subclass__(cls) -> None:
        raise AssertionError("a class was made of this one")


@pytest.fixture(params=[Plain, Own])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    found = request.param()
    eadem.tie(found, "layer.weight", via=eadem.Palindrome(dim=-1))
    return found


X = torch.randn(2, 4)


def begins(model: nn.Module) -> bool:
    model(X)
    return bool(model.read[1])  # type: ignore[index, union-attr]


def test_a_site_is_computed_once_and_kept_no_longer(model: Any) -> None:
    assert begins(model)
    gc.disable()
    try:
        with torch.no_grad():
            model(X)
        assert model.read[0]() is None
    finally:
        gc.enable()


def test_the_root_is_what_it_was(model: Any) -> None:
    kind = next(k for k in (Own, Plain) if isinstance(model, k))
    assert type(model).__name__ == kind.__name__
    assert (type(model) is kind) == (kind is Own)
    assert isinstance(type(model)(), kind)
    assert type(type(model)()) is kind
    eadem.untie(model)
    assert type(model) is kind
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not model._forward_hooks_always_called


def test_copies_begin_a_forward_too(model: Any) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for other in copies:
        assert type(other) is type(model)
        assert begins(other)
        assert torch.equal(other(X), model(X))
        assert eadem.counts(other) == eadem.counts(model)
        eadem.untie(other)
    assert begins(model)


def test_an_error_ends_it_and_leaves_nothing(model: Any) -> None:
    want = model(X).detach()
    model.stops = True
    with pytest.raises(KeyboardInterrupt) as caught:
        model(X)
    model.stops = False
    model._modules["layer"]._parameters["weight"].data.mul_(3)
    bias = model.layer.bias.detach()
    torch.testing.assert_close(model(X) - 2 * bias, 3 * (want - 2 * bias))
    del caught


def test_a_write_in_it_raises(model: Any) -> None:
    model.writes = True
    with pytest.raises(eadem.TieBroken, match="wrote in place"):
        model(X)
    model.writes = False
    assert begins(model)


def test_expanded_takes_it_away_and_gives_it_back(model: Any) -> None:
    kind, want = type(model), model(X)
    with eadem.expanded(model):
        assert not model._forward_pre_hooks
        assert type(model).__call__ is nn.Module.__call__
        assert torch.equal(model(X), want)
    assert type(model) is kind
    assert begins(model)


def test_a_root_inside_another_begins_once(model: Any) -> None:
    outer = nn.Sequential(model, nn.Linear(4, 4))
    eadem.tie(outer, "1.weight", via=eadem.Palindrome(dim=-1))
    outer(X)
    assert model.read[1]
    eadem.untie(outer, "1.weight")
    assert begins(model)


def test_a_root_that_is_tied_itself_begins_once_and_is_untied_again() -> None:
    layer = nn.Linear(4, 4)
    eadem.tie(layer, "weight", via=eadem.Palindrome(dim=-1))
    assert type(layer).__call__ is not nn.Module.__call__
    eadem.tie(layer, "bias", via=eadem.Palindrome(dim=-1))
    assert type(layer).__call__ is not nn.Module.__call__
    eadem.untie(layer, "bias")
    assert type(layer).__call__ is not nn.Module.__call__
    assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
    eadem.untie(layer)
    assert type(layer) is nn.Linear


def test_a_call_of_its_own_is_called() -> None:
    class Calls(Plain):
        calls = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().__call__(*args, **kwargs)

    model = Calls()
    eadem.tie(model, "layer.weight", via=eadem.Palindrome(dim=-1))
    assert begins(model)
    assert model.calls == 1


def test_a_class_put_over_the_root_keeps_it() -> None:
    model = Plain()
    eadem.tie(model, "layer.weight", via=eadem.Palindrome(dim=-1))
    kind = type(model)
    model.__class__ = type("Wrapped", (kind,), {})
    assert begins(model)
    eadem.tie(model, "layer.bias", via=eadem.Palindrome(dim=-1))
    assert begins(model)
    assert not model._forward_pre_hooks
    model.__class__ = kind
    eadem.untie(model)
    assert type(model) is Plain
