"""Row 2: torch's conversion flags replace parameters instead of changing them."""

from collections.abc import Iterator

import pytest
import torch
from lifecycle_systems import System, assert_related, assert_tied, close, values

OVERWRITE = torch.__future__.set_overwrite_module_params_on_conversion
SWAP = torch.__future__.set_swap_module_params_on_conversion


@pytest.fixture(params=[OVERWRITE, SWAP], ids=["overwrite", "swap"])
def flag(request: pytest.FixtureRequest) -> Iterator[None]:
    request.param(True)
    yield
    request.param(False)


@pytest.mark.usefixtures("flag")
def test_conversion_keeps_the_tie(system: System) -> None:
    model = system.tied()
    before = values(model, system.sites)
    model.double()
    for name, old in before.items():
        close(values(model, (name,))[name], old.double(), system)
    assert_tied(model, system)
    assert_tied(model.to(torch.float32), system)


@pytest.mark.usefixtures("flag")
def test_tied_while_the_flag_is_set(system: System) -> None:
    assert_tied(system.tied().double(), system)


@pytest.mark.usefixtures("flag")
def test_load_state_dict_under_the_flag(system: System) -> None:
    model = system.tied()
    model.load_state_dict(system.tied(seed=3).state_dict())
    for name, want in values(system.tied(seed=3), system.sites).items():
        torch.testing.assert_close(values(model, (name,))[name], want, rtol=0, atol=0)
    assert_tied(model, system)


@pytest.mark.usefixtures("flag")
def test_one_sites_module_converted_alone(system: System) -> None:
    for name in system.sites:
        model = system.tied()
        inner = model.get_submodule(name.rpartition(".")[0])
        if inner is model:
            continue
        inner.double()
        found = values(model, system.sites)
        assert {v.dtype for v in found.values()} == {torch.float64}, name
        assert_related(model, system)
