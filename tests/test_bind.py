"""Ties on modules: what a declaration means, where θ lives, and what is refused."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eadem
from eadem import bind
from eadem.bind.group import groups_at


def mlp(n: int = 3, width: int = 3, seed: int = 0) -> nn.Sequential:
    """Linear layers "0" … of equal width, different values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(n)))


def names(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_parameters(remove_duplicate=False)]


def read(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found.detach().clone()


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


class W(nn.Module):
    """One parameter `w`, for sites with an index."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        size = int(torch.Size(shape).numel())
        self.w = nn.Parameter(torch.arange(float(size)).reshape(shape))


# what a declaration says


def test_a_tie_with_several_parameters_has_no_one_theta() -> None:
    model = mlp(2)
    t = eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.LowRank(1)})
    assert len(t.thetas) == 2
    with pytest.raises(eadem.OutOfRange, match=r"in 2 parameters; use \.thetas"):
        _ = t.theta


def test_tie_returns_its_sites_maps_and_theta() -> None:
    model = mlp(2)
    phi = eadem.Transpose()
    t = eadem.tie(model, "1.weight", to="0.weight", via=phi)
    assert set(t.sites) == {"0.weight", "1.weight"}
    assert len(t.maps) == len(t.sites)
    assert t.theta is model[0].weight
    assert list(t.thetas) == [model[0].weight]
    equal(t.value("1.weight").detach(), model[0].weight.detach().t())
    equal(t.value("0.weight").detach(), model[0].weight.detach())
    assert set(t.residual) == set(t.sites)
    with pytest.raises(eadem.NoSuchSite):
        t.value("1.bias")


def test_stars_match_within_and_across_parts() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.ModuleDict(
                    {"a": nn.Linear(2, 2), "n": nn.ModuleDict({"a": nn.Linear(2, 2)})}
                )
                for _ in range(2)
            )

    t = eadem.tie(Deep(), "blocks.*.a.weight")
    assert t.sites == ("blocks.0.a.weight", "blocks.1.a.weight")
    t = eadem.tie(Deep(), "blocks.**.weight")
    assert len(t.sites) == 4
    t = eadem.tie(Deep(), "**.bias")
    assert len(t.sites) == 4
    with pytest.raises(eadem.NoSuchSite):
        eadem.tie(Deep(), "blocks.*.weight")


def test_brackets_are_never_a_glob() -> None:
    model = mlp(2)
    with pytest.raises(eadem.EademError):
        eadem.tie(model, "[01].weight")


def test_to_is_left_out_of_the_patterns() -> None:
    model = mlp(3)
    eadem.tie(model, "*.weight", to="1.weight", via=eadem.Transpose())
    w = [read(model, f"{i}.weight") for i in range(3)]
    equal(w[0], w[1].t())
    equal(w[2], w[1].t())
    assert names(model) == ["0.weight", "0.bias", "1.bias", "2.bias"]


def test_one_declaration_has_one_theta() -> None:
    """`via` applies to every listed site: two sites under Transpose are equal."""
    model = mlp(2)
    eadem.tie(model, "0.weight", "1.weight", via=eadem.Transpose())
    equal(read(model, "0.weight"), read(model, "1.weight"))


def test_a_site_listed_twice_is_listed_once() -> None:
    model = mlp(2)
    t = eadem.tie(model, "0.weight", "*.weight", "1.weight")
    assert sorted(t.sites) == ["0.weight", "1.weight"]


def test_a_single_site_without_structure_changes_nothing() -> None:
    model = mlp(1)
    before = dict(model.named_parameters())
    eadem.tie(model, "0.weight")
    assert dict(model.named_parameters()) == before


def test_tie_modules_ties_each_relative_name() -> None:
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3))
    )
    eadem.tie_modules(model, "*")
    assert names(model) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    assert len(eadem.ties(model)) == 4
    model(torch.randn(8, 2))
    means = [m[1].running_mean for m in model]
    assert not torch.equal(means[0], means[1])
    assert means[0] is not means[1]


def test_tie_modules_of_modules_that_differ() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    before = names(model)
    with pytest.raises(eadem.EademError, match="bias"):
        eadem.tie_modules(model, "*")
    assert names(model) == before


def test_plan_resolves_several_declarations_at_once() -> None:
    model = mlp(3)
    with eadem.plan(model):
        eadem.tie(model, "0.weight", "1.weight")
        eadem.tie(model, "1.weight", "2.weight")
    assert names(model) == ["0.weight", "0.bias", "1.bias", "2.bias"]
    assert len(eadem.ties(model)) in (1, 2)


def test_a_plan_that_fails_leaves_the_model_as_it_was() -> None:
    model = mlp(3)
    before = copy.deepcopy(model.state_dict())
    ids = [id(p) for p in model.parameters()]

    def contradict() -> None:
        with eadem.plan(model):
            eadem.tie(model, "0.weight", "1.weight")
            eadem.tie(model, "0.weight", {"1.weight": eadem.Scale(2.0)})

    with pytest.raises(eadem.EademError):
        contradict()
    assert [id(p) for p in model.parameters()] == ids
    for k, v in model.state_dict().items():
        equal(v, before[k])
    assert not eadem.ties(model)
    assert all(type(m) is nn.Linear for m in model)


def test_an_error_of_the_users_inside_a_plan_declares_nothing() -> None:
    model = mlp(2)

    def fail() -> None:
        with eadem.plan(model):
            eadem.tie(model, "0.weight", "1.weight")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(names(model)) == 4
    assert not eadem.ties(model)
    eadem.tie(model, "*.weight")
    assert len(names(model)) == 3


# sites with an index


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("w[-1]", "w[2]"),
        ("w[1, ...]", "w[1]"),
        ("w[1, :]", "w[1]"),
        ("w[..., 0]", "w[:, 0]"),
        ("w[:2]", "w[0:2]"),
        ("w[:2]", "w[-3:-1]"),
        ("w[::2]", "w[0:3:2]"),
        ("w[0:99]", "w[:]"),
        ("w[1,-1]", "w[1, 3]"),
        ("w[ 1 ]", "w[1]"),
        ("w[...]", "w"),
        ("w[:, :]", "w"),
    ],
)
def test_indices_are_canonical(text: str, same: str) -> None:
    found, want = (eadem.tie(W(3, 4), s, via=eadem.Scale(2.0)).sites for s in (text, same))
    assert found == want
    again = eadem.tie(W(3, 4), *found, via=eadem.Scale(2.0)).sites
    assert again == found


@pytest.mark.parametrize(
    "text",
    [
        "w[3]",
        "w[-4]",
        "w[0, 0, 0]",
        "w[",
        "w[]",
        "w]",
        "w[a]",
        "w[1.5]",
        "w[True]",
        "w[[0, 1]]",
        "w[::0]",
        "w[2:1]",
        "w[..., ...]",
        "w['x']",
        "w[__import__('os').getcwd()]",
        "w[1][2]",
        "w[1].weight",
        "",
        ".",
        "w.",
    ],
)
def test_bad_indices_are_typed_errors(text: str) -> None:
    model = W(3, 4)
    parameter = model.w
    with pytest.raises(eadem.EademError):
        eadem.tie(model, text, "w[0]")
    assert model.w is parameter


def test_parts_of_one_tensor() -> None:
    model = W(4, 3)
    t = eadem.tie(model, "w[1]", "w[-1]")
    assert t.sites == ("w[1]", "w[3]")
    w = read(model, "w")
    equal(w[1], torch.tensor([3.0, 4.0, 5.0]))
    equal(w[3], w[1])
    assert dict(model.named_parameters())["w"].shape == (9,)
    equal(t.value("w[3]").detach(), w[3])


def test_a_part_and_another_parameter() -> None:
    model = nn.ModuleDict({"a": W(2, 3), "b": W(3)})
    eadem.tie(model, "a.w[1]", "b.w")
    assert {n: p.numel() for n, p in model.named_parameters()} == {"a.w": 6}
    equal(read(model, "b.w"), read(model, "a.w")[1])
    with torch.no_grad():
        model["a"].w.mul_(2)
    equal(read(model, "b.w"), read(model, "a.w")[1])


def test_single_numbers_and_scalars() -> None:
    model = W(4)
    model.s = nn.Parameter(torch.tensor(9.0))
    eadem.tie(model, {"w[0]": eadem.Same(), "w[2]": eadem.Affine(2.0, 1.0), "s": eadem.Same()})
    equal(read(model, "w"), torch.tensor([0.0, 1.0, 1.0, 3.0]))
    equal(read(model, "s"), torch.tensor(0.0))
    assert read(model, "s").shape == ()
    assert eadem.counts(model).free == 3


# where θ lives


def test_owners_follow_traversal_not_declaration() -> None:
    layouts = []
    for order in itertools.permutations(["0.weight", "1.weight", "2.weight"]):
        model = mlp(3)
        kept = model[0].weight
        eadem.tie(model, *order)
        assert model[0].weight is kept
        layouts.append((names(model), list(model.state_dict())))
    assert all(layout == layouts[0] for layout in layouts)


def test_to_does_not_change_who_owns() -> None:
    model = mlp(2)
    kept = model[0].weight
    eadem.tie(model, "0.weight", to="1.weight", via=eadem.Transpose())
    assert model[0].weight is kept
    assert names(model) == ["0.weight", "0.bias", "1.bias"]
    equal(read(model, "1.weight"), read(model, "0.weight").t())


def test_order_of_parameters_is_the_stock_order_after_untie() -> None:
    model = mlp(2)
    stock = names(model)
    for t in (lambda: eadem.tie(model, "*.weight"), lambda: eadem.tie(model, "*.bias")):
        t()
    eadem.untie(model)
    assert names(model) == stock
    assert list(model.state_dict()) == stock


def test_nothing_dead_and_everything_once() -> None:
    model = mlp(4)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Rotate(1)})
    eadem.tie(model, "2.weight[:2]", "3.weight[:2]")
    eadem.tie(model, "**.bias", via=eadem.Palindrome())
    parameters = list(model.parameters())
    assert len({id(p) for p in parameters}) == len(parameters)
    model(torch.randn(5, 3)).square().sum().backward()
    for n, p in model.named_parameters():
        assert p.grad is not None, n
        assert bool((p.grad != 0).all()), n
    assert sum(p.numel() for p in parameters) == 9 + 9 + 3 + 2
    counts = eadem.counts(model)
    assert (counts.free, counts.stored, counts.expanded) == (23, 23, 48)


def test_counts_of_dense_ties_are_ranks() -> None:
    model = W(3, 3)
    basis = torch.tensor([[1.0, 0, 1], [1, 0, 1], *[[0, 1, 1]] * 7])
    eadem.tie(model, "w", via=eadem.Subspace(basis))
    counts = eadem.counts(model)
    assert counts.free == 2
    assert counts.expanded == 9
    assert counts.stored >= 2


def test_the_models_own_class_and_methods_stay() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)

        def hello(self) -> str:
            return "hello"

    model = Mine()
    a, b = model.a, model.b
    eadem.tie(model, "a.weight", "b.weight")
    assert type(model) is Mine
    assert model.hello() == "hello"
    assert (model.a, model.b) == (a, b)
    assert isinstance(model.b, nn.Linear)
    assert type(model.b).__name__ == "Linear"
    assert repr(model.b) == "Linear(in_features=2, out_features=2, bias=True)"
    assert type(model.b).__module__ == nn.Linear.__module__


def test_a_generated_class_is_made_once_for_each_kind() -> None:
    model = mlp(6)
    eadem.tie(model, "*.weight")
    assert len({type(m) for m in model[1:]}) == 1


def test_sites_keep_working_with_hooks_and_dir() -> None:
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    assert "weight" in dir(model[1])
    assert hasattr(model[1], "weight")
    seen: list[str] = []
    model[1].register_forward_hook(lambda m, a, out: seen.append("called"))
    model(torch.randn(2, 3))
    assert seen == ["called"]


# adding declarations


def test_ties_compose_over_calls() -> None:
    model = mlp(3)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    eadem.tie(model, {"1.weight": eadem.Same(), "2.weight": eadem.Scale(2.0)})
    equal(read(model, "2.weight"), 2 * read(model, "0.weight").t())
    assert names(model) == ["0.weight", "0.bias", "1.bias", "2.bias"]


def test_intersection_over_calls() -> None:
    model = mlp(2)
    eadem.tie(model, "*.weight")
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    w = read(model, "0.weight")
    equal(w, w.t())
    assert eadem.counts(model).free == 6 + 6


def test_two_calls_give_the_same_values_and_plan_as_one_plan() -> None:
    ways = []
    for reverse in (False, True):
        model = mlp(3)
        calls: list[Callable[[], Any]] = [
            lambda m=model: eadem.tie(m, "0.weight", via=eadem.Palindrome(dim=0)),
            lambda m=model: eadem.tie(m, "0.weight[0]", "1.weight[1]"),
            lambda m=model: eadem.tie(m, "2.weight", to="1.weight", via=eadem.Scale(-1.0)),
        ]
        for call in reversed(calls) if reverse else calls:
            call()
        ways.append(model)
    a, b = ways
    assert eadem.record(a) == eadem.record(b)
    assert {n: p.shape for n, p in a.named_parameters()} == {
        n: p.shape for n, p in b.named_parameters()
    }
    for n in ("0.weight", "1.weight", "2.weight"):
        assert bind.resolved(a).shapes[n] == bind.resolved(b).shapes[n]
    theta = torch.randn(bind.free_vector(a).shape)
    equal(bind.resolved(a).expand(theta), bind.resolved(b).expand(theta))


def test_a_contradiction_over_calls_leaves_the_first_tie() -> None:
    model = mlp(2)
    eadem.tie(model, "*.weight")
    held = read(model, "1.weight")
    parameters = [id(p) for p in model.parameters()]
    with pytest.raises(eadem.TieConflict) as caught:
        eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Affine(1.0, 1.0)})
    assert "0.weight" in str(caught.value)
    assert "1.weight" in str(caught.value)
    assert [id(p) for p in model.parameters()] == parameters
    equal(read(model, "1.weight"), held)
    assert len(eadem.ties(model)) == 1
    eadem.check(model)


def test_a_tied_sub_model_is_adopted() -> None:
    inner = mlp(2)
    eadem.tie(inner, "*.weight")
    outer = nn.ModuleDict({"inner": inner, "other": nn.Linear(3, 3)})
    assert len(eadem.ties(outer)) == 1
    eadem.tie(outer, "inner.1.weight", "other.weight")
    assert "other.weight" not in names(outer)
    equal(read(outer, "other.weight"), read(outer, "inner.0.weight"))
    assert eadem.counts(outer).free == 9 + 9
    eadem.check(outer)
    eadem.check(inner)


def test_native_aliases_are_adopted() -> None:
    model = mlp(3)
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[2].weight.fill_(5.0)
    eadem.tie(model, "1.weight", "2.weight")
    equal(read(model, "0.weight"), read(model, "2.weight"))
    assert names(model) == ["0.weight", "0.bias", "1.bias", "2.bias"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    w = [read(model, f"{i}.weight") for i in range(3)]
    equal(w[0], w[1])
    equal(w[0], w[2])


def test_an_optimizer_steps_the_parameter_of_an_adopted_alias() -> None:
    """The alias's name is gone; its parameter is the owner's, and lives on."""
    model = mlp(3)
    model[1].weight = model[0].weight
    before = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    eadem.tie(model, "1.weight", "2.weight")
    model(torch.ones(1, 3)).sum().backward()
    before.step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    eadem.check_optimizers(model[:2], before)


def test_native_aliases_outside_the_tie_stay() -> None:
    model = mlp(4)
    model[1].weight = model[0].weight
    eadem.tie(model, "2.weight", "3.weight")
    assert model[0].weight is model[1].weight
    assert eadem.counts(model).free == 9 + 9 + 12


def test_a_native_alias_and_a_map_that_contradicts_it() -> None:
    model = mlp(2)
    model[1].weight = model[0].weight
    with pytest.raises(eadem.TieConflict):
        eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Scale(2.0)})
    assert model[0].weight is model[1].weight


def test_a_module_registered_twice_is_one_site() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    t = eadem.tie(model, "*.weight")
    assert len(t.sites) == 2
    model(torch.randn(2, 3)).sum().backward()
    assert sum(p.numel() for p in model.parameters()) == 9 + 6


# start


def test_start_first_keeps_each_free_value_of_its_own_place() -> None:
    model = mlp(2)
    held = read(model, "0.weight"), read(model, "1.weight")
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose())
    equal(read(model, "0.weight"), held[0])
    model = W(2, 5)
    eadem.tie(model, "w", via=eadem.Palindrome(dim=-1))
    equal(read(model, "w"), torch.tensor([[0.0, 1, 2, 1, 0], [5.0, 6, 7, 6, 5]]))


def test_start_mean() -> None:
    model = mlp(3).double()
    held = [read(model, f"{i}.weight") for i in range(3)]
    t = eadem.tie(model, "*.weight", start="mean")
    torch.testing.assert_close(read(model, "2.weight"), torch.stack(held).mean(0))
    assert all(r > 0 for r in t.residual.values())


def test_start_strict() -> None:
    model = mlp(2)
    before = [id(p) for p in model.parameters()]
    with pytest.raises(eadem.TieConflict, match=r"1\.weight"):
        eadem.tie(model, "*.weight", start="strict")
    assert [id(p) for p in model.parameters()] == before
    model[1].load_state_dict(model[0].state_dict())
    t = eadem.tie(model, "*.weight", start="strict")
    assert set(t.residual.values()) == {0.0}


def test_start_from_a_tensor() -> None:
    model = mlp(2)
    value = torch.arange(9.0).reshape(3, 3)
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose(), start=value)
    equal(read(model, "0.weight"), value)
    equal(read(model, "1.weight"), value.t())
    model = W(5)
    eadem.tie(model, "w", via=eadem.Palindrome(), start=torch.tensor([1.0, 2.0, 3.0]))
    equal(read(model, "w"), torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    "start",
    [torch.zeros(2, 2), torch.zeros(9), "nonsense", None, 3, torch.full((3, 3), float("nan"))],
)
def test_a_start_that_cannot_be_is_refused(start: Any) -> None:
    model = mlp(2)
    before = [id(p) for p in model.parameters()]
    held = read(model, "0.weight")
    try:
        eadem.tie(model, "*.weight", start=start)
    except (eadem.EademError, ValueError, TypeError):
        assert [id(p) for p in model.parameters()] == before
        equal(read(model, "0.weight"), held)
    else:
        assert isinstance(start, Tensor), start
        assert start.numel() == 9
        torch.testing.assert_close(read(model, "1.weight"), start.reshape(3, 3), equal_nan=True)


def test_start_init_draws_at_the_fan_in() -> None:
    """A convolution's spread, whatever the window was drawn with before."""
    torch.manual_seed(0)
    model = nn.Linear(14 * 14, 16 * 12 * 12, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    eadem.tie(
        model, "weight", via=eadem.Toeplitz2d(in_size=(14, 14), kernel_size=3), start="init"
    )
    theta = next(model.parameters()).detach()
    assert theta.numel() == 16 * 9
    bound = 1 / 3  # Kaiming's uniform of nn.Conv2d: 1/√fan_in, fan_in = 9
    assert float(theta.abs().max()) <= bound * 1.001
    assert float(theta.std()) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_residuals_say_how_far_each_site_was() -> None:
    model = mlp(2)
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight)
        model[1].weight[0, 0] += 0.5
    t = eadem.tie(model, "*.weight")
    # the best θ for both lies half way
    assert t.residual == pytest.approx({"0.weight": 0.25, "1.weight": 0.25})


# untie, twin, check, explain


def test_untie_keeps_values_and_makes_them_independent() -> None:
    model = mlp(3)
    eadem.tie(model, "*.weight", via=eadem.Palindrome(dim=-1))
    held = [read(model, f"{i}.weight") for i in range(3)]
    eadem.untie(model)
    assert all(type(m) is nn.Linear for m in model)
    assert names(model) == names(mlp(3))
    for i in range(3):
        assert isinstance(model[i].weight, nn.Parameter)
        equal(read(model, f"{i}.weight"), held[i])
    with torch.no_grad():
        model[1].weight.zero_()
    equal(read(model, "0.weight"), held[0])
    assert not eadem.ties(model)
    model.load_state_dict(mlp(3, seed=3).state_dict(), strict=True)


def test_untie_of_one_site_leaves_the_rest_tied() -> None:
    for name in ("0.weight", "1.weight", "2.weight"):
        model = mlp(3)
        eadem.tie(model, "*.weight")
        eadem.untie(model, name)
        module = model.get_submodule(name[0])
        with torch.no_grad():
            module.weight.zero_()
        rest = [read(model, f"{i}.weight") for i in range(3) if f"{i}.weight" != name]
        equal(rest[0], rest[1])
        assert rest[0].abs().sum() > 0
        assert eadem.counts(model).free == 9 + 9 + 9
        eadem.check(model)


def test_untie_of_what_is_not_tied() -> None:
    model = mlp(2)
    eadem.tie(model, "*.weight")
    with pytest.raises(eadem.EademError):
        eadem.untie(model, "0.nonsense")
    assert len(eadem.ties(model)) == 1
    eadem.untie(model)
    eadem.untie(model)


def test_tie_untie_tie() -> None:
    model = mlp(2)
    for via in (eadem.Same(), eadem.Transpose(), eadem.Palindrome(dim=0)):
        eadem.tie(model, "*.weight", via=via)
        model(torch.randn(2, 3)).sum().backward()
        eadem.untie(model)
        model.zero_grad()
    assert names(model) == names(mlp(2))


def test_twin_is_an_untied_copy_with_the_same_function() -> None:
    model = mlp(3)
    eadem.tie(model, "*.weight", via=eadem.Palindrome(dim=-1))
    x = torch.randn(4, 3)
    twin = eadem.twin(model)
    assert len(eadem.ties(model)) == 1
    assert not eadem.ties(twin)
    assert all(type(m) is nn.Linear for m in twin)
    assert list(twin.state_dict()) == list(mlp(3).state_dict())
    equal(twin(x), model(x))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert model(x).abs().sum() > 0


def test_twin_at_the_values_of_the_plan() -> None:
    model = mlp(2).double()
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose())
    plan = bind.resolved(model)
    x = torch.randn(4, 3, dtype=torch.float64)
    theta = bind.free_vector(model)
    assert theta.shape == plan.in_shape

    def holds(theta: Tensor) -> None:
        values = plan.split(plan.expand(theta))
        for name, value in values.items():
            where, _, attr = name.rpartition(".")
            equal(value, getattr(model.get_submodule(where), attr))
        found = torch.func.functional_call(eadem.twin(model), values, (x,))
        # a weight that lies transposed in memory may be multiplied in another order
        torch.testing.assert_close(found, model(x), rtol=1e-14, atol=1e-14)

    holds(theta)
    bind.set_free_vector(model, theta + 1)
    equal(bind.free_vector(model), theta + 1)
    holds(theta + 1)
    with pytest.raises((eadem.EademError, ValueError, RuntimeError)):
        bind.set_free_vector(model, theta[:-1])
    equal(bind.free_vector(model), theta + 1)


