"""Layers that are one, each with a remainder of its own."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

import eadem
from eadem._share import Entry, Plan, matrices, recover
from eadem._share.attach import attach, replaced, values
from eadem._share.factors import remainders
from eadem._share.loss import Loss
from eadem._share.measure import operations
from eadem._share.run import _recursive
from eadem._share.statistics import moments
from eadem._share.text import Batch, read
from tiny_transformers import ids, tiny

FEW = {"windows": (24, 8, 8), "length": 16}


def test_tied_layers_have_remainders_where_the_spectrum_says():
    """Layers whose up matrices differ by a rank of two, and whose others are equal."""
    model = tiny("llama", layers=2)
    one, two = model.model.layers
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        two.mlp.up_proj.weight += torch.randn(64, 2) @ torch.randn(2, 32)
    found = matrices(model)
    seen = moments(model, read(ids(1), None, length=16, most=(24, 8, 8)).fit, found)
    size = sum(m.size for m in found)
    keep = 0.5 + 4 * (64 + 32) / size
    plan = _recursive(model, seen, found, keep)
    ranks = {e.sites[0].rpartition("layers.0.")[2]: e.rank for e in plan.entries}
    assert ranks.pop("mlp.up_proj.weight") == 2
    assert set(ranks.values()) == {0}
    assert operations(found, plan)[0] <= keep * size
    new = values(model, seen, plan, found)
    before = copy.deepcopy(model.state_dict())
    for site, value in new.items():
        assert torch.allclose(value, before[site], atol=1e-4)
    attach(model, seen, plan, found)
    for site in new:
        owner, _, attr = site.rpartition(".")
        assert torch.allclose(
            getattr(model.get_submodule(owner), attr), before[site], atol=1e-4
        )
    assert _recursive(model, seen, found, 0.49) is None


def test_remainders_say_what_they_take_off_the_loss():
    """For two uses of one encoder matrix, tied with a remainder of each rank."""
    model = tiny("bert", layers=2)
    texts = read(ids(1, 400), None, length=16, most=(320, 40, 40))
    found = matrices(model)
    pair = [m for m in found if m.kind == "down"]
    with torch.no_grad():  # nearly alike, so that the loss is of second order
        first, second = (model.get_parameter(m.site) for m in pair)
        second.copy_(first + 0.1 * torch.randn_like(first))
    seen = moments(model, texts.fit, found)
    gains = remainders(model, seen, pair)
    assert (gains.diff() <= 0).all()
    loss = Loss(model, texts.fit)
    for rank in (0, 12):
        plan = Plan((Entry("tied", tuple(m.site for m in pair), rank),))
        with replaced(model, values(model, seen, plan, pair)):
            assert 0.4 < loss(model) / float(gains[rank:].sum()) < 2.5


def test_the_order_in_which_a_plan_names_sites_does_not_matter():
    name = "model.layers.%d.self_attn.q_proj.weight"
    found = []
    for sites in ((name % 0, name % 1), (name % 1, name % 0)):
        model = tiny("llama")
        plan = Plan((Entry("tied", sites, 31),))
        eadem.share(model, calibration=ids(), plan=plan, **FEW)
        found.append([model.get_submodule(s[:-7]).weight.detach() for s in sorted(sites)])
    stock = [tiny("llama").get_parameter(name % i) for i in (0, 1)]
    for a, b, w in zip(*found, stock, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a, w, atol=0.02)


def test_matrices_of_zeros_get_no_remainder():
    model = tiny("llama")
    with torch.no_grad():
        for i in (0, 1):
            model.get_parameter(f"model.layers.{i}.self_attn.o_proj.weight").zero_()
    found = matrices(model)
    seen = moments(model, read(ids(1), None, length=16, most=(24, 8, 8)).fit, found)
    pair = [m for m in found if m.kind == "o"][:2]
    assert torch.equal(remainders(model, seen, pair), torch.zeros(32, dtype=torch.float64))
    plan = _recursive(model, seen, found, 0.8)
    assert next(e for e in plan.entries if "o_proj" in e.sites[0]).rank == 0


def test_a_plan_that_is_refused_leaves_the_model_as_it_was():
    model = tiny("llama")
    first, second = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    model.get_parameter(first).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(eadem.EademError, match="requires_grad"):
        eadem.share(
            model, calibration=ids(), plan=Plan((Entry("tied", (first, second), 0),)), **FEW
        )
    assert not eadem.ties(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_plan_of_objects_may_not_name_a_site_twice():
    entry = Entry("factored", ("model.layers.0.mlp.up_proj.weight",), 8)
    with pytest.raises(eadem.NoSuchSite, match="twice"):
        eadem.share(tiny("llama"), calibration=ids(), plan=Plan((entry, entry)), **FEW)


@pytest.mark.parametrize(("kind", "keep"), [("bert", 0.1), ("llama", 0.07), ("bert", 0.06)])
def test_little_is_kept_where_little_is_asked_for(kind, keep):
    found = eadem.share(tiny(kind), keep, ids(), **FEW)
    assert found.free <= keep * found.full
    assert all(m.free <= keep * found.full for m in found.methods[1:])


def test_a_model_in_bfloat16_is_shared_and_recovered():
    original, model = (tiny("llama").to(torch.bfloat16) for _ in range(2))
    plan = Plan((Entry("factored", ("model.layers.0.mlp.up_proj.weight",), 8),))
    found = eadem.share(model, calibration=ids(), plan=plan, **FEW)
    theta = eadem.ties(model)[0].theta
    before = theta.detach().clone()
    recover(model, original, found.texts.fit, steps=2)
    assert theta.dtype is torch.bfloat16
    assert theta.isfinite().all()
    assert not torch.equal(theta, before)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_loss(kind, side):
    model = tiny(kind)
    x = ids(1, 4)
    none = torch.zeros(4, 5, dtype=x.dtype)
    parts, marks = [x, none], [torch.ones_like(x), none]
    if side == "left":
        parts, marks = parts[::-1], marks[::-1]
    padded = Batch(torch.cat(parts, 1), torch.cat(marks, 1))
    plain = Batch(x, torch.ones_like(x))
    assert Loss(model, [padded])(model) == pytest.approx(Loss(model, [plain])(model), abs=1e-5)


def test_an_encoder_and_decoder_reads_a_list_of_texts_as_one_text():
    class Words:
        def __call__(self, text, **_):
            return {"input_ids": [int(w) for w in text.split()]}

    texts = [" ".join(map(str, row.tolist())) for row in ids(windows=60)]
    found = eadem.share(tiny("t5"), 0.8, texts, tokenizer=Words(), **FEW)
    again = eadem.share(tiny("t5"), 0.8, " ".join(texts), tokenizer=Words(), **FEW)
    assert found.test == again.test
    assert not any(b.padded for b in found.texts.fit)
