"""Row 22: `model.apply(init)` initialises θ; no write at a site is lost."""

from collections.abc import Callable

import pytest
import torch
from lifecycle_systems import (
    SYSTEMS,
    System,
    assert_tied,
    assert_unchanged,
    close,
    snapshot,
    value,
    values,
)
from torch import Tensor, nn

import eadem

WHOLE = SYSTEMS[:3]


def _read(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


@pytest.mark.parametrize("system", WHOLE, ids=lambda s: s.name)
def test_apply_of_a_random_initialisation(system: System) -> None:
    model = system.tied()
    before = values(model, system.sites)

    def init(m: nn.Module) -> None:
        if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.uniform_(m.weight, 2.0, 3.0)

    model.apply(init)
    for name, old in before.items():
        now = value(model, name)
        assert bool((now != old).all()), f"{name} was not initialised"
        assert bool(((now >= 2) & (now <= 3)).all())
    assert_tied(model, system)


@pytest.mark.parametrize("system", WHOLE, ids=lambda s: s.name)
def test_apply_of_reset_parameters(system: System) -> None:
    model = system.tied()
    before = values(model, system.sites)
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    for name, old in before.items():
        assert bool((value(model, name) != old).any())
    assert_tied(model, system)


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "copy_": lambda site, v: site.copy_(v),
    "data": lambda site, v: site.data.copy_(v),
    "slice": lambda site, v: site.__setitem__(slice(None), v),
    "mul_add": lambda site, v: site.mul_(0).add_(v),
    "detach": lambda site, v: site.detach().copy_(v),
    "view": lambda site, v: site.view_as(site).copy_(v),
}


@pytest.mark.parametrize("write", list(WRITES))
def test_a_write_goes_through_or_raises(system: System, write: str) -> None:
    for name in system.sites:
        model = system.tied()
        new = value(system.tied(seed=8), name)
        before = snapshot(model)
        try:
            with torch.no_grad():
                WRITES[write](_read(model, name), new)
        except (eadem.EademError, RuntimeError):
            assert_unchanged(model, before)
        else:
            torch.testing.assert_close(
                value(model, name), new, rtol=1e-6, atol=1e-7, msg=f"{write} at {name} was lost"
            )
        assert_tied(model, system)


@pytest.mark.parametrize(
    "init",
    [
        lambda w: nn.init.constant_(w, 3.0),
        lambda w: nn.init.ones_(w),
        lambda w: nn.init.zeros_(w),
    ],
    ids=["constant", "ones", "zeros"],
)
def test_constant_initialisers_at_every_site(
    system: System, init: Callable[[Tensor], Tensor]
) -> None:
    for name in system.sites:
        model = system.tied()
        before = snapshot(model)
        try:
            init(_read(model, name))
        except (eadem.EademError, RuntimeError):
            assert_unchanged(model, before)
        else:
            want = init(torch.empty(value(model, name).shape))
            close(value(model, name), want, system)
        assert_tied(model, system)


def test_reset_parameters_of_a_structured_site() -> None:
    """What comes out of a random initialisation is outside the tie: projected or refused."""
    system = SYSTEMS[4]
    model = system.tied()
    before = snapshot(model)
    held = value(model, "conv.weight")
    try:
        model.get_submodule("conv").reset_parameters()
    except eadem.EademError:
        assert_unchanged(model, before)
    else:
        assert bool((value(model, "conv.weight") != held).any()), "the write was lost"
    assert_tied(model, system)


def test_theta_drawn_once_keeps_its_spread() -> None:
    """An equality of ten layers initialised ten times has the spread of one."""
    model = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(10)))
    eadem.tie(model, "*.weight")
    torch.manual_seed(0)
    model.apply(lambda m: nn.init.normal_(m.weight) if isinstance(m, nn.Linear) else None)
    assert 0.95 < float(value(model, "7.weight").std()) < 1.05