def test_twin_of_an_untied_model_and_of_an_alias() -> None:
    model = mlp(2)
    equal(eadem.twin(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))
    model[1].weight = model[0].weight
    twin = eadem.twin(model)
    assert twin[0].weight is not twin[1].weight


def test_check_finds_a_deleted_owner() -> None:
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    eadem.check(model)
    del model[0]._parameters["weight"]
    with pytest.raises(eadem.TieBroken, match=r"0\.weight"):
        eadem.check(model)
    with pytest.raises(eadem.TieBroken, match=r"0\.weight"):
        model[1](torch.randn(1, 3))


def test_deleting_an_owner_by_its_name_is_refused_or_found() -> None:
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    try:
        del model[0].weight
    except eadem.EademError:
        eadem.check(model)
        return
    with pytest.raises(eadem.TieBroken, match=r"0\.weight"):
        eadem.check(model)


def test_deleting_a_derived_site_is_refused() -> None:
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    with pytest.raises((eadem.EademError, AttributeError)):
        del model[1].weight
    eadem.check(model)


def test_an_attribute_error_in_the_models_own_code_is_its_own() -> None:
    class Mine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.nonsense

    model = nn.Sequential(nn.Linear(2, 2), Mine(2, 2))
    eadem.tie(model, "*.weight")
    with pytest.raises(AttributeError, match="nonsense"):
        model(torch.randn(1, 2))


