"""Row 31: there is one average for each θ; pruning one site is refused."""

import copy
import pickle

import pytest
import torch
from by_hand import ByHand, assert_same, batches, objective, pair
from lifecycle_systems import (
    SYSTEMS,
    System,
    assert_holds,
    assert_related,
    assert_tied,
    assert_unchanged,
    snapshot,
    trained,
    value,
)
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

import eadem

AVERAGES = {
    "mean": lambda m: AveragedModel(m),
    "swa": lambda m: AveragedModel(m, multi_avg_fn=get_swa_multi_avg_fn()),
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
    "buffers": lambda m: AveragedModel(
        m, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True
    ),
}


def _averaged(model: nn.Module, system: System, kind: str) -> AveragedModel:
    """The average over four training steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = AVERAGES[kind](model)
    for x in batches(system, 4):
        optimizer.zero_grad()
        objective(model, x).backward()
        optimizer.step()
        found.update_parameters(model)
    return found


@pytest.mark.parametrize("kind", list(AVERAGES))
def test_the_average_is_that_of_theta(system: System, kind: str) -> None:
    model, hand = pair(system)
    found, wanted = (_averaged(m, system, kind) for m in (model, hand))
    assert isinstance(wanted.module, ByHand)
    assert_same(found.module, wanted.module)
    assert_holds(found.module, system)
    eadem.check(found)
    assert_same(model, hand)
    sites = {n: w.detach() for n, w in wanted.module.sites().items()}
    for name in system.sites:
        torch.testing.assert_close(value(found.module, name), sites[name])
    x = batches(system, 1)[0]
    torch.testing.assert_close(found.eval()(x), _at(wanted.module.eval(), found.module, x))


def _at(hand: ByHand, model: nn.Module, x: Tensor) -> Tensor:
    """What the stock model gives at the averaged sites, with the average's buffers."""
    for name, b in model.named_buffers():
        hand.stock.get_buffer(name).copy_(b)
    return hand(x)


