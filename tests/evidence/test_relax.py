"""Relaxing a tie: the function is kept, the shared values and the optimizer's state too; and
back. Oracles are hand-written models, dense Jacobians and planted remainders.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

import eadem
from eadem import NoSuchSite, ShapeError, TieConflict
from eadem.evidence import EvidenceError, relaxed, spectrum
from eadem.maps import (
    Affine,
    Flip,
    Gather,
    LowRank,
    Near,
    Palindrome,
    Same,
    Scale,
    Subspace,
    Transpose,
)

SITES = ("0.weight", "2.weight", "4.weight")


def chain(seed=0, size=5):
    torch.manual_seed(seed)
    layers = []
    for _ in range(3):
        layers += [nn.Linear(size, size), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def shuffle(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def values(model):
    return torch.cat([v.reshape(-1) for v in eadem.bind.site_values(model).values()])


DECLARED = {
    "one": dict(zip(SITES, (Same(), LowRank(1), Same()), strict=True)),
    "first": dict(zip(SITES, (LowRank(2), Same(), Transpose()), strict=True)),
    "through": dict(zip(SITES, (Same(), LowRank(1) @ Transpose(), Near(0.1)), strict=True)),
    "alone": {"0.weight": LowRank(1) @ Palindrome()},
    "all": dict(zip(SITES, (LowRank(1), LowRank(2), Near(0.5)), strict=True)),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_a_plan_with_remainders_is_its_dense_jacobian(kind):
    model = chain()
    eadem.tie(model, DECLARED[kind])
    shuffle(model)
    eadem.check(model)
    plan, theta = eadem.bind.resolved(model), eadem.bind.free_vector(model)
    assert torch.allclose(plan.expand(theta), values(model), rtol=0, atol=1e-14)
    dense = torch.func.jacrev(plan.expand)(theta)
    tangent = plan.linearize(theta)
    v, w = torch.randn_like(theta), torch.randn(len(dense), dtype=torch.float64)
    assert torch.allclose(tangent.forward(v), dense @ v, rtol=0, atol=1e-12)
    assert torch.allclose(tangent.adjoint(w), dense.T @ w, rtol=0, atol=1e-12)
    assert eadem.counts(model).free == int(torch.linalg.matrix_rank(dense))
    assert eadem.counts(model).stored == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", DECLARED)
def test_a_model_with_remainders_survives_copies_files_and_records(kind, tmp_path):
    model = chain()
    eadem.tie(model, DECLARED[kind])
    shuffle(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    eadem.save(model, tmp_path / "m.safetensors")
    eadem.load(fresh := chain(3), tmp_path / "m.safetensors")
    assert torch.equal(fresh(x), y)
    eadem.apply(again := chain(4), eadem.record(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), y)
    assert [repr(r) for r in relaxed(fresh)] == [repr(r) for r in relaxed(model)]
    apart = eadem.twin(model)
    assert torch.allclose(apart(x), y, rtol=0, atol=1e-12)
    stock = chain(5)
    stock.load_state_dict(eadem.materialize(model))
    assert torch.allclose(stock(x), y, rtol=0, atol=1e-12)
    if kind != "all":  # with no site held to the tie, what is shared is not told by the sites
        again.load_state_dict(apart.state_dict())
        assert torch.allclose(again(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("how", [{"rank": 2}, {"penalty": 0.1}])
def test_relaxing_keeps_the_function_and_gradients_flow(site, how):
    model = chain()
    eadem.tie(model, *SITES)
    shared = model[0].weight
    x = torch.randn(3, 5, dtype=torch.float64)
    y, free = model(x), eadem.counts(model).free
    found = eadem.relax(model, site, **how)
    assert torch.equal(model(x), y)
    eadem.check(model)
    assert any(p is shared for p in model.parameters())
    assert eadem.counts(model).free - free == (2 * (5 + 5 - 2) if "rank" in how else 25)
    assert eadem.counts(model).expanded == eadem.counts(eadem.twin(model)).free
    model(x).square().sum().backward()
    own = model.get_parameter(site)
    assert own is not shared
    assert float(own.grad.abs().max()) > 0
    assert float(found.remainder.detach().abs().max()) == 0


def test_the_drawn_factor_follows_the_seed_and_steps_like_a_projection():
    drawn = []
    for seed in (0, 0, 1):
        model = chain()
        eadem.tie(model, *SITES)
        eadem.relax(model, "2.weight", 2, seed=seed)
        drawn.append(model.get_parameter("2.weight").detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    v = drawn[0][:, 5:]
    assert torch.allclose(v @ v.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-14)


def by_hand(weight, factors, biases, x):
    """The chain whose middle weight is W + UᵀV."""
    u, v = factors[:, :5], factors[:, 5:]
    h = torch.tanh(x @ weight.T + biases[0])
    h = torch.tanh(h @ (weight + u.T @ v).T + biases[1])
    return h @ weight.T + biases[2]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_optimizer_steps_go_on_as_in_a_model_written_by_hand(kind):
    options = {"lr": 0.05} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    model = chain()
    eadem.tie(model, *SITES)
    optimizer = kind(model.parameters(), **options)
    x = torch.randn(8, 5, dtype=torch.float64)
    weight = nn.Parameter(model[0].weight.detach().clone())
    biases = [nn.Parameter(model[i].bias.detach().clone()) for i in (0, 2, 4)]
    zero = torch.zeros(1, 10, dtype=torch.float64)
    peer = kind([weight, *biases], **options)
    for _ in range(3):
        optimizer.zero_grad(), peer.zero_grad()
        model(x).square().sum().backward()
        by_hand(weight, zero, biases, x).square().sum().backward()
        optimizer.step(), peer.step()
    eadem.relax(model, "2.weight", 1, optimizer=optimizer)
    factors = nn.Parameter(model.get_parameter("2.weight").detach().clone())
    peer.param_groups[0]["params"].append(factors)
    if kind is torch.optim.Adagrad:
        peer.state[factors] = {"step": torch.tensor(0.0), "sum": torch.zeros_like(factors)}
    for _ in range(3):
        optimizer.zero_grad(), peer.zero_grad()
        model(x).square().sum().backward()
        by_hand(weight, factors, biases, x).square().sum().backward()
        optimizer.step(), peer.step()
    eadem.check_optimizers(model, optimizer)
    assert torch.allclose(model[0].weight, weight, rtol=0, atol=1e-12)
    assert torch.allclose(model.get_parameter("2.weight"), factors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("through", [Same(), Transpose()])
def test_state_goes_with_the_shared_values_to_another_site_and_back(through):
    def tied():
        model = chain()
        eadem.tie(model, {"0.weight": Same(), "2.weight": through, "4.weight": Same()})
        return model, torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.01)

    def steps(model, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    x = torch.randn(8, 5, dtype=torch.float64)
    (model, optimizer), (peer, plain) = tied(), tied()
    steps(model, optimizer, 3), steps(peer, plain, 3)
    shared = model[0].weight
    found = eadem.relax(model, "0.weight", 1, optimizer=optimizer)
    assert model[2].weight is shared
    assert found.tie(optimizer) == 0
    eadem.check_optimizers(model, optimizer)
    steps(model, optimizer, 3), steps(peer, plain, 3)
    assert torch.allclose(values(model), values(peer), rtol=0, atol=1e-13)
    assert len(optimizer.param_groups[0]["params"]) == 4


def test_an_optimizer_that_names_its_parameters_names_them_as_the_model_does():
    model = chain()
    eadem.tie(model, *SITES)
    optimizer = torch.optim.AdamW(model.named_parameters())
    found = eadem.relax(model, "0.weight", 1, optimizer=optimizer)
    (group,) = optimizer.param_groups

    def said():
        return dict(zip(group["param_names"], map(id, group["params"]), strict=True))

    assert said() == {n: id(p) for n, p in model.named_parameters()}
    found.tie(optimizer)
    assert said() == {n: id(p) for n, p in model.named_parameters()}


def test_what_was_relaxed_can_be_printed_when_it_is_no_more():
    model = chain()
    eadem.tie(model, *SITES)
    found = eadem.relax(model, "2.weight", 1)
    found.tie()
    assert repr(found) == "Relaxed(2.weight = Same()(θ))"
    eadem.untie(model)
    assert repr(found) == "Relaxed(2.weight = not tied any more)"


@pytest.mark.parametrize("site", SITES)
def test_a_site_tied_again_can_be_relaxed_again(site):
    model = chain()
    eadem.tie(model, *SITES)
    eadem.relax(model, site, 1)
    eadem.tie(model, *SITES)
    assert [t.sites for t in eadem.ties(model)] == [SITES]
    for other in SITES:
        eadem.relax(model, other, 1).tie()
    assert eadem.counts(model).free == eadem.counts(model).stored


def test_raising_the_rank_keeps_function_and_state():
    model = chain()
    eadem.tie(model, *SITES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x = torch.randn(8, 5, dtype=torch.float64)
    eadem.relax(model, "2.weight", 1, optimizer=optimizer)
    model(x).square().sum().backward()
    optimizer.step()
    own = model.get_parameter("2.weight")
    before, y = optimizer.state[own]["exp_avg"].clone(), model(x).detach()
    weight = model[2].weight.detach().clone()
    eadem.relax(model, "2.weight", 3, optimizer=optimizer)
    assert torch.equal(model[2].weight, weight)
    # the layer multiplies by the factors, of which there are more now, and rounds otherwise
    torch.testing.assert_close(model(x), y, rtol=0, atol=4e-16)
    assert model.get_parameter("2.weight") is own
    assert torch.equal(optimizer.state[own]["exp_avg"][:1], before)
    assert not optimizer.state[own]["exp_avg"][1:].any()
    model(x).square().sum().backward()
    optimizer.step()
    with pytest.raises(TieConflict, match="already"):
        eadem.relax(model, "2.weight", 2)


def test_a_tie_within_one_site_is_relaxed_in_its_own_parameter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 5)).double()
    eadem.tie(model, "0.weight", via=Palindrome())
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(4, 2, 9, dtype=torch.float64)
    model(x).square().sum().backward()
    optimizer.step()
    own, y = model.get_parameter("0.weight"), model(x).detach()
    moment = optimizer.state[own]["exp_avg"].clone()
    eadem.relax(model, "0.weight", 1, optimizer=optimizer)
    assert torch.equal(model(x), y)
    assert model.get_parameter("0.weight") is own
    assert torch.equal(optimizer.state[own]["exp_avg"][: moment.numel()], moment.reshape(-1))
    model.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    assert float((model(x) - y).detach().abs().max()) > 0
    relaxed(model)[0].tie(optimizer)
    weight = model[0].weight
    assert torch.equal(weight, weight.flip(-1))
    assert own.numel() == moment.numel()


def test_a_tie_takes_the_remainder_back_and_reports_how_far_it_was():
    model = chain()
    eadem.tie(model, *SITES)
    found = eadem.relax(model, "2.weight", 1)
    shuffle(model)
    shared, away = model[0].weight.detach().clone(), found.remainder.detach().abs().max()
    other = copy.deepcopy(model)
    assert found.tie() == float(away)
    assert torch.equal(model[2].weight, shared)
    t = eadem.tie(other, "2.weight", to="0.weight")
    assert torch.equal(other[2].weight, shared)
    assert sum(t.residual.values()) == pytest.approx(float(away))
    for m in (model, other):
        assert eadem.counts(m).free == 25 + 15
        assert relaxed(m) == []
        eadem.check(m)


def test_untie_keeps_the_values_of_a_relaxed_site():
    for site in ("0.weight", "2.weight"):
        model = chain()
        eadem.tie(model, "0.weight", "2.weight")
        eadem.relax(model, "2.weight", 1)
        before = values(shuffle(model))
        eadem.untie(model, site)
        assert torch.equal(values(model), before)
        assert eadem.ties(model) == []


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "maps",
    [
        (LowRank(1), LowRank(1), Same()),
        (LowRank(1), LowRank(2), LowRank(1)),
        (LowRank(1) @ Palindrome(), Near(0.5) @ Palindrome(), LowRank(1) @ Palindrome()),
        (LowRank(1), LowRank(1) @ Transpose(), LowRank(2) @ Scale(-2.0)),
    ],
)
def test_a_site_leaves_a_tie_where_those_that_stay_all_depart(maps, site):
    model = chain()
    eadem.tie(model, dict(zip(SITES, maps, strict=True)))
    before = values(shuffle(model))
    eadem.untie(model, site)
    torch.testing.assert_close(values(model), before, rtol=1e-12, atol=1e-12)
    assert [t.sites for t in eadem.ties(model)] == [tuple(s for s in SITES if s != site)]


def test_a_write_at_a_relaxed_site_changes_its_remainder_alone():
    model = chain()
    eadem.tie(model, *SITES)
    eadem.relax(model, "2.weight", penalty=1.0)
    shared, wanted = model[0].weight.detach().clone(), torch.randn(5, 5, dtype=torch.float64)
    with torch.no_grad():
        model[2].weight.copy_(wanted)
    assert torch.allclose(model[2].weight, wanted, rtol=0, atol=1e-15)
    model[2].weight = nn.Parameter(2 * wanted)
    assert torch.allclose(model[2].weight, 2 * wanted, rtol=0, atol=1e-14)
    assert torch.equal(model[0].weight, shared)


def test_the_penalty_is_that_of_soft_sharing():
    model = chain()
    eadem.tie(model, {"0.weight": Same(), "2.weight": Transpose(), "4.weight": Same()})
    found = eadem.relax(model, "2.weight", penalty=0.3)
    eadem.relax(model, "4.weight", penalty=0.2)
    shuffle(model)
    a, b, c = (model[i].weight.detach() for i in (0, 2, 4))
    far = (b - a.T).square().sum(), (c - a).square().sum()
    assert found.penalty().item() == pytest.approx(0.5 * 0.3 * float(far[0]), rel=1e-12)
    whole = 0.5 * 0.3 * float(far[0]) + 0.5 * 0.2 * float(far[1])
    assert eadem.penalty(model).item() == pytest.approx(whole, rel=1e-12)
    eadem.penalty(model).backward()
    own = model.get_parameter("2.weight")
    assert torch.allclose(own.grad[0], 0.3 * (b - a.T), rtol=0, atol=1e-12)


def planted(noise, seed=0):
    """A regression of two outputs whose weights differ by a matrix of rank one."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    u = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    v = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    shared, away = rows[0], u @ v
    x = torch.randn(2, 640, 4, generator=generator, dtype=torch.float64)
    y = torch.stack([x[0] @ shared.T, x[1] @ (shared + away).T])
    y += noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    model = nn.ModuleList([nn.Linear(4, 6, bias=False) for _ in range(2)]).double()
    eadem.tie(model, "*.weight")

    def loss(model, batch):
        bx, by = batch
        return sum((by[i] - model[i](bx[i])).square().sum() for i in range(2))

    model[0].weight.data = torch.linalg.lstsq(x.reshape(-1, 4), y.reshape(-1, 6)).solution.T
    batches = [(x[:, i : i + 16], y[:, i : i + 16]) for i in range(0, 640, 16)]
    return model, loss, batches, (x, y), (shared, away)


