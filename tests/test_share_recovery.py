"""Recovery's parts, each against its plain form."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

pytest.importorskip("transformers")

import eadem
from eadem._share import own_samples, recover
from eadem._share.coordinates import Coordinates, _Layer, balanced, lowered
from eadem._share.divergence import IGNORED, apart
from eadem._share.loss import predicted
from eadem._share.recover import _aimed, _ordered, mixes, plain_attention
from eadem._share.text import Batch, batches
from eadem.maps import Factored
from tiny_transformers import WORDS, ids, logits, tiny

FEW = {"windows": (24, 8, 8), "length": 16}


@pytest.mark.parametrize("text", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_loss_and_its_gradient_are_those_of_the_plain_form(text, rows, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    given, wanted = 3 * torch.randn(2, 7, 11, generator=generator)
    labels = torch.randint(0, 11, (7,), generator=generator)
    labels[[2, 6]] = IGNORED
    live = labels != IGNORED
    monkeypatch.setattr("eadem._share.divergence.ROOM", 11 * rows)

    def plain(x):
        p, q = log_softmax(x[live], -1), log_softmax(wanted[live], -1)
        away = kl_div(p, q, log_target=True, reduction="batchmean")
        return (1 - text) * away + text * cross_entropy(x, labels)

    results = []
    for loss in (plain, lambda x: apart(x, None if text == 1 else wanted, labels, text)):
        x = given.clone().requires_grad_(True)
        found = 3 * loss(x)
        found.backward()
        results.append((found.detach(), x.grad))
    (want, slope), (got, grad) = results
    assert torch.allclose(got, want, rtol=1e-5)
    assert torch.allclose(grad, slope, atol=1e-6)


def test_labels_leave_out_what_padding_does():
    model = tiny("llama")
    x = ids(3, 4, 8)
    mask = torch.ones_like(x)
    mask[0, :3], mask[1, 5:] = 0, 0
    for batch in (Batch(x, mask), Batch(x, torch.ones_like(x))):
        with torch.no_grad():
            found, labels = _aimed(model, batch, "causal")
            want, tokens = predicted(model, batch, "causal")
        live = labels != IGNORED
        assert torch.equal(labels[live], tokens)
        assert torch.allclose(found[live], want, atol=1e-6)


@pytest.mark.parametrize("side", ["columns", "rows"])
def test_the_coordinates_start_at_the_matrix_and_a_step_moves_it_as_far(side):
    generator = torch.Generator().manual_seed(0)
    phi = Factored(5, side, [6, 1, 0, 3, 7]).bind((9, 14))
    theta = torch.randn(phi.in_shape, generator=generator, dtype=torch.float64)
    theta[: len(theta) // 2] *= 50  # a step of θ moves W by very different amounts
    p, s, q = balanced(phi, theta)
    assert torch.allclose(p @ (q / s[:, None]), phi.expand(theta), rtol=1e-10)
    dp = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    dq = torch.randn(q.shape, generator=generator, dtype=torch.float64)
    assert float((dp @ (q / s[:, None])).norm()) == pytest.approx(float(dp.norm()), rel=1e-8)
    assert float(((p / s) @ dq).norm()) == pytest.approx(float(dq.norm()), rel=1e-8)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_the_twin_is_the_model_and_the_values_come_back_as_theta(kind):
    model = tiny(kind)
    eadem.share(model, 0.6, ids(), **FEW)
    x = ids(5, 2, 8)
    with torch.no_grad():
        want = logits(model, x)
        found = Coordinates(model)
        assert torch.allclose(logits(found.place(), x), want, atol=2e-4)
        for p in found.parameters:
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        moved = logits(found.place(), x)
        assert not torch.allclose(moved, want, atol=2e-2)
        found.write()
        assert torch.allclose(logits(model, x), moved, atol=2e-3)


def test_a_layer_multiplies_by_whichever_takes_fewer_operations_to_the_same_end():
    model = tiny("llama")
    eadem.share(model, 0.6, ids(), **FEW)
    found = Coordinates(model)
    layers = [m for m in found.place().modules() if isinstance(m, _Layer)]
    assert {layer._turned for layer in layers} == {True, False}
    for layer in layers:
        one = layer._one
        (rows, columns), rank = layer.weight.shape, len(one.s)
        enough = rank * rows * columns // max(rank * (rows + columns) - rows * columns, 1) + 1
        for tokens in (1, 2 * enough):
            x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
            got, want = layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
            assert torch.allclose(got, want, atol=1e-5)
            both = (y.square().sum() for y in (got, want))
            slopes = [torch.autograd.grad(y, (one.p, one.q)) for y in both]
            for slope, asked in zip(*slopes, strict=True):
                assert torch.allclose(slope, asked, rtol=1e-3, atol=1e-4 * float(asked.norm()))


def test_no_layer_of_a_product_is_multiplied_out_for_its_side():
    model = tiny("llama")
    eadem.share(model, 0.6, ids(), **FEW)
    found = Coordinates(model)
    assert found._products
    assert not found._placed
    sites = [s for one in found._products for s, _ in one.sites]
    weights = dict(found.twin.named_parameters())
    assert not weights.keys() & set(sites)
    for site in sites:
        layer = found.twin.get_submodule(site.removesuffix(".weight"))
        want = model.get_submodule(site.removesuffix(".weight")).weight
        assert torch.allclose(layer.weight, want, atol=1e-5)


def test_products_in_bfloat16_where_the_machine_is_made_for_them(monkeypatch):
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    for able in ((False, False), (True, False), (False, True)):
        for name, has in zip(names, able, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda has=has: has, raising=False)
        assert mixes(torch.device("cpu")) == any(able)
    assert mixes(torch.device("cuda"))


def test_a_layer_with_a_hook_keeps_it():
    model = tiny("llama")
    eadem.share(model, 0.6, ids(), **FEW)
    seen = []
    name = next(s for t in eadem.ties(model) for s in t.sites).removesuffix(".weight")
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    found = Coordinates(model)
    with torch.no_grad():
        logits(found.place(), ids(5, 2, 8))
    assert seen
    assert not isinstance(found.twin.get_submodule(name), _Layer)


def test_a_group_of_matrices_and_other_ties_are_trained_and_the_embedding_is_not():
    model = tiny("llama")
    up = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    plan = eadem._share.Plan(
        (
            eadem._share.Entry("factored", tuple(up), 8),
            eadem._share.Entry(
                "tied", tuple(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)), 2
            ),
        )
    )
    original = copy.deepcopy(model)
    found = eadem.share(model, 0.9, ids(), plan=plan, **FEW)
    eadem.tie(model, "lm_head.weight", to="model.embed_tokens.weight", start="first")
    embedding = model.model.embed_tokens.weight.detach().clone()
    before = {s: t.value(s).detach().clone() for t in eadem.ties(model) for s in t.sites}
    losses = recover(model, original, found.texts.fit, steps=8, rate=1e-3, mixed=False)
    assert losses[-1] < losses[0]
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    for t in eadem.ties(model):
        for site in t.sites:
            still = torch.equal(t.value(site), before[site])
            assert still == ("embed" in site or "lm_head" in site), site
    assert eadem.counts(model).free < eadem.counts(original).free


def test_what_is_changed_for_speed_is_put_back():
    model = tiny("llama")
    weights = dict(model.named_parameters())
    assert model.config._attn_implementation == "sdpa"
    with lowered(model, True), plain_attention(model):
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert model.model.embed_tokens.weight.dtype == torch.float32
        assert model.config._attn_implementation == "eager"
    assert all(p is weights[n] for n, p in model.named_parameters())
    assert model.config._attn_implementation == "sdpa"


def test_samples_are_drawn_from_the_model_itself():
    model = tiny("llama")
    model.config.bos_token_id = 7
    found = own_samples(model, 600, length=3, size=250, abreast=200, mixed=False)
    assert [b.ids.shape for b in found] == [(250, 3), (250, 3), (100, 3)]
    drawn = torch.cat([b.ids for b in found])
    assert bool((drawn[:, 0] == 7).all())
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[7]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(drawn[:, 1], minlength=WORDS) / len(drawn)
    error = (p * (1 - p) / len(drawn)).sqrt()
    assert bool(((seen - p).abs() < 5 * error + 1e-3).all())
    again = own_samples(model, 600, length=3, size=250, abreast=200, mixed=False)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(found, again, strict=True))
    other = own_samples(model, 600, length=3, size=250, abreast=200, mixed=False, seed=1)
    assert not torch.equal(found[0].ids, other[0].ids)


def test_samples_with_a_cache_are_those_without():
    model = tiny("gpt2")
    model.config.bos_token_id = 0
    (found,) = own_samples(model, 3, length=12, size=3, mixed=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(3, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(11):
            reached = model(input_ids=x).logits[:, -1].softmax(-1).cumsum(-1)
            u = torch.rand(3, 1, generator=generator) * reached[:, -1:]
            x = torch.cat([x, (reached <= u).sum(1, keepdim=True)], dim=1)
    assert torch.equal(found.ids, x)


def test_samples_that_cannot_be_drawn_say_why():
    with pytest.raises(eadem.Unsupported, match="does not write text"):
        own_samples(tiny("bert"), 4)
    model = tiny("llama")
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(eadem.Unsupported, match="no such token"):
        own_samples(model, 4)
    with pytest.raises(eadem.OutOfRange, match="1 of 2 are the least"):
        own_samples(tiny("llama"), 4, length=1)


def test_every_third_step_reads_a_sample_and_all_are_read_alike():
    text, own = batches(ids(1, 12), 4), batches(ids(2, 8), 4)
    order = _ordered(text, own, 1 / 3, 30, 0)
    kinds = [any(b is o for o in own) for b in order]
    assert sum(kinds) == 10
    assert [i for i, own_one in enumerate(kinds) if own_one] == list(range(2, 30, 3))
    assert sorted(sum(b is t for b in order) for t in text) == [6, 7, 7]
    assert not any(any(b is o for o in own) for b in _ordered(text, (), 1 / 3, 30, 0))


def test_samples_keep_what_the_text_does_not_hold():
    original = tiny("llama")
    original.config.bos_token_id = 0
    found = eadem.share(tiny("llama"), 0.5, ids(), **FEW)
    own = own_samples(original, 64, length=16, mixed=False, seed=3)
    held = own_samples(original, 64, length=16, mixed=False, seed=4)

    def away(model):
        with torch.no_grad():
            pairs = [(logits(model, b.ids), logits(original, b.ids)) for b in held]
            return sum(
                float((w.softmax(-1) * (log_softmax(w, -1) - log_softmax(g, -1))).sum())
                for g, w in pairs
            )

    other = copy.deepcopy(found.model)
    options = {"steps": 24, "rate": 1e-3, "text": 1.0, "mixed": False}
    recover(found.model, original, found.texts.fit, samples=own, **options)
    recover(other, original, found.texts.fit, **options)
    assert away(found.model) < away(other)


def test_a_recovery_of_nothing_says_so():
    model = tiny("llama")
    eadem.tie(model, "lm_head.weight", to="model.embed_tokens.weight")
    one = batches(ids(), 4)
    with pytest.raises(eadem.OutOfRange, match="0 parameters"):
        recover(model, tiny("llama"), one, steps=3)
    eadem.share(model, 0.6, ids(), **FEW)
    for steps, part, said in ((0, 0.5, "0 steps"), (3, 1.5, "part=1.5")):
        with pytest.raises(eadem.OutOfRange, match=said):
            recover(model, tiny("llama"), one, steps=steps, part=part)
