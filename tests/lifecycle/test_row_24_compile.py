"""Row 24: `torch.compile(fullgraph=True)`, twenty steps, one compilation, equal to eager.

The backend is `aot_eager`, which runs all of Dynamo and AOTAutograd and generates no code:
what code generation takes is not the tie's business, and takes long. One test compiles with
Inductor, and so does `benchmarks/`.
"""

import copy
import pickle

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, assert_tied, loss, value
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import eadem

SYSTEM = {s.name: s for s in SYSTEMS}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def _train(call: nn.Module, model: nn.Module, system: System) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(call, system)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return losses


def _both(system: System, backend: object, tolerance: float) -> None:
    model = system.tied()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    found, want = _train(compiled, model, system), _train(eager, eager, system)
    torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert float(found[0]) != float(found[-1])


def test_twenty_steps_in_one_compilation(system: System) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    _both(system, counter, 1e-6)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_twenty_steps_in_generated_code() -> None:
    """Inductor writes the expression of the tie into its code; the compiler takes long."""
    counter = CompileCounterWithBackend("inductor")
    _both(SYSTEM["palindrome"], counter, 1e-4)
    assert counter.frame_count == 1


def test_after_a_copy_and_a_pickle(system: System) -> None:
    """What was made ready for the compiler is made ready again in a copy."""
    model = pickle.loads(pickle.dumps(copy.deepcopy(system.tied()))).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = system.input()
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["kernels", "part"])
def test_a_copy_of_a_compiled_model_is_tied(name: str) -> None:
    system = SYSTEM[name]
    model = system.tied()
    model.compile(fullgraph=True, backend="aot_eager")
    loss(model, system).backward()
    again = copy.deepcopy(system.tied())
    again.load_state_dict(model.state_dict())
    for site in system.sites:
        torch.testing.assert_close(value(again, site), value(model, site), rtol=0, atol=0)


def _agree(model: nn.Module, call: nn.Module, system: System) -> None:
    x = system.input(model)
    want = copy.deepcopy(model)(x)
    torch.testing.assert_close(call(x), want, rtol=0, atol=0)


def test_modes_edits_and_loads_run_the_same_code(system: System) -> None:
    """Compiled code reads θ where it is now, and guards on nothing that an eager read, a mode
    or a load changes. (Batch normalisation itself asks for the mode.)
    """
    model = system.tied().eval()
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, fullgraph=True, backend=counter)
    for training in (False, True, False, True):
        model.train(training)
        _agree(model, call, system)
        model(system.input())
        [value(model, name) for name in system.sites]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5).add_(0.01)
    _agree(model, call, system)
    other = system.tied(seed=3)
    model.load_state_dict(other.state_dict())
    _agree(model, call, system)
    model.load_state_dict(eadem.materialize(system.tied(seed=4)))
    _agree(model, call, system)
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    _agree(model, call, system)
    assert counter.frame_count == (2 if system.name == "kernels" else 1)
    assert_tied(model, system)


@pytest.mark.parametrize("name", ["equality", "transpose", "kernels", "part"])
def test_tied_cast_and_untied_after_compilation(name: str) -> None:
    """The code compiled for one plan, or for one dtype, is not run for another."""
    system = SYSTEM[name]
    model = system.stock().eval()
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    _agree(model, call, system)
    system.tie(model)
    _agree(model, call, system)
    model.double()
    _agree(model, call, system)
    assert_tied(model.eval(), system)
    _agree(model, call, system)
    eadem.untie(model, *system.sites)
    with torch.no_grad():
        for i, site in enumerate(system.sites):
            model.get_parameter(site).mul_(i + 0.5)
    _agree(model, call, system)


def test_batches_of_any_size() -> None:
    system = SYSTEM["part"]
    model = system.tied().eval()
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    x = system.input()
    for batch in (x, torch.cat([x, x]), torch.cat([x, x, x])):
        torch.testing.assert_close(call(batch), model(batch))
    assert counter.frame_count == 1


def test_the_optimizer_compiled_too() -> None:
    """Eadem's watch over optimizers is traced, and changes nothing."""
    system = SYSTEM["part"]
    model, eager = system.tied(), system.tied()
    counter = CompileCounterWithBackend("aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    want = torch.optim.SGD(eager.parameters(), lr=0.05, momentum=0.9)
    step = torch.compile(optimizer.step, backend=counter)
    for _ in range(4):
        for m, s in ((model, step), (eager, want.step)):
            m.zero_grad()
            loss(m, system).backward()
            s()
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 2  # the first step makes the momentum


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


# Dynamo looks at the .grad of a block's input, which is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("far", "via"), [("down", eadem.Transpose()), ("up", eadem.Flip(-1))], ids=["view", "map"]
)
def test_blocks_compiled_one_by_one(far: str, via: eadem.Map) -> None:
    """θ is then outside of what is compiled, in the block before."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    eadem.tie(model, f"1.{far}.weight", to="0.up.weight", via=via)
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    for block in model:
        block.compile(fullgraph=True, backend=counter)
    x = torch.randn(5, 4)
    losses: list[list[float]] = []
    for m in (model, eager):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        losses.append([])
        for _ in range(5):
            optimizer.zero_grad()
            out = m(x).square().mean()
            out.backward()
            optimizer.step()
            losses[-1].append(float(out.detach()))
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert counter.frame_count <= 3


class Sliced(nn.Module):
    """Registers modules in its forward, as every slice of a ModuleList does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:2]:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("tied", [False, True])
def test_modules_registered_in_the_forward(tied: bool) -> None:
    model = Sliced()
    if tied:
        eadem.tie(model, "layers.*.weight")
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, fullgraph=True, backend=counter)
    x = torch.randn(2, 4)
    for _ in range(12):
        call(x)
        model.layers[0](x)
    assert counter.frame_count == 1
    if tied:  # and a model that did change is seen to
        model.layers.append(nn.Linear(4, 4))
        eadem.tie(model, "layers.2.weight", "layers.3.weight")
        torch.testing.assert_close(model.layers[3].weight, model.layers[0].weight)