def test_explain_names_the_site_its_owner_and_its_map() -> None:
    model = mlp(2)
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose())
    text = str(eadem.explain(model, "1.weight"))
    assert "0.weight" in text
    assert "1.weight" in text
    assert "ranspose" in text
    assert "0.bias" in str(eadem.explain(model, "0.bias"))
    with pytest.raises(eadem.NoSuchSite, match=r"1\.weight"):
        eadem.explain(model, "1.wieght")


def test_explain_reports_a_legal_zero() -> None:
    model = W(2, 5)
    eadem.tie(model, "w", via=eadem.Palindrome(dim=-1, odd=True))
    assert "zero" in str(eadem.explain(model, "w")).lower()
    w = read(model, "w")
    equal(w, -w.flip(-1))


def test_ties_lists_what_was_declared() -> None:
    model = mlp(3)
    assert eadem.ties(model) == []
    eadem.tie(model, "0.weight", "1.weight")
    eadem.tie(model, "*.bias")
    found = eadem.ties(model)
    assert [set(t.sites) for t in found] == [
        {"0.weight", "1.weight"},
        {"0.bias", "1.bias", "2.bias"},
    ]


# optimizers


def test_check_optimizers_is_content_with_one_that_has_all() -> None:
    model = mlp(2)
    eadem.tie(model, "*.weight")
    eadem.check_optimizers(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_check_optimizers_finds_what_a_tie_left_behind() -> None:
    model = mlp(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    eadem.tie(model, "*.weight")
    with pytest.raises(eadem.EademError, match=r"1\.weight"):
        eadem.check_optimizers(model, optimizer)


def test_check_optimizers_finds_a_parameter_that_changed_its_size() -> None:
    model = W(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.w.square().sum().backward()
    optimizer.step()
    eadem.tie(model, "w[1]", "w[3]")
    with pytest.raises(eadem.EademError, match="w"):
        eadem.check_optimizers(model, optimizer)


def test_check_optimizers_finds_one_parameter_in_two_optimizers() -> None:
    model = mlp(2)
    eadem.tie(model, "*.weight")
    sgd = torch.optim.SGD
    both = [sgd(model.parameters(), lr=0.1), sgd([model[0].weight], lr=0.1)]
    with pytest.raises(eadem.EademError, match=r"0\.weight"):
        eadem.check_optimizers(model, *both)
    eadem.check_optimizers(
        model, sgd([model[0].weight], lr=0.1), sgd([model[0].bias, model[1].bias], lr=0.1)
    )


def test_an_optimizer_built_before_is_found_at_its_next_step() -> None:
    model = mlp(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    eadem.tie(model, "*.weight")
    model(torch.randn(2, 3)).sum().backward()
    with pytest.raises(eadem.EademError, match=r"1\.weight"):
        optimizer.step()


def test_an_optimizer_built_before_an_equality_steps_the_owner() -> None:
    model = mlp(2)
    optimizer = torch.optim.SGD([model[0].weight, model[0].bias, model[1].bias], lr=0.1)
    eadem.tie(model, "*.weight")
    eadem.check_optimizers(model, optimizer)
    held = read(model, "1.weight")
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(read(model, "1.weight"), held)


# refusals: each leaves the model as it was


class Mixed(nn.Module):
    """Sites of every kind that a tie does not join."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, 3))
        self.precise = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.randn(2, 3), requires_grad=False)
        self.far = nn.Parameter(torch.empty(2, 3, device="meta"))
        self.counts = nn.Parameter(torch.arange(6).reshape(2, 3), requires_grad=False)
        self.wide = nn.Parameter(torch.randn(3, 2))
        self.vector = nn.Parameter(torch.randn(6))
        self.register_buffer("kept", torch.randn(2, 3))
        self.plain = torch.randn(2, 3)
        self.register_parameter("none", None)
        self.child = nn.Linear(3, 2)


Kinds = type[Exception] | tuple[type[Exception], ...]
REFUSED: dict[str, tuple[Kinds, Callable[[nn.Module], object]]] = {
    "dtype": (eadem.Unsupported, lambda m: eadem.tie(m, "a", "precise")),
    "device": (eadem.Unsupported, lambda m: eadem.tie(m, "a", "far")),
    "requires_grad": (eadem.Unsupported, lambda m: eadem.tie(m, "a", "frozen")),
    "integer": (eadem.Unsupported, lambda m: eadem.tie(m, "counts", via=eadem.Palindrome())),
    "buffer": (eadem.EademError, lambda m: eadem.tie(m, "a", "kept")),
    "plain tensor": (eadem.EademError, lambda m: eadem.tie(m, "a", "plain")),
    "none": (eadem.EademError, lambda m: eadem.tie(m, "a", "none")),
    "module": (eadem.EademError, lambda m: eadem.tie(m, "a", "child")),
    "shape": (eadem.ShapeError, lambda m: eadem.tie(m, "a", "wide")),
    "ndim": (eadem.ShapeError, lambda m: eadem.tie(m, "a", "vector")),
    "axis": (eadem.ShapeError, lambda m: eadem.tie(m, "vector", via=eadem.Transpose())),
    "unknown": (eadem.NoSuchSite, lambda m: eadem.tie(m, "a", "nonsense")),
    "pattern": (eadem.NoSuchSite, lambda m: eadem.tie(m, "blocks.*.weight")),
    "one bad of many": (eadem.NoSuchSite, lambda m: eadem.tie(m, "a", "child.weight", "zzz.*")),
    "no site": (eadem.EademError, lambda m: eadem.tie(m)),
    "index": (eadem.EademError, lambda m: eadem.tie(m, "a[2]", "a[0]")),
    "collapse": (eadem.TieConflict, lambda m: _contradict(m)),
    "to unknown": (eadem.NoSuchSite, lambda m: eadem.tie(m, "a", to="nonsense")),
    "via no map": ((eadem.EademError, TypeError), lambda m: eadem.tie(m, "a", via="same")),
    "via a class": (
        (eadem.EademError, TypeError),
        lambda m: eadem.tie(m, "a", "child.weight", via=eadem.Same),
    ),
    "model no module": ((eadem.EademError, TypeError), lambda m: eadem.tie([m], "a")),
    "site no text": ((eadem.EademError, TypeError), lambda m: eadem.tie(m, m.a)),
    "modules": (eadem.NoSuchSite, lambda m: eadem.tie_modules(m, "blocks.*")),
}


def _contradict(model: nn.Module) -> None:
    with eadem.plan(model):
        eadem.tie(model, "a", "child.weight")
        eadem.tie(model, {"a": eadem.Same(), "child.weight": eadem.Scale(2.0)})


def _state(model: nn.Module) -> tuple[Any, ...]:
    return (
        {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()},
        {n: p.detach().tolist() for n, p in model.named_parameters() if not p.is_meta},
        list(model.state_dict()),
        {n: type(m) for n, m in model.named_modules()},
        {n: sorted(vars(m)) for n, m in model.named_modules()},
    )


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_refused_call_leaves_the_model_unchanged(case: str) -> None:
    kind, call = REFUSED[case]
    model = Mixed()
    before = _state(model)
    with pytest.raises(kind) as caught:
        call(model)
    assert len(str(caught.value)) > 20, "an error says what was asked, found, and to do"
    assert _state(model) == before
    copy.deepcopy(model)
    eadem.tie(model, "a", "child.weight")
    assert "child.weight" not in names(model)


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_refused_call_leaves_the_ties_there_are(case: str) -> None:
    _, call = REFUSED[case]
    model = Mixed()
    eadem.tie(model, "a", "child.weight", via=eadem.Palindrome(dim=-1))
    before = _state(model)
    with pytest.raises((eadem.EademError, TypeError)):
        call(model)
    assert _state(model) == before
    equal(read(model, "a"), read(model, "child.weight"))
    eadem.check(model)


def test_the_nearest_names_are_listed() -> None:
    with pytest.raises(eadem.NoSuchSite, match=r"0\.weight"):
        eadem.tie(mlp(2), "0.wieght", "1.weight")


def test_a_refused_pickle_does_not_open_the_door() -> None:
    """A pickle that fails half way must not let the next one drag an owner along."""
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    model[1].stranger = lambda: None
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(model)
    del model[1].stranger
    with pytest.raises(eadem.Unsupported):
        pickle.dumps(model[1])
    pickle.loads(pickle.dumps(model))
    with pytest.raises(eadem.Unsupported):
        pickle.dumps(model[1])


def test_unpicklable_classes_of_the_user_are_not_made_worse() -> None:
    class Local(nn.Linear):
        pass

    model = nn.Sequential(Local(2, 2), Local(2, 2))
    eadem.tie(model, "*.weight")
    with pytest.raises((pickle.PicklingError, AttributeError, eadem.EademError)):
        pickle.dumps(model)
    copied = copy.deepcopy(model)
    assert isinstance(copied[1], Local)
    equal(read(copied, "0.weight"), read(copied, "1.weight"))


def test_data_parallel_and_scripting_are_refused() -> None:
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    with pytest.raises((eadem.Unsupported, RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(model)
    eadem.check(model)


def test_pruning_one_site_is_refused_or_found() -> None:
    from torch.nn.utils import prune

    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    for module in model:
        try:
            prune.l1_unstructured(module, "weight", amount=0.5)
        except (eadem.EademError, AttributeError, KeyError):
            eadem.check(model)
        else:
            with pytest.raises(eadem.TieBroken):
                eadem.check(model)
            return


def test_a_plain_tensor_is_no_parameter() -> None:
    """As torch has it: a TypeError, and nothing but parameters in `parameters()`."""
    for shape in ((9,), (4, 3)):
        model = W(4, 3)
        eadem.tie(model, "w[1]", "w[3]")
        try:
            model.w = torch.zeros(shape)
        except (TypeError, eadem.EademError):
            assert model.w.abs().sum() > 0
        assert all(type(p) is nn.Parameter for p in model.parameters())
        eadem.check(model)


# freezing


def test_requires_grad_at_one_site() -> None:
    """Freezing the owner freezes the tie; freezing a derived site's module alone does not
    freeze half of it silently: its own parameters only.
    """
    model = mlp(2)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    model[0].requires_grad_(False)
    assert not model[1].weight.requires_grad
    model(torch.randn(2, 3)).sum().backward()
    assert model[0].weight.grad is None
    model[0].requires_grad_(True)
    assert model[1].weight.requires_grad


def test_a_frozen_pair_can_be_tied() -> None:
    model = mlp(2).requires_grad_(False)
    eadem.tie(model, "*.weight", via=eadem.Palindrome(dim=-1))
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    model(torch.randn(2, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_fixed_site_has_no_parameter_and_its_dtype_follows_the_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    eadem.tie(model, "0.weight", via=eadem.Fixed(0.5))
    assert "0.weight" not in names(model)
    equal(read(model, "0.weight"), torch.full((2, 2), 0.5))
    model(torch.randn(1, 2)).sum().backward()
    copied = copy.deepcopy(model)
    equal(read(copied, "0.weight"), torch.full((2, 2), 0.5))
    equal(read(pickle.loads(pickle.dumps(model)), "0.weight"), torch.full((2, 2), 0.5))
    model.double()
    assert read(model, "0.weight").dtype == torch.float64
    model(torch.randn(1, 2, dtype=torch.float64)).sum().backward()
    eadem.untie(model)
    assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_complex_sites() -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))
    model.b = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))
    try:
        eadem.tie(model, "b", to="a", via=eadem.Transpose())
    except eadem.Unsupported:
        assert names(model) == ["a", "b"]
        return
    equal(read(model, "b"), read(model, "a").t())


def test_gradients_and_flags_of_owners_survive_tying() -> None:
    model = mlp(2)
    model(torch.randn(2, 3)).sum().backward()
    seen: list[int] = []
    model[0].weight.register_hook(lambda g: seen.append(1))
    model[0].weight.custom = "kept"
    owner = model[0].weight
    eadem.tie(model, "*.weight")
    assert model[0].weight is owner
    assert owner.custom == "kept"
    model(torch.randn(2, 3)).sum().backward()
    assert seen


def test_names_with_dots_dashes_and_digits() -> None:
    model = nn.ModuleDict(
        {
            "layer_1": nn.ModuleList([nn.Linear(2, 2)]),
            "layer-2": nn.ModuleList([nn.Linear(2, 2)]),
        }
    )
    t = eadem.tie(model, "layer*.0.weight")
    assert t.sites == ("layer_1.0.weight", "layer-2.0.weight")


# a refused call, seen from the parts that were tied before


def test_a_refused_plan_of_an_outer_model_leaves_a_tied_part_as_it_was() -> None:
    part = mlp(2)
    eadem.tie(part, "*.weight")
    outer = nn.ModuleDict({"s": part, "x": nn.Linear(3, 3), "y": nn.Linear(3, 3)})
    with torch.no_grad():
        outer["x"].weight.copy_(part[0].weight)
    with pytest.raises(eadem.TieConflict), eadem.plan(outer):  # noqa: PT012
        eadem.tie(outer, "s.0.weight", "x.weight", start="strict")
        eadem.tie(outer, "x.bias", "y.bias", start="strict")
    assert [t.sites for t in eadem.ties(part)] == [("0.weight", "1.weight")]
    eadem.check(part)
    eadem.untie(part)
    assert names(part) == names(mlp(2))


class Branch(nn.Module):
    """Parameters of its own before those of a child."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"p{i}", nn.Parameter(torch.full((2, 2), float(i))))
        self.child = nn.Linear(2, 2)


def test_owners_are_first_in_traversal_order_beside_derived_parameters() -> None:
    calls = [("0.weight", "1.p0", "1.p1", "1.p2"), ("1.p3", "1.child.weight")]
    stored = []
    for order in (calls, calls[::-1]):
        model = nn.ModuleList([nn.Linear(2, 2), Branch()])
        for sites in order:
            eadem.tie(model, *sites)
        stored.append(list(model.state_dict()))
    assert stored[0] == stored[1] == ["0.weight", "0.bias", "1.p3", "1.child.bias"]


def test_a_refused_untie_leaves_every_tie() -> None:
    model = mlp(3)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Scale(2.0)})
    eadem.tie(model, "2.weight", via=eadem.Fixed(torch.zeros(3, 3)))
    eadem.tie(model, "0.weight", "1.weight", "2.weight")
    before = [t.sites for t in eadem.ties(model)]
    with pytest.raises(eadem.TieConflict):
        eadem.untie(model, "2.weight")
    assert [t.sites for t in eadem.ties(model)] == before
    eadem.check(model)


def test_untie_of_a_part_that_no_tie_lists() -> None:
    model = mlp(2)
    eadem.tie(model, "0.weight[:2]", "1.weight[:2]")
    with pytest.raises(eadem.NoSuchSite, match=r"0\.weight\[0:2\]"):
        eadem.untie(model, "0.weight[0]")
    eadem.untie(model, "0.weight[:2]")
    assert eadem.ties(model) == []


def test_untie_leaves_no_tie_of_one_site_that_says_nothing() -> None:
    model = mlp(2)
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Transpose())
    eadem.untie(model, "0.weight")
    assert eadem.ties(model) == []


@pytest.mark.parametrize("frozen", [(0, 1), (2, 3)])
def test_untie_of_a_frozen_and_a_learned_tie(frozen: tuple[int, int]) -> None:
    model = mlp(4)
    for i in frozen:
        model[i].weight.requires_grad_(False)
    eadem.tie(model, "0.weight", "1.weight")
    eadem.tie(model, "2.weight", "3.weight")
    learned = [layer.weight.requires_grad for layer in eadem.twin(model)]
    assert learned == [i not in frozen for i in range(4)]


# writes that reach a computed site in a list, or through one of several views


def _scaled() -> nn.Sequential:
    model = mlp(2)
    eadem.tie(model, "1.weight", to="0.weight", via=eadem.Scale(2.0))
    return model


@pytest.mark.parametrize(
    "write",
    [
        lambda w: [g.zero_() for g in w.chunk(3)],
        lambda w: [row.zero_() for row in w],
        lambda w: torch._foreach_zero_([w]),
        lambda w: torch.zeros(3, 3, out=w),
    ],
)
def test_a_write_at_a_computed_site_is_never_lost(write: Callable[[Tensor], Any]) -> None:
    model = _scaled()
    with torch.no_grad():
        write(model[1].weight)
    equal(model[0].weight.detach(), torch.zeros(3, 3))


def test_a_parameter_made_from_a_computed_site_is_independent() -> None:
    model = _scaled()
    before = read(model, "0.weight")
    other = nn.Linear(3, 3)
    other.weight = nn.Parameter(model[1].weight.detach())
    with torch.no_grad():
        other.weight.zero_()
    equal(model[0].weight.detach(), before)
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert type(copied.weight) is nn.Parameter
        assert copied.weight.requires_grad


def test_a_differentiable_value_cannot_stand_in_for_a_site() -> None:
    model = _scaled()
    value = torch.zeros(3, 3, requires_grad=True)
    x = torch.ones(1, 3)
    for module, name in ((model, "1.weight"), (model[1], "weight")):
        with pytest.raises(eadem.TieBroken, match="free values"):
            torch.func.functional_call(module, {name: value}, x)
        with pytest.raises(eadem.TieBroken, match="free values"):
            torch.func.grad(
                lambda w, m=module, n=name: torch.func.functional_call(m, {n: w}, x).sum()
            )(value.detach())
    assert bool(model[0].weight.any())


def test_a_scaled_site_is_computed_once_per_forward() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _scaled()
            self.read: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.read = [self.layers[1].weight, self.layers[1].weight]
            return self.layers[1](x)

    model = Twice()
    eadem.untie(model)
    eadem.tie(model, "layers.1.weight", to="layers.0.weight", via=eadem.Scale(2.0))
    model(torch.ones(1, 3))
    assert model.read[0] is model.read[1]


@pytest.mark.parametrize("start", ["first", "mean", "init"])
def test_whole_sites_never_ask_for_coordinates(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of a whole embedding is larger than the embedding."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("coordinates of a whole site were built")

    monkeypatch.setattr("eadem.maps.view.View.index", refuse)
    model = nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)])
    eadem.tie(model, "1.weight", to="0.weight", start=start)
    scaled = eadem.Transpose() @ eadem.Scale(2.0)
    eadem.tie(model, "2.weight", to="0.weight", via=scaled, start=start)
    assert eadem.counts(model).free == 6 + 8
    assert "0.weight" in eadem.explain(model, "2.weight")
    full = eadem.materialize(model)
    model.load_state_dict({"2.weight": full["2.weight"]}, strict=False)
    equal(read(model, "0.weight"), full["0.weight"])
    with torch.no_grad():
        model[2].weight.mul_(2)
    equal(read(model, "1.weight"), 2 * full["1.weight"])
    eadem.untie(model, "2.weight")
    eadem.record(model)


