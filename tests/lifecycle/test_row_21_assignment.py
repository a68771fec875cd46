"""Row 21: assigning at a tied site re-ties or refuses; it never unties silently."""

from typing import Any

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
from torch import nn

import eadem

SITES = [(s, name) for s in SYSTEMS for name in s.sites]


def _put(model: nn.Module, name: str, new: object) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, new)


@pytest.mark.parametrize(("system", "name"), SITES, ids=lambda v: getattr(v, "name", v))
def test_a_parameter_in_the_set_of_the_tie_is_taken_or_refused(
    system: System, name: str
) -> None:
    model = system.tied()
    new = value(system.tied(seed=8), name)
    before = snapshot(model)
    try:
        _put(model, name, nn.Parameter(new.clone()))
    except eadem.EademError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert name.rpartition(".")[2] in refusal
        assert_unchanged(model, before)
    else:
        close(value(model, name), new, system)
    assert_tied(model, system)


@pytest.mark.parametrize(("system", "name"), SITES, ids=lambda v: getattr(v, "name", v))
@pytest.mark.parametrize("shape", [(), (1,), (9, 9), (2, 2, 2, 2, 2)])
def test_a_wrong_shape_is_refused(system: System, name: str, shape: tuple[int, ...]) -> None:
    model = system.tied()
    before = snapshot(model)
    if _refused(model, name, nn.Parameter(torch.zeros(shape))):
        assert_unchanged(model, before)
        assert_tied(model, system)
    else:
        _assert_found(model, system, name)


def _refused(model: nn.Module, name: str, new: object) -> bool:
    try:
        _put(model, name, new)
    except (eadem.EademError, TypeError):
        return True
    return False


def _assert_found(model: nn.Module, system: System, name: str) -> None:
    """A stock module took what its owner cannot be: `check` says so, and no site goes on
    with a value of its own.
    """
    with pytest.raises(eadem.TieBroken, match=name.replace(".", r"\.")):
        eadem.check(model)
    stale = values(system.tied(), system.sites)
    for other in set(system.sites) - {name}:
        try:
            found = value(model, other)
        except (eadem.TieBroken, AssertionError, RuntimeError):
            continue
        assert found.shape != stale[other].shape


@pytest.mark.parametrize("name", ["w", "conv.weight"])
def test_a_value_that_the_tie_cannot_hold_is_refused(name: str) -> None:
    system = next(s for s in SYSTEMS if name in s.sites)
    model = system.tied()
    outside = torch.arange(float(value(model, name).numel())).reshape(value(model, name).shape)
    before = snapshot(model)
    with pytest.raises(eadem.EademError):
        _put(model, name, nn.Parameter(outside))
    assert_unchanged(model, before)
    assert_tied(model, system)


@pytest.mark.parametrize(("system", "name"), SITES, ids=lambda v: getattr(v, "name", v))
def test_none_or_a_stranger_is_refused(system: System, name: str) -> None:
    for stranger in (None, "text", 3.0):
        model = system.tied()
        before = snapshot(model)
        if _refused(model, name, stranger):
            assert_unchanged(model, before)
            assert_tied(model, system)
        else:
            _assert_found(model, system, name)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
@pytest.mark.parametrize("new", [nn.Identity, lambda: None], ids=["another", "none"])
def test_a_module_with_part_of_a_tie_is_not_replaced(system: System, new: Any) -> None:
    """`model.head = nn.Linear(…)` would take a site out of its tie."""
    for name in system.sites:
        if "." not in name:
            continue  # on the model itself
        model = system.tied()
        before, inner = snapshot(model), name.rpartition(".")[0]
        with pytest.raises(eadem.TieBroken, match=rf"{inner}.* would leave .* eadem\.untie"):
            setattr(model, inner, new())
        assert_unchanged(model, before)
        eadem.untie(model)
        setattr(model, inner, new())


@pytest.mark.parametrize("system", SYSTEMS[:3], ids=lambda s: s.name)
def test_a_module_goes_with_its_whole_tie_or_within_another(system: System) -> None:
    model = system.tied()
    inner = system.sites[0].rpartition(".")[0]
    setattr(model, inner, nn.Sequential(getattr(model, inner)))
    eadem.check(model)
    assert f"{inner}.0.weight" in {s for t in eadem.ties(model) for s in t.sites}
    holder = nn.Sequential(model, getattr(model, inner))
    holder[1] = nn.Identity()  # it is in the model still
    holder[0] = nn.Identity()
    eadem.check(model)


@pytest.mark.parametrize("system", SYSTEMS[:3], ids=lambda s: s.name)
def test_modules_of_a_tie_do_not_change_places(system: System) -> None:
    model = system.tied()
    before = snapshot(model)
    one, other = (n.rpartition(".")[0] for n in system.sites[:2])
    with pytest.raises(eadem.TieBroken, match="would leave"):
        setattr(model, one, getattr(model, other))
    assert_unchanged(model, before)


@pytest.mark.parametrize("system", SYSTEMS[:3], ids=lambda s: s.name)
def test_a_removed_module_is_found_by_check(system: System) -> None:
    """`del` passes no hook of torch's."""
    for name in system.sites:
        model = system.tied()
        inner = name.rpartition(".")[0]
        delattr(model, inner)
        with pytest.raises(eadem.TieBroken, match=inner):
            eadem.check(model)


@pytest.mark.parametrize("system", SYSTEMS[:3], ids=lambda s: s.name)
def test_a_resized_owner_is_refused_where_it_is_read(system: System) -> None:
    owner = next(n for n, count in system.owned.items() if count)
    model = system.tied()
    module = model.get_submodule(owner.rpartition(".")[0])
    module._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(eadem.TieBroken, match=owner.replace(".", r"\.")):
        eadem.check(model)
