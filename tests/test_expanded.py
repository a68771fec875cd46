"""Sites held as plain tensors for a while: same function, same state, and nothing left over."""

import contextlib
import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call

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
        assert not torch.is_grad_enabled()
        assert not model(x).requires_grad
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


def whole(model, x, want):
    """The model is what it was: tied, trainable, free to be expanded."""
    eadem.check(model)
    assert torch.is_grad_enabled()
    assert torch.equal(model(x), want)
    assert all(type(m.__dict__["_parameters"]) is dict for m in model.modules())
    model.zero_grad()
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with eadem.expanded(model):
        assert torch.equal(model(x), want)


@pytest.fixture
def x():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_one_at_a_time_on_any_module(model, x):
    want = model(x).detach()
    around = nn.Sequential(model)
    for outer, inner in ((model, model), (model, model[0]), (model[0], model), (model, around)):
        with eadem.expanded(outer):
            with (
                pytest.raises(Unsupported, match=r"already.*enter it once"),
                eadem.expanded(inner),
            ):
                pass
            assert not torch.is_grad_enabled()
            assert torch.equal(model(x), want)
        whole(model, x, want)


def test_in_any_order_and_after_a_generator_left_open(model, x):
    want, other = model(x).detach(), copy.deepcopy(model)
    first, second = eadem.expanded(model), eadem.expanded(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.is_grad_enabled()
    second.__exit__(None, None, None)
    whole(model, x, want)
    whole(other, x, want)

    parts = eadem.expanded(model[0]), eadem.expanded(model[1])
    for part in parts:
        part.__enter__()
    for part in parts:
        part.__exit__(None, None, None)
    whole(model, x, want)

    def batches():
        with eadem.expanded(model):
            yield model(x)
            yield model(x)

    running = batches()
    assert torch.equal(next(running), want)
    running.close()
    whole(model, x, want)


def test_a_mode_of_ones_own_inside_is_found_again(model):
    with eadem.expanded(model[0]), torch.enable_grad():
        with eadem.expanded(model[1]):
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_two_threads_share_one_or_are_refused(model, x):
    want, seen, errors = model(x).detach(), [], []
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(20):
            try:
                with eadem.expanded(model):
                    seen.append(torch.equal(model(x), want))
            except Unsupported as e:
                errors.append(str(e))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(seen) + len(errors) == 80
    assert seen
    assert all(seen)
    assert all("another thread" in e for e in errors)
    whole(model, x, want)


def in_a_thread(do):
    """What `do` gives, or the error it raises, in a thread of its own."""
    found = []

    def run():
        try:
            found.append(do())
        except Exception as e:
            found.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_what_another_thread_does_meanwhile(model, x):
    want = model(x).detach()
    with eadem.expanded(model):
        assert isinstance(in_a_thread(lambda: eadem.expanded(model).__enter__()), Unsupported)
        loss = in_a_thread(lambda: model(x).sum())
        assert loss.requires_grad
        assert torch.equal(in_a_thread(lambda: model(x).detach()), want)
        error = in_a_thread(loss.backward)
        assert isinstance(error, TieBroken)
        assert "Train outside" in str(error)
    whole(model, x, want)


def test_left_in_another_thread(model, x):
    want = model(x).detach()
    entered = eadem.expanded(model)
    entered.__enter__()
    error = in_a_thread(lambda: entered.__exit__(None, None, None))
    assert isinstance(error, Unsupported)
    assert "same thread" in str(error)
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    whole(model, x, want)


def fused(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.zero_grad()


def data(model):
    for p in model.parameters():
        p.data = p.data * 2


def through_data(model):
    model[0]._parameters["weight"].data.add_(1)


def held_data(model):
    model[0].weight.data.add_(1)


def in_place(model):
    with torch.no_grad():
        model[0]._parameters["weight"].add_(1)


def halved(model):
    model.half()


def loaded(model):
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})


