"""Input and output embeddings as one: what it would cost, and plans that have it."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel

import eadem
from eadem._share import Entry, Plan, matrices, read_plan, recover
from eadem._share.attach import values
from eadem._share.embeddings import apart, plan_of
from eadem._share.factors import DAMPING
from eadem._share.files import card, metrics
from eadem._share.loss import probe
from eadem._share.page import write_page
from eadem._share.statistics import moments
from eadem._share.text import read
from tiny_transformers import WORDS, ids, logits, tiny

FEW = {"windows": (24, 8, 8), "length": 16}


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            vocab_size=WORDS,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()


def t5():
    """T5, whose class makes all embeddings one, with an output embedding of its own; encoder
    and decoder look into one table by modules of their own.
    """
    model = tiny("t5")
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.detach().clone())
    return model


def test_they_are_found_where_they_are_two():
    head, table = apart(tiny("llama"))
    assert (head.site, table.site) == ("lm_head.weight", "model.embed_tokens.weight")
    assert head.shape == table.shape == (WORDS, 32)
    assert [m.site for m in apart(gpt2())] == ["lm_head.weight", "transformer.wte.weight"]
    for kind in ("gpt2", "bert", "albert", "t5"):  # one, or none that writes
        assert apart(tiny(kind)) == ()


def test_the_one_matrix_is_the_mean_weighed_by_both_moments():
    model = tiny("llama", layers=2)
    texts = read(ids(1), None, length=16, most=(24, 8, 8))
    pair = apart(model)
    seen = moments(model, texts.fit, pair)
    hidden, pulled, weight = [], [], 0.0
    generator = torch.Generator().manual_seed(0)
    hooks = [
        model.lm_head.register_forward_pre_hook(lambda _m, a: hidden.append(a[0].detach())),
        model.model.embed_tokens.register_forward_hook(lambda _m, _a, out: out.retain_grad()),
    ]
    for batch in texts.fit:
        kept = []
        last = model.model.embed_tokens.register_forward_hook(
            lambda _m, _a, out, kept=kept: kept.append(out)
        )
        value, count = probe(model, batch, "causal", generator)
        value.backward()
        last.remove()
        pulled.append(kept[0].grad)
        weight += count
    for hook in hooks:
        hook.remove()
    h, g = (torch.cat([v.reshape(-1, 32) for v in vs]).double() for vs in (hidden, pulled))
    sigma, grads = h.T @ h / len(h), g.T @ g / weight
    for m, expected in zip(pair, (sigma, grads), strict=True):
        scale = float(expected.abs().max())
        assert torch.allclose(seen.metric(m), expected, rtol=1e-4, atol=1e-5 * scale)
    sigma, grads = (
        p + DAMPING * float(p.diagonal().median()) * torch.eye(32, dtype=torch.float64)
        for p in (sigma, grads)
    )
    o, i = (model.get_parameter(m.site).detach().double() for m in pair)
    expected = torch.linalg.solve(sigma + grads, (o @ sigma + i @ grads).T).T
    found = values(model, seen, plan_of(pair), pair)
    for m in pair:
        assert torch.allclose(found[m.site].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: tiny("llama", layers=2), gpt2, t5], ids=["llama", "gpt2", "t5"]
)
def test_two_that_are_equal_cost_nothing_as_one(make):
    model = make()
    head, table = apart(model)
    with torch.no_grad():
        model.get_parameter(head.site).copy_(model.get_parameter(table.site))
    found = eadem.share(model, 0.8, ids(), **FEW)
    assert found.embeddings is not None
    assert found.embeddings.free == WORDS * 32
    assert found.embeddings.test == pytest.approx(found.original, abs=1e-5)
    assert found.embeddings.choose == pytest.approx(found.chosen, abs=1e-5)
    assert apart(model)  # it is measured, and not done


def test_a_plan_that_has_it_is_run_saved_loaded_and_recovered(tmp_path):
    model = tiny("llama")
    first = eadem.share(model, 0.7, ids(), **FEW)
    assert first.embeddings is not None
    text = card(first, "somewhere", plain=False)
    assert f"two matrices of {WORDS * 32:,} numbers" in text
    lines = text.partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "plan.toml"
    path.write_text(first.plan.toml() + lines)
    original, again = tiny("llama"), tiny("llama")
    second = eadem.share(again, calibration=ids(), plan=read_plan(path), **FEW)
    assert second.free == first.free + WORDS * 32
    assert second.full == first.full + 2 * WORDS * 32
    assert again.lm_head.weight.equal(again.model.embed_tokens.weight)
    assert "lm_head.weight, model.embed_tokens.weight" in dict(second.evidence)
    assert apart(again) == ()  # one parameter now
    eadem.save(again, tmp_path / "theta.safetensors")
    fresh = tiny("llama", seed=3)
    eadem.load(fresh, tmp_path / "theta.safetensors")
    with torch.no_grad():
        assert torch.equal(logits(fresh, ids(2, 2)), logits(again, ids(2, 2)))
    x = ids(4, 2, 6)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        again.generate(x, attention_mask=torch.ones_like(x), **asked),
        eadem.twin(again).generate(x, attention_mask=torch.ones_like(x), **asked),
    )
    before = again.lm_head.weight.detach().clone()
    recover(again, original, second.texts.fit, steps=2)
    assert again.lm_head.weight.equal(again.model.embed_tokens.weight)
    assert torch.equal(before, again.lm_head.weight)  # embeddings stay as they are


def test_the_page_and_the_figures_say_it(tmp_path):
    found = eadem.share(tiny("llama", layers=2), 0.7, ids(), **FEW)
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Input and output embedding" in page
    assert metrics(found)["embeddings"]["free"] == WORDS * 32
    found = eadem.share(tiny("gpt2", layers=2), 0.7, ids(), **FEW)
    write_page(found, tmp_path / "page.html")
    assert "Input and output embedding" not in (tmp_path / "page.html").read_text()
    assert found.embeddings is None
    assert metrics(found)["embeddings"] is None


@pytest.mark.parametrize(
    "entry",
    [
        Entry("factored", ("model.embed_tokens.weight",), 8),
        Entry("tied", ("lm_head.weight", "model.embed_tokens.weight"), 4),
        Entry("tied", ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"), 0),
    ],
)
def test_anything_else_with_the_input_embedding_is_refused(entry):
    model = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(eadem.Unsupported, match="can be one with the output embedding"):
        eadem.share(model, calibration=ids(), plan=Plan((entry,)), **FEW)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not eadem.ties(model)


def test_embeddings_that_are_one_parameter_are_said_to_be():
    plan = Plan((Entry("tied", ("lm_head.weight", "transformer.wte.weight"), 0),))
    with pytest.raises(eadem.Unsupported, match="one parameter already"):
        eadem.share(tiny("gpt2"), calibration=ids(), plan=plan, **FEW)


def test_the_table_of_an_encoder_and_a_decoder_is_seen_by_both():
    model = t5()
    seen = moments(model, read(ids(1), None, length=16, most=(24, 8, 8)).fit, apart(model))
    assert all(float(seen.metric(m).trace()) > 0 for m in apart(model))


def test_the_output_embedding_may_have_a_basis_of_its_own():
    model = tiny("llama", layers=2)
    plan = Plan((Entry("factored", ("lm_head.weight",), 12),))
    found = eadem.share(model, calibration=ids(), plan=plan, **FEW)
    assert found.full - found.free == WORDS * 32 - 12 * (WORDS + 32 - 12)
    assert len(found.matrices) == len(matrices(tiny("llama", layers=2))) + 1