@pytest.mark.parametrize("system", SYSTEMS[:-1], ids=lambda s: s.name)
def test_the_average_of_a_linear_tie_is_the_average_at_its_sites(system: System) -> None:
    model = system.tied().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = AveragedModel(model)
    seen = []
    for x in batches(system, 3):
        optimizer.zero_grad()
        objective(model, x).backward()
        optimizer.step()
        found.update_parameters(model)
        seen.append([value(model, n) for n in system.sites])
    for name, several in zip(system.sites, zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(value(found.module, name), torch.stack(several).mean(0))


def test_an_average_is_saved_and_loaded(system: System) -> None:
    model = system.tied()
    found = AveragedModel(model)
    trained(model, system)
    found.update_parameters(model)
    again = AveragedModel(system.tied(seed=5))
    again.load_state_dict(found.state_dict(), strict=True)
    x = system.input()
    torch.testing.assert_close(again.eval()(x), found.eval()(x), rtol=0, atol=0)
    assert_tied(again.module, system)


def test_the_average_of_a_stock_model_can_be_tied(system: System) -> None:
    """Wrapped first, tied after: by the names that the wrapper gives."""
    found = AveragedModel(system.stock())
    system.tie(found, "module.")
    found.update_parameters(system.tied())
    assert_tied(found.module, system)


def test_batch_norm_is_updated_on_the_average() -> None:
    system = SYSTEMS[2]
    model = system.tied()
    found = AveragedModel(model)
    found.update_parameters(model)
    xs = [system.input(), 2 * system.input()]
    update_bn(xs, found)
    stock = system.stock()
    stock.load_state_dict(eadem.materialize(model))
    update_bn(xs, stock)
    torch.testing.assert_close(found.module.norm.running_mean, stock.norm.running_mean)
    torch.testing.assert_close(found.module.norm.running_var, stock.norm.running_var)
    assert_tied(found.module, system)


# pruning

PRUNES = {
    "l1": lambda m, n: prune.l1_unstructured(m, n, amount=0.3),
    "random": lambda m, n: prune.random_unstructured(m, n, amount=0.3),
    "structured": lambda m, n: prune.ln_structured(m, n, amount=0.5, n=2, dim=0),
    "identity": lambda m, n: prune.identity(m, n),
    "global": lambda m, n: prune.global_unstructured(
        [(m, n)],
        prune.L1Unstructured,
        importance_scores={(m, n): getattr(m, n).detach().abs().contiguous()},
        amount=2,
    ),
}
SITES = [(s, n) for s in SYSTEMS for n in s.sites]


@pytest.mark.parametrize("kind", list(PRUNES))
@pytest.mark.parametrize(("system", "name"), SITES, ids=lambda v: getattr(v, "name", v))
def test_pruning_one_site_is_refused(system: System, name: str, kind: str) -> None:
    model = system.tied()
    module, _, attr = name.rpartition(".")
    at = model.get_submodule(module)
    before = snapshot(model)
    says = rf"'{name}' is tied \({system.sites[0]}.*'{attr}_orig'.*pruning.*eadem\.twin"
    error: type[Exception] = eadem.Unsupported
    if kind == "global" and not getattr(at, attr).is_contiguous():
        error, says = RuntimeError, "view"  # torch's own, for any tensor of such strides
    with pytest.raises(error, match=says):
        PRUNES[kind](at, attr)
    assert_unchanged(model, before)
    assert not at._forward_pre_hooks or at is model
    assert_tied(model, system)


def test_a_copy_or_pickle_refuses_too(system: System) -> None:
    name = system.sites[0]
    module, _, attr = name.rpartition(".")
    for model in (copy.deepcopy(system.tied()), pickle.loads(pickle.dumps(system.tied()))):
        with pytest.raises(eadem.Unsupported, match=f"'{name}' is tied"):
            prune.l1_unstructured(model.get_submodule(module), attr, amount=0.3)
        assert_related(model, system)


def test_untied_sites_and_copies_of_one_module_are_pruned(system: System) -> None:
    name = system.sites[0]
    module, _, attr = name.rpartition(".")
    untied = eadem.untie(system.tied())
    prune.l1_unstructured(untied.get_submodule(module), attr, amount=2)
    assert int((value(untied, name) == 0).sum()) == 2
    if len(system.sites) > 1:
        alone = copy.deepcopy(system.tied().get_submodule(module))
        prune.l1_unstructured(alone, attr, amount=2)
        assert int((getattr(alone, attr) == 0).sum()) == 2
    twin = eadem.twin(system.tied())
    prune.l1_unstructured(twin.get_submodule(module), attr, amount=2)


def test_untied_parameters_are_laid_out_as_torchs_own(system: System) -> None:
    """Pruning, `parameters_to_vector` and others take a flat view of a parameter."""
    copies = [copy.deepcopy(system.tied().get_submodule(m)) for m in system.derived]
    for untied in (eadem.twin(system.tied()), eadem.untie(system.tied()), *copies):
        assert all(p.is_contiguous() for p in untied.parameters())
        parameters_to_vector(untied.parameters())


def test_what_is_pruned_first_may_be_tied_after() -> None:
    """The way out: each site keeps its own mask over the one θ."""
    model = SYSTEMS[0].stock()
    prune.l1_unstructured(model.embed, "weight", amount=7)
    prune.random_unstructured(model.head, "weight", amount=5)
    eadem.tie(model, "embed.weight_orig", "head.weight_orig")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(SYSTEMS[0].input()).square().sum().backward()
        optimizer.step()
    theta = model.embed.weight_orig
    assert model.head.weight_orig is theta
    model(SYSTEMS[0].input())
    assert torch.equal(model.embed.weight, theta * model.embed.weight_mask)
    assert torch.equal(model.head.weight, theta * model.head.weight_mask)
    eadem.check(model)


def test_a_parameter_beside_a_site_is_registered_as_ever() -> None:
    model = SYSTEMS[2].tied()
    for module in (model.k0, model.k1):
        module.register_parameter("weight_scale", nn.Parameter(torch.ones(1)))
        module.weight_shift = nn.Parameter(torch.ones(1))
        assert "weight_shift" in dict(module.named_parameters())
        prune.l1_unstructured(module, "bias", amount=1)
    eadem.check(model)


def test_an_untied_site_is_free_to_be_pruned_in_its_place() -> None:
    """The refusal ends with the tie, on the very modules that had it."""
    model = SYSTEMS[2].tied()
    eadem.untie(model, "k1.weight")
    prune.l1_unstructured(model.k1, "weight", amount=2)
    with pytest.raises(eadem.Unsupported):
        prune.l1_unstructured(model.k0, "weight", amount=2)
    eadem.untie(model)
    prune.l1_unstructured(model.k0, "weight", amount=2)
    assert int((model.k0.weight == 0).sum()) == 2
