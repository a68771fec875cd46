"""Row 8: `load_state_dict(assign=True)` replaces parameters and keeps the tie."""

import torch
from lifecycle_systems import System, assert_tied, values


def test_assign_keeps_the_tie_and_takes_the_values(system: System) -> None:
    model, other = system.tied(), system.tied(seed=7)
    model.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(
        values(model, system.sites), values(other, system.sites), rtol=0, atol=0
    )
    assert_tied(model, system)


def test_assign_of_another_dtype(system: System) -> None:
    model = system.tied()
    model.load_state_dict(system.tied(seed=7).double().state_dict(), assign=True)
    assert {values(model, (n,))[n].dtype for n in system.sites} == {torch.float64}
    assert_tied(model, system)


def test_one_optimizer_step_moves_theta_once(system: System) -> None:
    """torch#188346: two parameters at the tied names took two steps."""
    model, plain = system.tied(), system.tied(seed=7)
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    model.load_state_dict(state, assign=True)
    for m in (model, plain):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        m(system.input()).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(values(model, system.sites), values(plain, system.sites))


def test_assign_of_full_sites(system: System) -> None:
    model, other = system.tied(), system.tied(seed=7)
    state = dict(system.stock().state_dict()) | values(other, system.sites)
    model.load_state_dict(state, assign=True)
    torch.testing.assert_close(values(model, system.sites), values(other, system.sites))
    assert_tied(model, system)
