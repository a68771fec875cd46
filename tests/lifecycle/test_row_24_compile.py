"""Row 24: `torch.compile(fullgraph=True)`, twenty steps, one compilation, equal to eager.

The backend is `aot_eager`, which runs all of Dynamo and AOTAutograd and generates no code:
what code generation takes is not the tie's business, and takes minutes. `benchmarks/`
compiles with Inductor, and compares the outputs.
"""

import copy
import pickle

import pytest
import torch
from lifecycle_systems import System, assert_tied, loss, value
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def _train(
    call: nn.Module, model: nn.Module, system: System, fused: bool = False
) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
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


def test_under_no_grad_between_edits(system: System) -> None:
    """A compiled evaluation reads θ afresh: nothing of it is baked into the graph."""
    model = system.tied().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = system.input()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x))
            for p in model.parameters():
                p.mul_(0.5).add_(0.01)
    assert_tied(model, system)


def test_after_a_copy_and_a_pickle(system: System) -> None:
    """What was made ready for the compiler is made ready again in a copy."""
    for model in (copy.deepcopy(system.tied()), pickle.loads(pickle.dumps(system.tied()))):
        compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
        x = system.input()
        torch.testing.assert_close(compiled(x), model(x))


def test_a_copy_of_a_compiled_model_is_tied(system: System) -> None:
    model = system.tied()
    model.compile(fullgraph=True, backend="aot_eager")
    loss(model, system).backward()
    again = copy.deepcopy(system.tied())
    again.load_state_dict(model.state_dict())
    for name in system.sites:
        torch.testing.assert_close(value(again, name), value(model, name), rtol=0, atol=0)
