"""The helper for FSDP2: what it refuses before any process is asked, and one that shards."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from distributed_models import deep
from lifecycle_systems import SYSTEMS, assert_unchanged, snapshot
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import eadem
from eadem.integrations.fsdp import fully_shard


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, without a network."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("block", "pattern"),
    [
        ("stack.9", r"no module matches 'stack.9'; nearest: stack"),
        ("layers.*", r"no module matches 'layers.\*'"),
        (nn.Linear(2, 2), r"a Linear was given as a block that is not in this Deep"),
    ],
)
def test_blocks_that_are_not_there(block: object, pattern: str) -> None:
    model = deep()
    before = snapshot(model)
    with pytest.raises(eadem.NoSuchSite, match=pattern):
        fully_shard(model, "stack.*", block)
    assert_unchanged(model, before)


def test_what_torch_refuses_leaves_the_parameters_in_place() -> None:
    """Without a process group torch's own fully_shard fails at the first block."""
    model = deep()
    names = [n for n, _ in model.named_parameters()]
    modules = [n for n, _ in model.named_modules()]
    before = eadem.bind.site_values(model)
    with pytest.raises((AttributeError, AssertionError, ValueError)):
        fully_shard(model, "stack.*", mesh=object())
    assert [n for n, _ in model.named_parameters()] == names
    assert [n for n, _ in model.named_modules()] == modules
    for name, value in eadem.bind.site_values(model).items():
        assert torch.equal(value, before[name])
    eadem.check(model)


@pytest.mark.usefixtures("alone")
def test_options_reach_every_block() -> None:
    model = deep()
    mesh = init_device_mesh("cpu", (1,))
    kept = {model.stack[0].down.bias, model.embed.weight}
    found = fully_shard(model, model.stack[0], "stack.2", mesh=mesh, ignored_params=kept)
    assert found is model
    plain = {n for n, p in model.named_parameters() if not isinstance(p, DTensor)}
    assert plain == {"stack.0.down.bias", "embed.weight"}
    wrapped = {n for n, m in model.named_modules() if type(m).__name__.startswith("FSDP")}
    assert wrapped == {"", "stack.0", "stack.2"}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [s.name for s in SYSTEMS])
def test_what_is_read_of_a_sharded_model(name: str) -> None:
    system = next(s for s in SYSTEMS if s.name == name)
    model, plain = system.tied(), system.tied()
    record = eadem.record(model)
    fully_shard(model, "*", mesh=init_device_mesh("cpu", (1,)))
    eadem.check(model)
    assert eadem.record(model) == record
    assert eadem.counts(model) == eadem.counts(plain)
    assert [t.sites for t in eadem.ties(model)] == [t.sites for t in eadem.ties(plain)]
    for site in system.sites:
        assert eadem.explain(model, site) == eadem.explain(plain, site)
    eadem.check_optimizers(model, torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(
        eadem.bind.free_vector(model), eadem.bind.free_vector(plain), rtol=0, atol=0
    )
    eadem.bind.set_free_vector(model, eadem.bind.free_vector(plain) + 1.0)
    torch.testing.assert_close(
        eadem.bind.free_vector(model), eadem.bind.free_vector(plain) + 1.0, rtol=0, atol=0
    )