# writes inside a forward, interrupted forwards


class Clamped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.writes = False
        self.stops = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        if self.stops:
            raise KeyboardInterrupt
        if self.writes:
            with torch.no_grad():
                self.weight.clamp_(0, 1)
        return y + x @ self.weight


def test_a_write_inside_a_forward_is_not_lost_silently() -> None:
    model = Clamped()
    eadem.tie(model, "weight", via=eadem.Palindrome(dim=-1))
    model.writes = True
    with pytest.raises(eadem.TieBroken, match="weight"):
        model(torch.randn(2, 4))
    model.writes = False
    model(torch.randn(2, 4))


def test_an_interrupted_forward_leaves_no_stale_value() -> None:
    model = Clamped()
    eadem.tie(model, "weight", via=eadem.Palindrome(dim=-1))
    x = torch.randn(2, 4)
    model.stops = True
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model.stops = False
    held = model._parameters["weight"]
    assert held is not None
    held.data.mul_(3)  # leaves no trace in the version of what was read
    want = torch.cat([held, held.flip(-1)]) if held.ndim == 1 else held
    assert want is not None
    torch.testing.assert_close(model.weight.sum(), 2 * held.sum())
    torch.testing.assert_close(model(x), 2 * x @ model.weight.detach())


def test_a_mask_on_half_of_a_palindrome_reaches_the_other_half() -> None:
    model = Clamped()
    eadem.tie(model, "weight", via=eadem.Palindrome(dim=-1))
    with torch.no_grad():
        model.weight.mul_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert not model.weight[:, 0].any()
    assert not model.weight[:, 3].any()
    assert model.weight[:, 1].all()
    with torch.no_grad(), pytest.raises(eadem.TieBroken, match="satisfy"):
        model.weight.mul_(torch.tensor([1.0, 2.0, 3.0, 1.0]))


