"""Row 40: replicating and scripting are refused before they change anything; tracing works."""

import importlib
import io
import warnings

import pytest
import torch
from by_hand import batches, objective, pair
from lifecycle_systems import System, assert_tied, assert_unchanged, snapshot
from torch import Tensor, nn

import eadem

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),  # torch's own
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


def _copies(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[object]:
    return [[t.detach().clone() for t in tensors] for _ in devices]


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> object:
    """torch's own `replicate`, with the one step replaced that wants two GPUs."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_get_device_index", lambda x, optional: x)
    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", _copies)
    return module.replicate


def test_data_parallel_is_refused(system: System, replicate: object) -> None:
    model = system.tied()
    before = snapshot(model)
    site = f"'({'|'.join(system.sites)})'"
    says = rf"DataParallel.*{site}.*tie to ({site}|its own free).*DistributedDataParallel"
    for whole in (model, nn.Sequential(model)):
        with pytest.raises(eadem.Unsupported, match=says):
            replicate(whole, [0, 1])
    assert_unchanged(model, before)
    assert_tied(model, system)
    stock = replicate(system.stock(), [0, 1])  # the stand-in does replicate
    assert len(stock) == 2
    assert len(replicate(eadem.twin(model), [0, 1])) == 2


def test_data_parallel_on_one_device_is_the_model(system: System) -> None:
    """It copies nothing there."""
    model = system.tied()
    wrapped = nn.DataParallel(model) if not torch.cuda.is_available() else model
    x = system.input()
    torch.testing.assert_close(wrapped.eval()(x), model.eval()(x))
    assert_tied(model, system)


def test_scripting_is_refused(system: System) -> None:
    model = system.tied()
    before = snapshot(model)
    module = system.sites[-1].rpartition(".")[0]
    site = f"'({'|'.join(system.sites)})'"
    says = rf"jit\.script.*{site}.*come from.*torch\.compile.*eadem\.twin\(model\)"
    for part in (model, nn.Sequential(model), model.get_submodule(module)):
        with pytest.raises(eadem.Unsupported, match=says):
            torch.jit.script(part)
    assert_unchanged(model, before)
    assert_tied(model, system)


def test_the_twin_is_scripted(system: System) -> None:
    """The way out that the refusal names."""
    model = system.tied().eval()
    scripted = torch.jit.script(eadem.twin(model))
    torch.testing.assert_close(scripted(system.input()), model(system.input()))


def _traced(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(model, x)


def test_a_trace_follows_theta(system: System) -> None:
    """Values, gradients and parameters of the model that was traced."""
    model, hand = pair(system)
    model.eval(), hand.eval()
    (x,) = batches(system, 1)
    traced = _traced(model, x)
    assert {id(p) for p in traced.parameters()} == {id(p) for p in model.parameters()}
    assert [n for n, _ in traced.named_parameters()] == [n for n, _ in model.named_parameters()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (traced, hand)]
    for _ in range(3):
        for m, optimizer in zip((traced, hand), optimizers, strict=True):
            optimizer.zero_grad()
            objective(m, x).backward()
            optimizer.step()
        torch.testing.assert_close(traced(x), hand(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x), hand(x), rtol=1e-9, atol=1e-9)
    assert_tied(model.float(), system)


def test_a_saved_trace_holds_theta_once(system: System) -> None:
    model = system.tied().eval()
    x = system.input()
    file = io.BytesIO()
    torch.jit.save(_traced(model, x), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    stored = {n: p.shape for n, p in loaded.named_parameters()}
    assert stored == {n: p.shape for n, p in model.named_parameters()}
    torch.testing.assert_close(loaded(x), model(x))
    with torch.no_grad():
        for p, q in zip(model.parameters(), loaded.parameters(), strict=True):
            p.mul_(0.5)
            q.mul_(0.5)
    torch.testing.assert_close(loaded(x), model(x))
