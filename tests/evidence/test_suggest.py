"""Candidate ties: planted ones are found, unrelated weights are not, chance is what is said."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem import NoSuchSite, Palindrome, Same, Scale, TooLarge, suggest_ties
from eadem.evidence import EvidenceError
from eadem.evidence._alike import aligned, by_draws, moments, over_orders
from eadem.evidence._suggest import Suggestions


def mlp(seed, sizes=((12, 10), (10, 12), (12, 10), (10, 12))):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in sizes)).double()


@pytest.mark.parametrize("shape", [(3, 4), (3, 3, 2), (5,), (1, 4)])
def test_the_moments_over_all_orders_are_those_of_every_order(shape):
    torch.manual_seed(0)
    a, b = (1 + torch.randn(shape, dtype=torch.float64) for _ in range(2))
    rows = list(permutations(range(shape[0])))
    columns = list(permutations(range(shape[1]))) if len(shape) > 1 else [()]
    every = []
    for p in rows:
        for q in columns:
            moved = b[list(p)] if not q else b[list(p)][:, list(q)]
            every.append(float((a * moved).sum()))
    mean, variance = over_orders(moments(a), moments(b))
    assert mean == pytest.approx(np.mean(every), rel=1e-12)
    assert variance == pytest.approx(np.var(every), rel=1e-12)


def test_the_moments_of_a_transpose():
    torch.manual_seed(0)
    a, b = torch.randn(4, 3).double(), torch.randn(3, 4).double()
    turned = moments(b.T)
    assert over_orders(moments(a), moments(b).transposed()) == pytest.approx(
        over_orders(moments(a), turned), rel=1e-12
    )


def test_unrelated_weights_are_suggested_no_more_often_than_stated():
    wrong = 0
    for seed in range(80):
        wrong += bool(suggest_ties(mlp(seed, ((8, 6), (6, 8), (8, 6))), draws=29).found)
    assert wrong <= 10  # P(more than 10 | 5 %) is 0.3 %


def test_unrelated_convolutions_are_not_suggested():
    wrong = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        wrong += bool(suggest_ties(model, "*.weight", draws=19).found)
    assert wrong <= 4  # P(more than 4 | 5 %) is 0.3 %


def planted(kind, model):
    a, b = model[0].weight.data, model[1].weight.data
    order = torch.randperm(len(a))
    c = model[2].weight.data
    if kind == "equal":
        c.copy_(a)
    elif kind == "scaled":
        c.copy_(-0.5 * a)
    elif kind == "transposed":
        b.copy_(a.T)
    elif kind == "rows permuted":
        c.copy_(a[order])
    elif kind == "columns permuted":
        c.copy_(a[:, torch.randperm(12)])
    elif kind == "columns permuted of the transpose":
        b.copy_(a.T[torch.randperm(12)])
    noise = 0.1 * float(a.std())
    for w in (a, b, c):
        w += noise * torch.randn_like(w)


@pytest.mark.parametrize(
    "kind",
    [
        "equal",
        "scaled",
        "transposed",
        "rows permuted",
        "columns permuted",
        "columns permuted of the transpose",
    ],
)
def test_a_planted_tie_is_found_and_applied(kind):
    model = mlp(3)
    planted(kind, model)
    found = suggest_ties(model, "*.weight")
    assert len(found.found) == 1
    best = found.found[0]
    assert best.kind == kind
    sites = ("0.weight", "1.weight" if "transpose" in kind else "2.weight")
    assert best.sites == sites
    assert best.residual < 0.03
    before = eadem.counts(model).free
    away = best.residual * sum(float(v.square().sum()) for v in parts(model, sites))
    values = parts(eadem.twin(model), sites)
    t = best.tie(model)
    assert eadem.counts(model).free == before - 120
    left = sum(
        float((x - y).square().sum()) for x, y in zip(values, parts(model, sites), strict=True)
    )
    # a scale is fitted too, by the best line; least squares over θ alone is that line's
    assert left == pytest.approx(away, rel=1e-9)
    assert max(t.residual.values()) > 0
    assert kind in str(found)


def parts(model, sites):
    values = eadem.bind.site_values(model)
    return [values[s].clone() for s in sites]


def test_structure_within_kernels_is_found():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv1d(3, 4, 5)}).double()
    w = model["a"].weight.data
    w.copy_(sum(torch.rot90(w.clone(), k, (-2, -1)) for k in range(4)))
    w += 0.1 * float(w.std()) * torch.randn_like(w)
    v = model["b"].weight.data
    v += v.flip(-1)
    found = suggest_ties(model, "*.weight")
    kinds = {(s.sites[0], s.kind) for s in found.found}
    assert ("a.weight", "quarter turns") in kinds
    assert ("b.weight", "palindrome, axis -1") in kinds
    turned = next(s for s in found.rows if s.kind == "quarter turns")
    mean = sum(torch.rot90(w, k, (-2, -1)) for k in range(4)) / 4
    assert turned.residual == pytest.approx(
        float((w - mean).square().sum() / w.square().sum()), rel=1e-9
    )
    turned.tie(model)
    assert torch.allclose(model["a"].weight, mean, rtol=0, atol=1e-12)


def test_stated_maps_are_tried_where_they_fit():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 3, bias=False)).double()
    model[0].weight.data += model[0].weight.data.flip(-1)
    found = suggest_ties(model, within={"mirror": Palindrome()})
    assert [(s.kind, s.sites) for s in found.found] == [("mirror", ("0.weight",))]
    assert found.found[0].residual < 1e-14


def test_joined_sites_and_constants_are_no_suggestions():
    model = nn.ModuleList([nn.LayerNorm(20) for _ in range(3)])
    found = suggest_ties(model)
    assert found.found == ()
    assert "one value only" in str(found)
    model = mlp(0)
    model[2].weight.data.copy_(model[0].weight.data)
    eadem.tie(model, "0.weight", "2.weight")
    assert not any({"0.weight", "2.weight"} == set(s.sites) for s in suggest_ties(model).rows)


def test_declarations_apply_together():
    model = mlp(1)
    model[2].weight.data.copy_(model[0].weight.data)
    model[3].weight.data.copy_(-model[1].weight.data)
    found = suggest_ties(model)
    assert found.declarations[0].keys() == {"0.weight", "2.weight"}
    assert isinstance(found.declarations[0]["2.weight"], Same)
    assert isinstance(found.declarations[1]["3.weight"], Scale)
    found.tie(model)
    assert eadem.counts(model).free == 2 * 120 + 2 * 22
    assert all(r < 1e-12 for t in eadem.ties(model) for r in t.residual.values())


def near_to_one(kind):
    torch.manual_seed(2)
    model = nn.ModuleList([nn.Linear(12, 12, bias=False) for _ in range(3)])
    with torch.no_grad():
        for i in (1, 2):
            moved = {"scaled": (1.5 + i) * model[0].weight, "turned": model[0].weight.T}[kind]
            model[i].weight.copy_(moved + 0.001 * torch.randn(12, 12))
    return model


@pytest.mark.parametrize("kind", ["scaled", "turned"])
def test_three_weights_that_are_nearly_one_are_tied_by_their_two_nearest_pairs(kind):
    model = near_to_one(kind)
    before = [layer.weight.detach().clone() for layer in model]
    found = suggest_ties(model)
    assert len(found.found) == 3
    assert [t.sites for t in found.tie(model)] == [r.sites for r in found.found[:2]]
    assert eadem.counts(model).free == 144
    for layer, w in zip(model, before, strict=True):
        torch.testing.assert_close(layer.weight.detach(), w, rtol=0, atol=0.02)


def test_a_contradiction_leaves_the_model_as_it_was():
    model = near_to_one("turned")
    first, second = suggest_ties(model).found[:2]
    no = replace(second, declaration={first.sites[0]: Same(), "nowhere": Same()})
    before = [layer.weight.detach().clone() for layer in model]
    with pytest.raises(NoSuchSite):
        Suggestions((first, no), 0.05).tie(model)
    assert eadem.ties(model) == []
    assert all(torch.equal(x.weight, w) for x, w in zip(model, before, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_left_out_and_noted(bad):
    model = mlp(1)
    model[2].weight.data.copy_(model[0].weight.data)
    model[1].weight.data[0, 0] = bad
    found = suggest_ties(model)
    assert {"0.weight", "2.weight"} in [set(r.sites) for r in found.found]
    assert not any("1.weight" in r.sites for r in found.rows)
    assert "1.weight hold values that are not finite" in str(found)


def test_holm_adjusts_for_all_candidates():
    found = suggest_ties(mlp(5))
    by_p = sorted(found.rows, key=lambda r: r.pvalue)
    m = len(by_p)
    most = 0.0
    for k, row in enumerate(by_p):
        most = max(most, min(1.0, (m - k) * row.pvalue))
        assert row.adjusted == pytest.approx(most, rel=1e-12)


def test_the_alignment_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    order, inner = aligned(a, b)
    best = max(float((a * b[list(p)]).sum()) for p in permutations(range(5)))
    assert inner == pytest.approx(best, rel=1e-12)
    assert float((a * b[torch.from_numpy(order)]).sum()) == pytest.approx(best, rel=1e-12)


def test_draws_within_the_null_are_ranked_and_few_arrangements_bound_the_p_value():
    null = np.random.default_rng(0).normal(size=99)
    assert by_draws(float(np.median(null)), null, 1e9).pvalue == pytest.approx(0.5, abs=0.011)
    assert by_draws(50.0, null, 1e300).pvalue < 1e-30
    assert by_draws(50.0, null, 6).pvalue == pytest.approx(1 / 6)
    assert by_draws(50.0, null, 1e9).bound == 0.01


def test_errors_say_what_to_do():
    with pytest.raises(NoSuchSite, match="nearest"):
        suggest_ties(mlp(0), "0.wieght")
    with pytest.raises(NoSuchSite, match="by text"):
        suggest_ties(mlp(0), 3)
    for odd in ({"draws": 1}, {"level": float("nan")}, {"level": 2.0}, {"within": {"x": 3}}):
        with pytest.raises(EvidenceError, match=next(iter(odd))):
            suggest_ties(mlp(0), **odd)
    with pytest.raises(EvidenceError, match="meta"):
        suggest_ties(mlp(0).to("meta"))
    wide = nn.ParameterList([nn.Parameter(torch.randn(2, 2)) for _ in range(210)])
    with pytest.raises(TooLarge, match="name the weights"):
        suggest_ties(wide)
    large = nn.ParameterList([nn.Parameter(torch.randn(900, 900)) for _ in range(2)])
    with pytest.raises(TooLarge, match="align=False"):
        suggest_ties(large)
    quick = suggest_ties(large, align=False)
    assert quick.found == ()
    assert "not searched" in str(quick)