def test_a_planted_remainder_of_rank_one_is_proposed_and_recovered():
    model, loss, batches, data, (shared, away) = planted(0.1)
    found = eadem.relax(model, "1.weight", loss=loss, batches=batches)
    assert found.spectrum.rank == 1
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure():
        optimizer.zero_grad()
        value = loss(model, data)
        value.backward()
        return value

    optimizer.step(closure)
    far = found.remainder.detach() - away
    assert float(far.norm() / away.norm()) < 0.05
    assert float((model[0].weight - shared).detach().norm() / shared.norm()) < 0.02
    assert torch.linalg.matrix_rank(found.remainder.detach()) == 1


def test_random_signs_find_a_rank_where_there_is_none_no_more_often_than_they_say():
    generator = torch.Generator().manual_seed(0)
    ranks = []
    for _ in range(200):
        scale = 1 + 9 * torch.rand(6, 5, generator=generator, dtype=torch.float64)
        noise = torch.randn(24, 6, 5, generator=generator, dtype=torch.float64) * scale
        ranks.append(spectrum(noise, flips=59).rank)
    found = sum(r > 0 for r in ranks)
    assert found <= 20  # P(more than 20 | 5 %) is 0.1 %


def test_two_planted_directions_are_two():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(40, 70, 80, generator=generator, dtype=torch.float64)
    u = torch.linalg.qr(torch.randn(70, 2, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(80, 2, generator=generator, dtype=torch.float64)).Q
    found = spectrum(noise + u @ torch.diag(torch.tensor([9.0, 7.0])).double() @ v.T, flips=39)
    assert found.rank == 2
    assert found.values[0] == pytest.approx(
        float(torch.linalg.svdvals((noise + 9 * u[:, :1] @ v[:, :1].T).mean(0))[0]), rel=0.1
    )


def test_errors_say_what_to_do():
    model = chain()
    with pytest.raises(NoSuchSite, match="tie it first"):
        eadem.relax(model, "0.weight", 1)
    eadem.tie(model, "0.weight", "2.weight")
    eadem.tie(model, "0.bias", "2.bias")
    eadem.tie(model, "4.weight[0]", "4.weight[1]")
    with pytest.raises(EvidenceError, match="a rank, a penalty"):
        eadem.relax(model, "2.weight")
    with pytest.raises(EvidenceError, match="not both"):
        eadem.relax(model, "2.weight", 1, 0.1)
    with pytest.raises(ShapeError, match="untie"):
        eadem.relax(model, "2.bias", 1)
    with pytest.raises(ShapeError, match="more than a site"):
        eadem.relax(model, "2.weight", 6)
    with pytest.raises(ShapeError, match="1 or more"):
        eadem.relax(model, "2.weight", 0)
    with pytest.raises(TieConflict, match="only in parts"):
        eadem.relax(model, "4.weight", 1)
    tied, loss, batches, *_ = planted(1e3)
    with pytest.raises(EvidenceError, match="no more than noise"):
        eadem.relax(tied, "1.weight", loss=loss, batches=batches)
    with pytest.raises(EvidenceError, match="one number"):
        eadem.relax(tied, "1.weight", loss=lambda m, b: m[1].weight, batches=batches)
    with pytest.raises(EvidenceError, match="not all finite"):
        eadem.relax(
            tied, "1.weight", loss=lambda m, b: loss(m, b) * float("nan"), batches=batches
        )
    for odd in ("a", None, True, float("nan")):
        with pytest.raises(TieConflict, match="finite weight"):
            Near(odd)
    for odd in (3, LowRank(1), Near(1.0)):
        with pytest.raises(TieConflict, match="without a remainder"):
            LowRank(1, shared=odd)
    eadem.relax(model, "2.weight", 1)
    with pytest.raises(TieConflict, match="another tie has a say"):
        eadem.tie(model, "2.weight", "4.weight")
    with pytest.raises(TieConflict, match="no site is kept near"):
        eadem.penalty(model)


def test_a_step_without_the_optimizer_says_that_it_lacks_the_remainder():
    model = chain()
    eadem.tie(model, *SITES)
    optimizer = torch.optim.Adam(model.parameters())
    eadem.relax(model, "2.weight", 1)
    model(torch.randn(2, 5, dtype=torch.float64)).sum().backward()
    with pytest.raises(eadem.TieBroken, match="split over optimizers"):
        optimizer.step()


def test_lbfgs_is_refused_and_nothing_changes():
    model = chain()
    eadem.tie(model, *SITES)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x = torch.randn(2, 5, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        value = model(x).square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    with pytest.raises(eadem.Unsupported, match="LBFGS"):
        eadem.relax(model, "2.weight", 1, optimizer=optimizer)
    assert relaxed(model) == []
    eadem.check(model)


@pytest.mark.parametrize("kind", ["first", "alone", "all"])
def test_compiled_pickled_cast_and_functional(kind):
    model = chain()
    eadem.tie(model, DECLARED[kind])
    shuffle(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    y = model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), y, rtol=0, atol=1e-12)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    with eadem.expanded(model):
        assert torch.equal(model(x), y)
    given = dict(model.named_parameters())
    assert torch.equal(torch.func.functional_call(model, given, (x,)), y)
    halved = torch.func.functional_call(model, {n: p / 2 for n, p in given.items()}, (x,))
    assert not torch.equal(halved, y)
    single = copy.deepcopy(model).float()
    assert torch.allclose(single(x.float()).double(), y, rtol=0, atol=1e-3)


def test_the_summary_of_a_model_and_of_its_file_count_a_remainder(tmp_path):
    model = chain()
    eadem.tie(model, *SITES)
    eadem.relax(model, "2.weight", 2)
    assert eadem.summary(model).free == eadem.counts(model).free == 25 + 16 + 15
    eadem.save(model, tmp_path / "m.safetensors")
    from eadem.report.summary import summary_of_file

    assert summary_of_file(tmp_path / "m.safetensors").free == 25 + 16 + 15
    assert "a remainder of low rank in 2.weight" in eadem.explain(model, "2.weight")


def test_cancelled_gradients_are_what_projection_leaves():
    model = chain()
    eadem.tie(model, {"0.weight": Same(), "2.weight": Transpose(), "4.weight": Same()})
    x = torch.randn(8, 5, dtype=torch.float64)
    with eadem.trace(model) as seen:
        model(x).square().sum().backward()
    g = seen.sites
    mean = (g["0.weight"] + g["2.weight"].T + g["4.weight"]) / 3
    away = seen.cancelled()
    assert torch.allclose(away["0.weight"], g["0.weight"] - mean, rtol=0, atol=1e-12)
    assert torch.allclose(away["2.weight"], g["2.weight"] - mean.T, rtol=0, atol=1e-12)
    share = sum(float(v.square().sum()) for v in away.values())
    whole = sum(float(v.square().sum()) for v in g.values())
    assert seen.conflict()["0.weight"] == pytest.approx(share / whole, rel=1e-9)


def test_a_frozen_tie_is_relaxed_frozen_and_the_order_of_relaxing_does_not_matter():
    plans = []
    for order in (("0.weight", "4.weight"), ("4.weight", "0.weight")):
        model = chain()
        eadem.tie(model, *SITES)
        for p in eadem.ties(model)[0].thetas:
            p.requires_grad_(False)
        for site in order:
            eadem.relax(model, site, 1)
        assert not any(model.get_parameter(s).requires_grad for s in SITES)
        plans.append({n: tuple(p.shape) for n, p in model.named_parameters()})
    assert plans[0] == plans[1]
    assert plans[0]["2.weight"] == (5, 5)


def test_relaxing_every_site_and_taking_all_back():
    model = chain()
    eadem.tie(model, *SITES)
    x = torch.randn(3, 5, dtype=torch.float64)
    y = model(x).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for site in SITES:
        eadem.relax(model, site, 1, optimizer=optimizer)
        assert torch.equal(model(x), y)
    eadem.check_optimizers(model, optimizer)
    assert eadem.counts(model).free <= 75 + 15
    for found in relaxed(model):
        found.tie(optimizer)
    assert torch.equal(model(x), y)
    eadem.check_optimizers(model, optimizer)
    assert eadem.counts(model) == eadem.counts(eadem_tied())


def eadem_tied():
    model = chain()
    eadem.tie(model, *SITES)
    return model


def drawn_tie(generator):
    """A random tie of some of five sites, through random maps."""
    basis = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    kinds = [
        Same(),
        Same(),
        Transpose(),
        Flip(-1),
        Scale(-2.0),
        Affine(1.0, 0.5),
        Gather(torch.randperm(16, generator=generator).reshape(4, 4), (4, 4)),
    ]
    inner = [None, None, Palindrome(), Subspace(basis)][draw(generator, 4)]
    count = (1 if inner else 2) + draw(generator, 4)
    names = [f"{i}.weight" for i in torch.randperm(5, generator=generator)[:count].tolist()]
    declared = {}
    for name in names:
        phi = kinds[draw(generator, len(kinds))]
        declared[name] = phi if inner is None else phi @ inner
    return declared


def draw(generator, n):
    return int(torch.randint(n, (), generator=generator))


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_relaxing_and_taking_back_keeps_what_it_says(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)
    declared = drawn_tie(generator)

    def stock():
        return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5))).double()

    model = stock()
    eadem.tie(model, declared, start="mean")
    before = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)

    def step():
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    def changed(change):
        nonlocal optimizer
        try:
            change(optimizer)
        except eadem.Unsupported:
            change(None)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        eadem.check(model)
        eadem.check_optimizers(model, optimizer)

    step()
    order = list(declared)[: 1 + draw(generator, len(declared))]
    for name in order:
        how = [{"rank": 1}, {"rank": 2}, {"penalty": 0.1}][draw(generator, 3)]
        was = values(model)
        changed(lambda o, n=name, h=how: eadem.relax(model, n, optimizer=o, **h))
        assert torch.allclose(values(model), was, rtol=0, atol=1e-13)
        step()
    shuffle(model, seed)
    plan, theta = eadem.bind.resolved(model), eadem.bind.free_vector(model)
    assert torch.allclose(plan.expand(theta), values(model), rtol=0, atol=1e-12)
    rank = int(torch.linalg.matrix_rank(torch.func.jacrev(plan.expand)(theta)))
    assert eadem.counts(model).free == eadem.summary(model).free == rank
    eadem.save(model, tmp_path / "m.safetensors")
    eadem.load(fresh := stock(), tmp_path / "m.safetensors")
    assert torch.equal(values(fresh), values(model))
    if len(order) < len(declared):
        fresh.load_state_dict(eadem.twin(model).state_dict())
        assert torch.allclose(values(fresh), values(model), rtol=0, atol=1e-10)
    step()
    for found in relaxed(model):
        changed(found.tie)
        step()
    assert [(n, tuple(p.shape)) for n, p in model.named_parameters()] == before
    eadem.tie(again := stock(), declared)
    assert eadem.counts(again) == eadem.counts(model)


def test_a_large_tie_that_no_site_is_held_to_is_not_counted_by_a_matrix():
    model = nn.ModuleList([nn.Linear(80, 80, bias=False) for _ in range(2)])
    eadem.tie(model, {"0.weight": LowRank(1), "1.weight": LowRank(1)})
    with pytest.raises(eadem.TooLarge, match="Hold one site"):
        eadem.counts(model)
    assert eadem.summary(model).free == eadem.summary(model).stored == 6400 + 2 * 160
    eadem.evidence.relaxed(model)[0].tie()
    assert eadem.counts(model).free == 6400 + 159
