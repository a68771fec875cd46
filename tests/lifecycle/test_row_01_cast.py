"""Row 1: casting moves every site."""

import pytest
import torch
from lifecycle_systems import System, assert_related, assert_tied, close, values


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cast_of_the_whole_model(system: System, dtype: torch.dtype) -> None:
    model = system.tied()
    before = values(model, system.sites)
    assert model.to(dtype) is model
    for name, old in before.items():
        now = values(model, (name,))[name]
        assert now.dtype == dtype
        close(now, old.to(dtype), system, 0.01)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert_tied(model, system)


def test_double_and_half_shorthands(system: System) -> None:
    model = system.tied()
    assert_tied(model.double(), system)
    assert_tied(model.float(), system)


def test_cast_of_one_sites_module(system: System) -> None:
    for name in system.sites:
        model = system.tied()
        inner = model.get_submodule(name.rpartition(".")[0])
        if inner is model:
            continue
        inner.to(torch.float64)
        assert {values(model, (n,))[n].dtype for n in system.sites} == {torch.float64}, name
        assert_related(model, system)