@pytest.mark.parametrize(
    "write", [fused, data, through_data, held_data, in_place, halved, loaded]
)
def test_every_way_of_writing_is_said_at_the_end(model, x, write):
    with pytest.raises(TieBroken, match="was written"), eadem.expanded(model):
        write(model)
    again = eadem.twin(model)
    model, x = model.float(), x.float()
    whole(model, x, model(x).detach())
    assert torch.equal(model(x), again.float()(x))


def test_a_value_that_is_no_number_is_no_change(model):
    with torch.no_grad():
        model[0]._parameters["weight"][0] = float("nan")
    with eadem.expanded(model):
        pass


def test_under_inference_mode(model, x):
    want = model(x).detach()
    with torch.inference_mode(), eadem.expanded(model):
        assert torch.equal(model(x), want)
    with eadem.expanded(model), torch.inference_mode():
        assert torch.equal(model(x), want)
    whole(model, x, want)
    with torch.inference_mode():
        made = group_cnn(Cyclic(4), 1, (2,), classes=2, in_size=8)
        with eadem.expanded(made):
            got = made(x)
        assert torch.equal(got, made(x))


def test_functional_call_is_refused_where_it_would_be_ignored(model, x):
    want = model(x).detach()
    given = {n: v * 2 for n, v in model.named_parameters()}
    with eadem.expanded(model):
        with pytest.raises(TieBroken, match="functional_call"):
            functional_call(model, given, (x,))
        untied = {n: v for n, v in given.items() if n.startswith(str(len(model) - 1))}
        found = functional_call(model, untied, (x,))
    assert torch.equal(found, functional_call(model, untied, (x,)))
    assert not torch.equal(found, want)
    whole(model, x, want)


def test_free_values_are_not_replaced_and_ties_not_changed(model, x):
    want = model(x).detach()
    with eadem.expanded(model):
        with pytest.raises(Unsupported, match="outside"):
            eadem.untie(model)
        with pytest.raises(Unsupported, match="outside"):
            eadem.tie(model, "0.bias", "1.bias")
        for change in (
            lambda p: p.pop("weight"),
            lambda p: p.__delitem__("weight"),
            lambda p: p.__setitem__("weight", nn.Parameter(torch.zeros(72))),
        ):
            with pytest.raises(TieBroken, match="free values"):
                change(model[0]._parameters)
        with contextlib.suppress(RuntimeError, TieBroken):
            model.load_state_dict(model.state_dict(), assign=True)
        with pytest.raises(Unsupported, match="is tied"):
            nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
        model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    assert "extra" in model._parameters
    del model.extra
    whole(model, x, want)


def test_gradients_are_refused_or_right(model, x):
    want = model(x).detach()
    x = x.requires_grad_()
    (right,) = torch.autograd.grad(model(x).sum(), x)
    with eadem.expanded(model), torch.enable_grad():
        (found,) = torch.autograd.grad(model(x).sum(), x)
        loss, later = model(x).sum(), model(x).sum()
        with pytest.raises(TieBroken, match="no gradient"):
            loss.backward()
    assert torch.allclose(found, right)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(later, list(model.parameters()), retain_graph=True)
    with pytest.raises(TieBroken, match="no gradient"):
        later.backward()
    model.zero_grad()
    x.grad = None
    x.grad = None
    model.requires_grad_(False)
    with eadem.expanded(model), torch.enable_grad():
        model(x).sum().backward()
    assert torch.allclose(x.grad, right)
    model.requires_grad_(True)
    whole(model, x.detach(), want)


def test_compiled_before_inside_and_after(model, x):
    want = model(x).detach()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), want)
    with eadem.expanded(model):
        assert torch.equal(compiled(x), want)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert torch.equal(compiled(x), model(x))


def test_an_error_on_the_way_in_changes_nothing(model, x, monkeypatch):
    want = model(x).detach()

    def fail(*args):
        raise MemoryError

    for name in ("_value", "_holding", "_Kept"):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["eadem.bind.expanded"], name, fail)
            with pytest.raises(MemoryError), eadem.expanded(model):
                pass
        whole(model, x, want)
