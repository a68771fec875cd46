"""share_layers: which ties it declares, against ties declared one by one."""

import pytest
import torch
from torch import nn

import eadem
from eadem.nn import share_layers


def stack(depth=4):
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(depth)]
    return nn.ModuleDict({"blocks": nn.ModuleList(layers), "head": nn.Linear(8, 3)})


def run(model, x):
    for block in model["blocks"]:
        x = block(x)
    return model["head"](x)


def test_whole_layers_are_tie_modules():
    one, other = stack(), stack()
    share_layers(one, "blocks.*")
    eadem.tie_modules(other, "blocks.*")
    assert eadem.record(one) == eadem.record(other)
    single = sum(p.numel() for p in stack(1).parameters())
    assert eadem.counts(one).free == single


def test_a_shared_stack_is_one_layer_used_again():
    model = stack()
    share_layers(model, "blocks.*")
    first, x = stack()["blocks"][0], torch.randn(2, 5, 8)
    expected = x
    for _ in range(4):
        expected = first(expected)
    torch.testing.assert_close(run(model, x), model["head"](expected))


def test_neighbours_share_and_a_rest_is_smaller():
    model = stack(5)
    share_layers(model, "blocks.*", "linear1.weight", every=3)
    assert [t.sites for t in eadem.ties(model)] == [
        tuple(f"blocks.{i}.linear1.weight" for i in (0, 1, 2)),
        tuple(f"blocks.{i}.linear1.weight" for i in (3, 4)),
    ]


def test_a_layer_left_over_alone_stays_free():
    model = stack(3)
    share_layers(model, "blocks.*", "linear1.weight", every=2)
    assert [t.sites for t in eadem.ties(model)] == [
        ("blocks.0.linear1.weight", "blocks.1.linear1.weight")
    ]


def test_parts_are_parameters_modules_or_patterns():
    names = {
        "self_attn": 4,  # in_proj weight and bias, out_proj weight and bias
        "self_attn.out_proj": 2,
        "*.bias": 4,
        "**.weight": 5,  # out_proj, two linear, two norm; not in_proj_weight
    }
    for part, count in names.items():
        assert len(share_layers(stack(), "blocks.*", part)) == count, part


def test_layers_may_be_named_in_any_order_and_shared_again():
    model = stack()
    share_layers(model, ["blocks.3", "blocks.0"], "linear1.weight")
    share_layers(model, "blocks.*", "linear1.weight", every=2)
    weights = [block.linear1.weight for block in model["blocks"]]
    assert all(w is weights[0] for w in weights)


@pytest.mark.parametrize(
    ("layers", "parts", "options", "said"),
    [
        ("block.*", (), {}, "names 0 modules"),
        ("blocks.0", (), {}, "names 1 modules"),
        (["blocks.0", "blocks.9"], (), {}, "no module is called 'blocks.9'"),
        ("blocks.*", ("linear3",), {}, "'blocks.0' has no 'linear3'"),
        (["blocks.0", "head"], (), {}, "do not hold the same parameters"),
    ],
)
def test_what_is_not_there_is_refused(layers, parts, options, said):
    model = stack()
    with pytest.raises(eadem.NoSuchSite, match=said):
        share_layers(model, layers, *parts, **options)
    assert not eadem.ties(model)


def test_sets_of_one_are_refused():
    with pytest.raises(eadem.OutOfRange, match="every=1"):
        share_layers(stack(), "blocks.*", every=1)
