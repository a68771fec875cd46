"""Tied modules in modules made afterwards, in copies of parts, in classes of others."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import eadem


def autoencoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))


def tied() -> nn.Sequential:
    model = autoencoder()
    eadem.tie(model, "2.weight", to="0.weight", via=eadem.Transpose())
    return model


class Wrapper(nn.Module):
    """Holds a model's last layer ahead of the model."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.head = model[2]
        self.model = model


def nested() -> nn.Sequential:
    def layer() -> nn.Module:
        return nn.Linear(2, 2, bias=False)

    model = nn.Sequential(layer(), nn.Sequential(layer(), layer()))
    eadem.tie(model, "**.weight")
    return model


def follows(model: nn.Module, owner: nn.Module, site: nn.Module) -> bool:
    """Whether the site's value is the owner's, transposed, now and after a change."""
    eadem.check(model)
    with torch.no_grad():
        owner.weight.add_(1.0)
    return torch.equal(site.weight, owner.weight.t())


def test_a_container_made_later_has_the_ties() -> None:
    model = tied()
    container = nn.Sequential(*model)
    assert [t.sites for t in eadem.ties(container)] == [("2.weight", "0.weight")]
    assert eadem.counts(container) == eadem.counts(model)
    eadem.tie(container, "0.weight[0]", "0.weight[1]")
    assert eadem.counts(model).free == eadem.counts(container).free == 6
    eadem.untie(container)
    assert not eadem.ties(model)
    assert sum(p.numel() for p in model.parameters()) == 18


def test_a_container_made_later_is_saved_with_its_ties(tmp_path: Path) -> None:
    container = nn.Sequential(*tied())
    eadem.save(container, tmp_path / "x.safetensors")
    fresh = autoencoder()
    eadem.load(fresh, tmp_path / "x.safetensors")
    assert torch.equal(fresh[2].weight, container[2].weight)
    assert follows(fresh, fresh[0], fresh[2])


def test_a_container_made_later_loads_sites_in_full() -> None:
    model = tied()
    container, w = nn.Sequential(*model), torch.randn(3, 3)
    container.load_state_dict({"0.weight": w, "2.weight": w.t()})
    assert torch.equal(model[0].weight, w)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda m: nn.Sequential(*m)])
