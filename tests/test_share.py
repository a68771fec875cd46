"""Sharing pretrained transformers, on tiny models of each family."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import eadem
from eadem._share import Entry, Plan, matrices, read_plan, recover
from eadem._share.allocate import candidates, planned, uniform
from eadem._share.attach import standing, values
from eadem._share.factors import errors, spectrum
from eadem._share.loss import Loss
from eadem._share.measure import operations, speeds
from eadem._share.recover import _distance, text_loss
from eadem._share.statistics import moments, stored, wide
from eadem._share.text import read
from tiny_transformers import ids, logits, tiny

KINDS = ("gpt2", "llama", "bert", "albert", "t5")
FEW = {"windows": (24, 8, 8), "length": 16}


def seen_by(model, kind="llama", seed=1):
    texts = read(ids(seed), None, length=16, most=(24, 8, 8))
    found = matrices(model)
    return found, texts, moments(model, texts.fit, found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_of_the_blocks_is_found(kind):
    model = tiny(kind)
    found = {m.site for m in matrices(model)}
    blocks = {
        f"{n}.weight"
        for n, m in model.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D")
        and not any(x in n for x in ("head", "pooler", "predictions", "mapping_in"))
    }
    assert found == blocks
    for m in matrices(model):
        w = stored(model, m)
        assert tuple(w.shape) == m.shape
        assert (m.transposed, m.narrow) == (kind == "gpt2", m.kind in ("o", "down", "cross o"))


def test_an_unknown_architecture_says_what_is_known_and_how_to_go_on():
    with pytest.raises(eadem.Unsupported, match=r"(?s)gpt2, llama.*\[\[tie\]\].*--plan FILE"):
        eadem.share(nn.Linear(3, 3), 0.5, ids())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_shared_at_its_count_saved_and_loaded(kind, tmp_path):
    model, stock = tiny(kind), tiny(kind)
    found = eadem.share(model, 0.7, ids(), **FEW)
    full = sum(m.size for m in matrices(stock))
    assert found.full == full
    assert 0.69 * full < found.free <= 0.7 * full
    spared = sum(p.numel() for p in stock.parameters()) - sum(
        p.numel() for p in model.parameters()
    )
    assert spared == full - found.free
    eadem.check(model)
    assert eadem.counts(model).stored == sum(p.numel() for p in model.parameters())
    stored = eadem.counts(model).stored
    # two factors of rank r hold r² numbers more than they need; and what has the columns of one
    # of two remainders and the rows of the other could as well be shared, 2r² numbers
    pairs = [e for e in found.plan.entries if e.method == "tied"]
    redundant = sum(4 * e.rank**2 for e in pairs)
    assert 0.995 * stored < eadem.counts(model).free + redundant <= stored
    x = ids(3, 2)
    with torch.no_grad():
        expected = logits(model, x)
        eadem.save(model, tmp_path / "m.safetensors")
        again = tiny(kind, seed=5)
        eadem.load(again, tmp_path / "m.safetensors")
        assert torch.equal(logits(again, x), expected)
        plain = tiny(kind, seed=6)
        plain.load_state_dict(eadem.materialize(model))
        assert torch.allclose(logits(plain, x), expected, atol=2e-4)
        eadem.untie(again)
        assert torch.allclose(logits(again, x), expected, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_to_keep_everything_changes_nothing(kind):
    model, stock = tiny(kind), tiny(kind)
    found = eadem.share(model, 1.0, ids(), **FEW)
    assert found.plan.entries == ()
    x = ids(3, 2)
    assert torch.equal(logits(model, x), logits(stock, x))


def test_moments_are_those_of_the_inputs_and_of_the_gradients():
    model = tiny("bert", layers=1)
    found, texts, seen = seen_by(model)
    rows = []
    query = next(m for m in found if m.kind == "q")
    hook = model.get_submodule(query.module).register_forward_pre_hook(
        lambda _m, args: rows.append(args[0].detach().reshape(-1, 32).double())
    )
    for b in texts.fit:
        model(input_ids=b.ids)
    hook.remove()
    x = torch.cat(rows)
    assert torch.allclose(seen.metric(query), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    down = next(m for m in found if m.kind == "down")
    content = seen.content(down)
    assert torch.allclose(content, content.T)
    assert float(torch.linalg.eigvalsh(content)[0]) > -1e-6 * float(content.trace())


def test_the_estimate_of_the_loss_is_the_loss_to_second_order():
    """For one matrix of an encoder, whose loss is a squared distance: Gauss–Newton."""
    model = tiny("bert", layers=1)
    texts = read(ids(1, 400), None, length=16, most=(320, 40, 40))
    found = matrices(model)
    seen = moments(model, texts.fit, found)
    down = next(m for m in found if m.kind == "down")
    gains = spectrum(model, seen, [down])
    rank = 24
    expected = float(errors(gains, 32)[rank])
    plan = Plan((Entry("factored", (down.site,), rank),))
    loss = Loss(model, texts.fit)
    new = values(model, seen, plan, [down])
    model.get_parameter(down.site).data = new[down.site]
    assert 0.5 < loss(model) / expected < 2.0


def test_a_group_of_one_is_the_whitened_svd():
    model = tiny("llama")
    found, _, seen = seen_by(model)
    for kind in ("gate", "down"):
        m = next(x for x in found if x.kind == kind)
        plan = Plan((Entry("factored", (m.site,), 9),), metric="inputs")
        got = values(model, seen, plan, found)[m.site].double()
        w = stored(model, m).double()
        if kind == "down":
            u = torch.linalg.eigh(seen.content(m)).eigenvectors[:, -9:]
            expected = u @ u.T @ w
        else:
            p = seen.metric(m)
            p = p + 1e-2 * p.diagonal().median() * torch.eye(32, dtype=torch.float64)
            root = torch.linalg.cholesky(p)
            u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
            expected = (u[:, :9] * s[:9]) @ v[:9] @ torch.linalg.inv(root)
        assert torch.allclose(got, expected, atol=1e-5)


def test_groups_hold_as_many_numbers_as_their_curve_says_and_more_rank_loses_less():
    model = tiny("llama")
    found, _, seen = seen_by(model)
    for ways in (w for _, w in candidates(model, seen, found).bundles):
        for cuts in ways.values():
            for c in (c for cut in cuts for c in cut):
                assert (np.diff(c.loss) <= 1e-12).all()
                assert c.loss[-1] == 0.0
                rank = len(c.loss) // 2
                entry = c.entry(rank)
                free, _ = operations(list(c.group), Plan((entry,)))
                assert free == c.costs[rank]
                assert c.entry(len(c.loss) - 1) is None
                assert c.costs[-1] == sum(m.size for m in c.group)


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.5, 0.2])
def test_plans_use_their_budget_and_no_more(keep):
    model = tiny("llama")
    found, _, seen = seen_by(model)
    full = sum(m.size for m in found)
    plan = planned(candidates(model, seen, found), keep)
    free, _ = operations(found, plan)
    assert 0.985 * keep * full <= free <= keep * full
    sites = [s for e in plan.entries for s in e.sites]
    assert len(sites) == len(set(sites))
    assert operations(found, uniform(found, keep, redundant=False))[0] <= keep * full


def test_the_estimate_of_the_wider_choice_is_never_worse():
    model = tiny("llama")
    found, _, seen = seen_by(model)
    narrow = candidates(model, seen, found, reach=1, bundled=False)
    wider = candidates(model, seen, found, reach=2)

    def lost(groups, plan):
        curves = {
            tuple(m.site for m in c.group): c.loss
            for _, ways in groups.bundles
            for cuts in ways.values()
            for cut in cuts
            for c in cut
        }
        return sum(curves[e.sites][e.rank] for e in plan.entries)

    for keep in (0.9, 0.6):
        a, b = (lost(g, planned(g, keep)) for g in (narrow, wider))
        assert b <= 1.02 * a


def test_equal_layers_are_found_to_be_equal():
    """A model whose second and third layers read by one matrix: sharing it costs nothing."""
    model = tiny("llama", layers=2)
    for part in ("gate_proj", "up_proj"):
        a, b = (model.get_submodule(f"model.layers.{i}.mlp.{part}") for i in (0, 1))
        mixed = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
        shared = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
        a.weight.data = mixed @ shared / 8
        b.weight.data = mixed.flip(0) @ shared / 8
    found, _, seen = seen_by(model)
    up = [m for m in found if m.kind == "up"]
    plan = Plan((Entry("factored", tuple(m.site for m in up), 20),))
    for site, value in values(model, seen, plan, found).items():
        assert torch.allclose(value, model.get_parameter(site), atol=1e-4)


def test_a_plan_is_written_read_edited_and_run_again(tmp_path):
    model = tiny("gpt2")
    first = eadem.share(model, 0.7, ids(), **FEW)
    path = tmp_path / "plan.toml"
    path.write_text(first.plan.toml())
    assert read_plan(path) == first.plan
    again = tiny("gpt2")
    second = eadem.share(again, calibration=ids(), plan=read_plan(path), **FEW)
    assert second.free == first.free
    assert second.test == pytest.approx(first.test, abs=1e-5)
    h = "transformer.h"
    path.write_text(
        f'[[tie]]\nmethod = "tied"\nrank = 2\n'
        f'sites = ["{h}.0.mlp.c_fc.weight", "{h}.1.mlp.c_fc.weight"]\n'
    )
    edited = tiny("gpt2")
    third = eadem.share(edited, calibration=ids(), plan=read_plan(path), **FEW)
    assert third.free == third.full - 32 * 128 + 2 * 2 * (32 + 128)
    assert third.free == third.full - (
        sum(p.numel() for p in tiny("gpt2").parameters())
        - sum(p.numel() for p in edited.parameters())
    )
    a, b = (edited.get_submodule(f"{h}.{i}.mlp.c_fc").weight for i in (0, 1))
    assert torch.linalg.matrix_rank(a - b) == 4


def test_a_plan_by_hand_on_a_module_that_is_no_transformer_of_ours():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny("llama")
            self.config = copy.copy(self.inner.config)
            self.config.model_type = "own"

        def forward(self, **kwargs):
            return self.inner(**kwargs)

        @property
        def base_model(self):
            return self.inner.model

    model = Own()
    site = "inner.model.layers.0.mlp.up_proj.weight"
    found = eadem.share(
        model, calibration=ids(), plan=Plan((Entry("factored", (site,), 8),)), **FEW
    )
    assert found.free == 8 * (64 + 32 - 8)
    wrong = Plan((Entry("factored", (site.replace("up_", "upp_"),), 8),))
    with pytest.raises(eadem.NoSuchSite, match="up_proj"):
        eadem.share(Own(), calibration=ids(), plan=wrong, **FEW)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[\[tie\]\]"),
        ("a = ", "no TOML"),
        ("[[tie]]\nmethod = 'fused'\nsites = ['a']\nrank = 1", "the methods are"),
        ("[[tie]]\nmethod = 'factored'\nsites = ['a']\nrank = 0", "1 or more"),
        ("[[tie]]\nmethod = 'tied'\nsites = ['a']\nrank = 0", "two or more"),
        ("[[tie]]\nmethod = 'factored'\nsites = ['a', 'a']\nrank = 2", "twice"),
        ("[[tie]]\nmethod = 'factored'\nsite = ['a']\nrank = 2", "sites"),
    ],
)
def test_a_plan_that_cannot_be_read_says_where(text, said, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(eadem.EademError, match=said):
        read_plan(path)


def test_bad_input_is_refused():
    model = tiny("llama")
    with pytest.raises(eadem.DataError, match=r"3 windows of 16 tokens, and 8 are needed"):
        eadem.share(model, 0.8, ids(windows=3), **FEW)
    with pytest.raises(eadem.OutOfRange, match="at most 1"):
        eadem.share(model, 1.5, ids())
    with pytest.raises(eadem.OutOfRange, match="at least"):
        eadem.share(model, 0.001, ids(), **FEW)
    with pytest.raises(eadem.DataError, match="share a passage"):
        eadem.share(model, 0.8, ids(), test=ids()[:4], **FEW)
    with pytest.raises(eadem.OutOfRange, match="needs a tokenizer"):
        eadem.share(model, 0.8, "some words")
    with pytest.raises(eadem.OutOfRange, match="calibration=text"):
        eadem.share(model, 0.8)
    for text, one in ((1.5, model), (0.5, tiny("bert"))):
        found = eadem.share(copy.deepcopy(one), 0.8, ids(), **FEW)
        with pytest.raises(eadem.OutOfRange, match="cross-entropy"):
            recover(found.model, one, found.texts.fit, steps=1, text=text)
    eadem.tie(model, "model.layers.*.mlp.up_proj.weight")
    with pytest.raises(eadem.Unsupported, match="tied already"):
        eadem.share(model, 0.8, ids(), **FEW)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_with_a_cache_and_left_padding(kind):
    model = tiny(kind)
    eadem.share(model, 0.7, ids(), **FEW)
    plain = eadem.twin(model)
    x = ids(4, 3, 6)
    mask = torch.ones_like(x)
    mask[0, :3] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    kept = model.generate(x, use_cache=True, **asked)
    assert torch.equal(kept, model.generate(x, use_cache=False, **asked))
    assert torch.equal(kept, plain.generate(x, use_cache=True, **asked))
    alone = model.generate(x[:1, 3:], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(alone[0, 3:], kept[0, 6:])


def test_an_albert_is_seen_to_be_shared():
    found = standing(matrices(tiny("albert")))
    assert found.shared
    assert found.untied == 3 * found.stored
    assert str(found).startswith("shared already: 6 matrices")
    assert not standing(matrices(tiny("bert"))).shared


def test_recovery_wins_back_and_goes_on_where_it_was_interrupted(tmp_path):
    original = tiny("llama")
    model = tiny("llama")
    found = eadem.share(model, 0.5, ids(), **FEW)
    batches = found.texts.fit
    halfway = copy.deepcopy(model)
    state = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(step, total, loss):
        if step == 7:
            raise Stop

    def apart():
        with torch.no_grad():
            return sum(float(_distance(model, original, b, "causal")) for b in batches)

    before = apart()
    losses = recover(model, original, batches, steps=12, rate=1e-4)
    assert len(losses) == 12
    assert apart() < 0.9 * before
    with pytest.raises(Stop):
        recover(
            halfway, original, batches, steps=12, rate=1e-4, state=state, every=5, said=stop
        )
    assert state.exists()
    again = copy.deepcopy(halfway)
    with torch.no_grad():
        for t in eadem.ties(again):
            t.theta.zero_()
    with pytest.raises(eadem.RecordError, match="another plan"):
        recover(again, original, batches, steps=12, state=state, mark="other")
    resumed = recover(again, original, batches, steps=12, rate=1e-4, state=state, every=5)
    assert resumed == pytest.approx(losses, abs=1e-6)
    assert not state.exists()
    assert torch.allclose(eadem.ties(again)[0].theta, eadem.ties(model)[0].theta, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("text", [0.5, 1.0])
def test_recovery_may_go_towards_the_text_as_well(text):
    original = tiny("llama")
    found = eadem.share(tiny("llama"), 0.6, ids(), **FEW)
    batches = found.texts.fit
    with torch.no_grad():
        one = batches[0]
        apart = _distance(found.model, original, one, "causal")
        given = text_loss(found.model, one, "causal")
        mixed = _distance(found.model, original, one, "causal", text)
    assert float(mixed) == pytest.approx(float((1 - text) * apart + text * given), rel=1e-5)
    loss = Loss(original, batches)
    before = loss(found.model)
    recover(found.model, original, batches, steps=30, rate=1e-3, text=text, mixed=False)
    assert loss(found.model) < before


def test_text_is_cut_into_windows_that_do_not_overlap():
    class Letters:
        def __call__(self, text, **_):
            return {"input_ids": [ord(c) for c in text]}

    text = "".join(chr(1000 + i) for i in range(1600))
    found = read(text, Letters(), length=16, most=(8, 4, 4))
    fit, choose, test = (torch.cat([b.ids for b in part]) for part in vars(found).values())
    assert (len(fit), len(choose), len(test)) == (8, 4, 4)
    at = text.find
    starts = ["".join(map(chr, w.tolist())) for part in (fit, choose, test) for w in part]
    assert max(at(w) for w in starts[:8]) < min(at(w) for w in starts[8:12])
    assert max(at(w) for w in starts[8:12]) < min(at(w) for w in starts[12:])


def test_sentences_are_padded_and_padding_counts_for_nothing():
    class Words:
        def __call__(self, texts, **_):
            rows = [[1 + len(w) for w in t.split()] for t in texts]
            width = max(map(len, rows))
            ids = [r + [0] * (width - len(r)) for r in rows]
            mask = [[1] * len(r) + [0] * (width - len(r)) for r in rows]
            return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    texts = ["x" * (i % 9) + " a bb ccc" * (1 + i % 3) for i in range(80)]
    model = tiny("bert")
    found = eadem.share(model, 0.7, texts, tokenizer=Words(), **FEW)
    assert 0 < found.test < 1
    wide_again = wide(model, matrices(tiny("bert"))[0])
    assert wide_again.dtype == torch.float64


def test_speeds_and_the_command_line_of_python_without_eadem(tmp_path):
    model = tiny("llama")
    eadem.share(model, 0.7, ids(), **FEW)
    (fast,) = speeds([model], ids(2, 1), rounds=1, decode=2)
    assert fast["read"] > 0
    assert fast["write"] > 0
    folder = tmp_path / "plain"
    model.save_pretrained(folder, state_dict=eadem.materialize(model))
    x = ids(3, 1)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "assert 'eadem' not in sys.modules\n"
        "torch.save(m(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])"
    )
    args = [str(folder), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True)
    with torch.no_grad():
        assert torch.allclose(torch.load(args[2]), model(x).logits, atol=2e-4)


def test_an_encoder_and_decoder_generates_with_a_cache_and_a_padded_batch():
    model = tiny("t5")
    eadem.share(model, 0.7, ids(), **FEW)
    plain = eadem.twin(model)
    x = ids(4, 3, 6)
    mask = torch.ones_like(x)
    mask[0, :3] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    kept = model.generate(x, use_cache=True, **asked)
    assert torch.equal(kept, model.generate(x, use_cache=False, **asked))
    assert torch.equal(kept, plain.generate(x, use_cache=True, **asked))


def test_queries_keys_and_values_with_one_basis_read_it_once(monkeypatch):
    """In a stock model's own forward, and with the outputs of its dense twin."""
    import eadem.bind.product as used

    model = tiny("llama", layers=2)
    attn = "model.layers.0.self_attn"
    group = tuple(f"{attn}.{n}_proj.weight" for n in "qkv")
    eadem.share(model, calibration=ids(), plan=Plan((Entry("factored", group, 20),)), **FEW)
    made, real = [], used.picked
    monkeypatch.setattr(used, "picked", lambda *a: made.append(1) or real(*a))
    x = ids(3, 2)
    with torch.no_grad():
        expected = logits(eadem.twin(model), x)
        assert torch.allclose(logits(model, x), expected, atol=1e-4)
        assert len(made) == 1
    loss = logits(model, x).square().sum()
    twin = eadem.twin(model)
    theta = eadem.ties(model)[0].theta
    (got,) = torch.autograd.grad(loss, theta)
    sites = [twin.get_parameter(s) for s in group]
    pulled = torch.autograd.grad(logits(twin, x).square().sum(), sites)
    again = [model.get_submodule(s.rpartition(".")[0]).weight for s in group]
    back = torch.autograd.grad(again, theta, grad_outputs=pulled)[0]
    assert torch.allclose(got, back, rtol=1e-3, atol=1e-3 * float(back.abs().max()))