def test_every_initialiser_reaches_the_free_values() -> None:
    model = Clamped()
    eadem.tie(model, "weight", via=eadem.Palindrome(dim=-1))
    for fill in (nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.trunc_normal_):
        before = model.weight.detach().clone()
        fill(model.weight)
        assert (model.weight != before).all()
        torch.testing.assert_close(model.weight, model.weight.flip(-1), rtol=0, atol=0)
    nn.init.constant_(model.weight, 2.0)
    assert (model.weight == 2).all()


def test_the_class_of_a_derived_site_makes_stock_modules() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    eadem.tie(model, "*.weight")
    made = type(model[1])(3, 2, bias=False)
    assert type(made) is nn.Linear
    assert made.weight.shape == (2, 3)
    assert made.bias is None
    made(torch.randn(1, 3)).sum().backward()
    eadem.check(model)


def test_a_module_alone_knows_the_groups_of_its_sites() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    eadem.tie(model, "0.weight", "1.weight")
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (group,) = groups_at([each[0]])
        assert groups_at([each[1]]) == groups_at(each) == [group]
        assert group.scope == [each]
        assert groups_at([each[2]]) == groups_at([each]) == []
    eadem.tie(model, "1.weight", "2.weight")
    assert groups_at([model[0]]) == groups_at([model[2]]) != []
    assert len(groups_at(model)) == 1
    eadem.untie(model)
    assert groups_at(model) == []