def test_a_conflict_is_found_before_anything_is_loaded(wrap: Any) -> None:
    model = tied()
    whole = nn.Sequential(nn.Linear(1, 1, bias=False), wrap(model))
    state = {k: torch.randn_like(v) for k, v in eadem.materialize(whole).items()}
    before = copy.deepcopy(whole.state_dict())
    with pytest.raises(eadem.TieConflict, match=r"1\.(0\.)?2\.weight.*Nothing was loaded"):
        whole.load_state_dict(state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_part_with_several_sites_is_loaded_if_they_agree() -> None:
    model = nested()
    before = model[0].weight.detach().clone()
    ones, zeros = torch.ones(2, 2), torch.zeros(2, 2)
    with pytest.raises(eadem.TieConflict, match="disagree: the largest difference is 1,"):
        model[1].load_state_dict({"0.weight": ones, "1.weight": zeros})
    assert torch.equal(model[0].weight, before)
    model[1].load_state_dict({"0.weight": ones, "1.weight": ones})
    assert torch.equal(model[0].weight, ones)


def test_a_container_made_later_is_copied_with_its_ties() -> None:
    model = tied()
    held = copy.deepcopy(model.state_dict())
    copied = copy.deepcopy(nn.Sequential(*model))
    assert follows(copied, copied[0], copied[2])
    assert torch.equal(model[0].weight, held["0.weight"])


def test_a_copy_that_meets_a_part_first() -> None:
    wrapper = Wrapper(tied())
    copied = copy.deepcopy(wrapper)
    assert copied.head is copied.model[2]
    assert copied.head is not wrapper.head
    assert follows(copied, copied.model[0], copied.head)
    eadem.check(copied.model)


def test_a_copy_that_meets_several_parts_first() -> None:
    model = nested()
    holder = nn.ModuleList([model[1][0], model[1][1], model])
    copied = copy.deepcopy(holder)
    eadem.check(copied)
    assert len(list(copied.parameters())) == 1
    assert copied[0] is copied[2][1][0]


def test_shallow_copies_share_and_their_deep_copies_are_tied() -> None:
    model = tied()
    head = copy.copy(model[2])
    assert torch.equal(head.weight, model[2].weight)
    shallow = copy.copy(model)
    eadem.check(shallow)
    copied = copy.deepcopy(shallow)
    assert follows(copied, copied[0], copied[2])
    assert follows(model, model[0], model[2])
    assert torch.equal(head.weight, model[2].weight)


def test_pickling_a_part_is_refused_beside_another_model() -> None:
    one, other = tied(), tied()
    with pytest.raises(eadem.EademError, match=r"'2\.weight' .* cannot be pickled alone"):
        pickle.dumps([other, one[2]])
    again, part = pickle.loads(pickle.dumps([one, one[2]]))
    assert part is again[2]


def test_an_owner_is_not_replaced_by_another_shape() -> None:
    model = tied()
    owner = model[0].weight
    with pytest.raises(eadem.TieBroken, match=r"'0\.weight'.*\(3, 3\).*2\.weight.*\(4, 3\)"):
        model[0].weight = nn.Parameter(torch.zeros(4, 3))
    assert model[0].weight is owner


def test_a_deleted_owner_is_named() -> None:
    model = tied()
    del model[0].weight
    for look in (eadem.ties, eadem.check, lambda m: eadem.explain(m, "2.weight")):
        with pytest.raises(eadem.TieBroken, match=r"'0\.weight'.* is gone"):
            look(model)


def test_a_part_is_not_filled_whose_free_values_are_on_meta() -> None:
    with torch.device("meta"):
        model = autoencoder()
    eadem.tie(model, "2.weight", to="0.weight", via=eadem.Transpose())
    with pytest.raises(eadem.TieBroken, match=r"0\.weight.* on meta.*to_empty"):
        model[2].load_state_dict({"weight": torch.ones(3, 3)}, assign=True)


class AddOne(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "register",
    [
        torch.nn.utils.parametrizations.weight_norm,
        lambda m: parametrize.register_parametrization(m, "weight", AddOne()),
    ],
    ids=["weight_norm", "own"],
)
def test_a_tied_site_is_not_parametrized(at: int, register: Any) -> None:
    model = tied()
    held = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(eadem.Unsupported, match=rf"'{at}\.weight' is tied .*twin"):
        register(model[at])
    assert {n: p.tolist() for n, p in held.items()} == {
        n: p.tolist() for n, p in model.named_parameters()
    }


def test_another_parametrization_on_a_tied_module_is_not_lost() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose())
    bias = model[1].bias.detach().clone()
    parametrize.register_parametrization(model[1], "bias", AddOne())
    assert follows(model, model[0], model[1])
    with pytest.raises(eadem.Unsupported, match=r"'1\.weight'.*ParametrizedLinear"):
        eadem.untie(model)
    assert torch.equal(model[1].bias, bias + 1)
    assert follows(model, model[0], model[1])
    parametrize.remove_parametrizations(model[1], "bias")
    eadem.untie(model)
    assert type(model[1]) is nn.Linear
    assert torch.equal(model[1].bias, bias + 1)


class Final(nn.Linear):
    """A class that will have no subclass."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("no subclass")


@pytest.mark.parametrize("calls", [1, 2])
def test_a_class_that_cannot_be_tied_leaves_the_model_as_it_was(calls: int) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), Final(3, 3))
    if calls == 2:
        eadem.tie(model, "0.weight", "1.weight")
    before = {n: id(p) for n, p in model.named_parameters()}
    ties = len(eadem.ties(model))
    with pytest.raises(TypeError, match="no subclass"):
        eadem.tie(model, "0.weight", "2.weight")
    assert {n: id(p) for n, p in model.named_parameters()} == before
    assert len(eadem.ties(model)) == ties
    eadem.check(model)


def test_a_class_of_the_user_is_not_kept_alive() -> None:
    class Layer(nn.Linear):
        pass

    model = nn.Sequential(Layer(3, 3), Layer(3, 3))
    eadem.tie(model, "*.weight")
    kind = weakref.ref(Layer)
    del Layer, model
    gc.collect()
    assert kind() is None
