"""Layers that are one, each with a remainder of its own."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from eadem._share import Entry, Plan, matrices
from eadem._share.attach import attach, replaced, values
from eadem._share.factors import remainders
from eadem._share.loss import Loss
from eadem._share.measure import operations
from eadem._share.run import _recursive
from eadem._share.statistics import moments
from eadem._share.text import read
from tiny_transformers import ids, tiny


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