def test_a_conflict_in_a_tied_root_leaves_everything_as_it_was() -> None:
    """The root holds a derived site itself, and another group disagrees with the file."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.randn(4))
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    model = Root()
    eadem.tie(model, "v[0]", "v[2]")
    eadem.tie(model, "a.weight", "b.weight")
    state = eadem.materialize(model)
    state["v"] = torch.tensor([7.0, 8.0, 7.0, 9.0])
    state["b.weight"] = state["b.weight"] + 1
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(eadem.TieConflict, match="disagree"):
        model.load_state_dict(state)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]), n
    state["b.weight"], state["v"][2] = state["a.weight"], 1.0
    with pytest.raises(eadem.TieConflict, match="disagree"):
        model.load_state_dict(state)
    state["v"][2] = 7.0
    model.load_state_dict(state)
    assert model.v.tolist() == [7.0, 8.0, 7.0, 9.0]


def test_explain_repeats_what_was_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    eadem.tie(model, "*.weight")
    with pytest.raises(eadem.TieBroken):
        model[1].weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(eadem.TieBroken):
        del model[1].weight
    text = eadem.explain(model, "0.weight")
    assert "refused: TieBroken: '1.weight' is tied" in text
    assert "cannot be deleted" in text
    assert "refused" not in eadem.explain(copy.deepcopy(model), "0.weight")


@pytest.mark.parametrize("again", ["deepcopy", "pickle"])
def test_a_copy_is_untied_for_good(again: str) -> None:
    """Every module of the copy that contains the tie forgets it, not the outermost alone."""
    model = nn.Sequential(nn.Sequential(nn.Conv1d(1, 2, 5), nn.Linear(2, 2)), nn.Linear(2, 2))
    eadem.tie(model, "0.0.weight", via=eadem.Palindrome())
    new = copy.deepcopy(model) if again == "deepcopy" else pickle.loads(pickle.dumps(model))
    eadem.untie(new)
    nn.Linear(1, 1)  # names are walked again
    for module in new.modules():
        assert not eadem.ties(module)
        eadem.check(module)
    assert [len(eadem.ties(m)) for m in model.modules()] == [1, 1, 1, 0, 0]
