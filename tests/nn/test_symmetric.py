"""p4 and p4m networks of stock layers: equivariance, readout, and geometry that breaks it."""

import warnings

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import NoEquivariantMap, ShapeError, SymmetryBroken, Unsupported
from eadem.groups import Cyclic, Dihedral, Octahedral, ReverseComplement, Symmetric
from eadem.nn import GroupPool, check_geometry, check_symmetry, equivariant, group_cnn

C3, C4, D4 = Cyclic(3), Cyclic(4), Dihedral(4)
TIGHT = {torch.float64: 1e-12, torch.float32: 2e-6}


def fields(group, dtype):
    """Two layers between regular fields, with what may stand between them."""
    torch.manual_seed(0)
    rep = group.regular(3)
    model = nn.Sequential(
        equivariant(nn.Conv2d(2, rep.size, 3, padding=1), group.trivial(2), rep),
        nn.ReLU(),
        nn.MaxPool2d(2),
        equivariant(nn.Conv2d(rep.size, rep.size, 3), rep, rep),
        equivariant(nn.GroupNorm(3, rep.size), rep, rep),
        nn.GELU(),
    ).to(dtype)
    check_symmetry(model, group.trivial(2), 10)
    return model, rep


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("group", [C4, D4], ids=str)
def test_fields_follow_every_element(group, dtype):
    model, rep = fields(group, dtype)
    x = torch.randn(2, 2, 10, 10, dtype=dtype, generator=torch.Generator().manual_seed(1))
    found = eadem.certify(model, group, x, out_rep=rep)
    assert found.tried == len(found.errors) == group.order
    assert found.relative <= TIGHT[dtype]
    assert found.verdict == "holds"


@pytest.mark.parametrize("dtype", TIGHT)
@pytest.mark.parametrize("group", [C4, D4], ids=str)
def test_a_network_is_invariant_before_and_after_training(group, dtype):
    torch.manual_seed(0)
    model = group_cnn(group, 1, (4, 6), classes=3, in_size=12).to(dtype)
    x = torch.randn(4, 1, 12, 12, dtype=dtype)
    assert eadem.certify(model.eval(), group, x, kind="invariance").relative <= TIGHT[dtype]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), torch.arange(4) % 3).backward()
        optimizer.step()
    assert eadem.certify(model.eval(), group, x, kind="invariance").relative <= TIGHT[dtype]
    keys = list(model.state_dict())
    assert keys == list(model.train().state_dict())


def test_an_untied_network_loses_it_at_its_first_layer():
    torch.manual_seed(0)
    model, rep = fields(C4, torch.float64)
    x = torch.randn(1, 2, 10, 10, dtype=torch.float64)
    loose = eadem.twin(model)
    assert eadem.certify(loose, C4, x, out_rep=rep).holds()
    with torch.no_grad():
        loose[3].weight.add_(0.1 * torch.randn_like(loose[3].weight))
    found = eadem.certify(loose, C4, x, out_rep=rep)
    assert found.relative > 1e-2
    assert found.lost_at == "3"
    assert found.verdict == "broken, first at 3"
    assert found.errors[0] == ("1", 0.0)


def test_a_stride_that_loses_it_is_named():
    torch.manual_seed(0)
    rep = C4.regular(2)
    model = nn.Sequential(
        equivariant(nn.Conv2d(1, 8, 3, padding=1), C4.trivial(), rep),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
    ).double()
    eadem.tie(model, "2.weight", via=eadem.Equivariant(rep, rep))
    eadem.tie(model, "2.bias", via=eadem.Equivariant(rep, rep))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    assert eadem.certify(model, C4, x, out_rep=rep).lost_at == "2"
    with pytest.raises(SymmetryBroken, match=r"a side of [79], or a kernel of [24]"):
        check_symmetry(model, C4.trivial(), 8)
    assert eadem.certify(model, C4, x[..., :7, :7], out_rep=rep).holds()
    check_symmetry(model, C4.trivial(), 7)


@pytest.mark.parametrize(
    ("layer", "side", "keeps"),
    [
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 8, False),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 9, True),
        (nn.Conv2d(1, 1, 4, stride=2, padding=1), 8, True),
        (nn.Conv2d(1, 1, 3, stride=3, padding=0), 9, True),
        (nn.Conv2d(1, 1, 3, stride=2, padding=0, dilation=2), 8, False),
        (nn.Conv2d(1, 1, 2, padding="same"), 8, False),
        (nn.Conv2d(1, 1, 3, padding="same"), 8, True),
        (nn.MaxPool2d(2), 7, False),
        (nn.AvgPool2d(2), 8, True),
        (nn.MaxPool2d(3, 2, 1), 8, False),
        (nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1), 8, False),
        (nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1), 8, True),
    ],
    ids=str,
)
def test_geometry_is_told_from_the_sides(layer, side, keeps):
    """The rule, and what a layer with a symmetric filter really does."""
    if hasattr(layer, "weight"):
        D = Dihedral(4)
        eadem.tie(layer, "weight", via=eadem.Equivariant(D.trivial(), D.trivial()))
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0)) + 2
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding="same" with an even kernel
        mirrored = layer(x.flip(-1)) - layer(x).flip(-1)
    assert (float(mirrored.abs().max()) < 1e-5) == keeps
    if keeps:
        check_geometry(layer, (side, side))
    else:
        with pytest.raises(SymmetryBroken):
            check_geometry(layer, (side, side))


def test_a_nonlinearity_needs_a_permutation():
    rep = C3.space(2)
    model = nn.Sequential(equivariant(nn.Linear(2, 2, bias=False), rep, rep), nn.ReLU())
    with pytest.raises(SymmetryBroken, match="mixes them"):
        check_symmetry(model, rep, ())
    signs = C4.sign(2)
    model = nn.Sequential(equivariant(nn.Linear(2, 2, bias=False), signs, signs), nn.ReLU())
    with pytest.raises(SymmetryBroken, match=r"changes their signs.*Tanh"):
        check_symmetry(model, signs, ())
    model[1] = nn.Tanh()
    check_symmetry(model, signs, ())
    rep = C4.regular(2)
    model = nn.Sequential(equivariant(nn.Conv2d(1, 8, 3), C4.trivial(), rep), nn.BatchNorm2d(8))
    with pytest.raises(SymmetryBroken, match="GroupNorm"):
        check_symmetry(model, C4.trivial(), 5)
    assert model.training


def test_what_else_is_refused():
    rep = C4.regular(1)
    with pytest.raises(SymmetryBroken, match="say in_size="):
        equivariant(nn.Conv2d(4, 4, 3, stride=2), rep, rep)
    with pytest.raises(Unsupported, match="not Bilinear"):
        equivariant(nn.Bilinear(4, 4, 4), rep, rep)
    layer = nn.Linear(2, 2)
    with pytest.raises(NoEquivariantMap):
        equivariant(layer, C4.sign(2), C4.sign(2))
    assert not eadem.ties(layer)
    with pytest.raises(SymmetryBroken, match="pool its parts"):
        GroupPool(C4.sign(2))
    with pytest.raises(ValueError, match="widths"):
        group_cnn(C4, 1, (), 3, 8)


def test_cubic_filters_in_three_dimensions():
    torch.manual_seed(0)
    cube = Octahedral()
    model = group_cnn(cube, 1, (2, 2), classes=2, in_size=6, ndim=3).double().eval()
    x = torch.randn(1, 1, 6, 6, 6, dtype=torch.float64)
    found = eadem.certify(model, cube, x, kind="invariance")
    assert found.tried == 24
    assert found.relative <= 1e-12


def test_both_strands_of_dna():
    torch.manual_seed(0)
    dna = ReverseComplement()
    rep = dna.regular(3)
    model = nn.Sequential(
        equivariant(nn.Conv1d(4, 6, 7), dna.bases(), rep), nn.ReLU(), GroupPool(rep)
    ).double()
    x = nn.functional.one_hot(torch.randint(4, (2, 30)), 4).mT.double()
    assert eadem.certify(model, dna, x, in_rep=dna.bases()).relative <= 1e-12
    forward, back = model[0].weight[0::2], model[0].weight[1::2]
    assert torch.equal(back, forward.flip(1, 2))


def test_the_state_of_a_network_comes_back(tmp_path):
    torch.manual_seed(0)
    model = group_cnn(D4, 1, (2, 3), classes=2, in_size=8)
    eadem.save(model, tmp_path / "net.safetensors")
    again = group_cnn(D4, 1, (2, 3), classes=2, in_size=8)
    eadem.load(again, tmp_path / "net.safetensors")
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(model(x), again(x))


@pytest.mark.parametrize(
    ("a", "b"),
    [(C4.regular(4), C4.regular(4)), (C3.space(2).copies(8), C3.space(2).copies(8))],
    ids=str,
)
def test_a_layer_starts_as_large_as_it_was_drawn(a, b):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16, bias=False)
    drawn = float(layer.weight.detach().square().mean())
    equivariant(layer, a, b)
    assert float(layer.weight.detach().square().mean()) == pytest.approx(drawn, rel=0.3)


def test_interpolated_filters_start_at_scale_too():
    torch.manual_seed(0)
    C8 = Cyclic(8)
    layer = nn.Conv2d(2, 16, 5, bias=False)
    drawn = float(layer.weight.detach().norm())
    equivariant(layer, C8.trivial(2), C8.regular(2))
    assert float(layer.weight.detach().norm()) == pytest.approx(drawn, rel=1e-5)


def test_a_large_group_is_sampled():
    torch.manual_seed(0)
    S8 = Symmetric(8)
    points = S8.points(2)
    layer = equivariant(nn.Linear(16, 16), points, points).double()
    x = torch.randn(3, 16, dtype=torch.float64)
    found = eadem.certify(layer, S8, x, in_rep=points, out_rep=points)
    assert found.tried == 200
    assert found.relative <= 1e-12
    assert not eadem.certify(eadem.twin(layer), S8, x, in_rep=points).holds()


def test_layers_share_a_filter_that_is_equivariant():
    torch.manual_seed(0)
    rep = C4.regular(1)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    )
    eadem.tie_modules(model, "0", "2")
    eadem.tie(model, "2.weight", via=eadem.Equivariant(rep, rep))
    eadem.tie(model, "0.bias", via=eadem.Equivariant(rep, rep))
    assert eadem.counts(model).free == 36 + 1
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    assert eadem.certify(model.double(), C4, x, in_rep=rep, out_rep=rep).relative <= 1e-12


def test_a_summary_writes_maps_as_one_declares_them():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False))
    eadem.tie(model, "0.weight", via=eadem.Equivariant(C4.regular(1), C4.regular(2)))
    text = str(eadem.summary(model)).replace("\n", " ")
    assert "Equivariant(Cyclic(4).regular(1)," in text


@pytest.mark.parametrize(
    "given",
    [{"stride": (2, 1)}, {"padding": (1, 0)}, {"dilation": (1, 2)}],
    ids=lambda g: next(iter(g)),
)
def test_axes_that_are_exchanged_are_treated_alike(given):
    rep = C4.regular(1)
    layer = nn.Conv2d(4, 4, 3, **given)
    with pytest.raises(SymmetryBroken, match=next(iter(given)) + ".*differently"):
        equivariant(layer, rep, rep, in_size=9)
    assert not eadem.ties(layer)
    mirror = Cyclic(2)
    line = mirror.representation([[1.0, 0.0], [0.0, -1.0]])
    same = mirror.regular(2)
    layer = equivariant(nn.Conv2d(4, 4, 3, **given).double(), same, same, (9, 9), space=line)
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    found = eadem.certify(layer, mirror, x, in_rep=same, out_rep=same, space=line)
    assert found.relative <= 1e-12


def test_what_does_not_fit_the_group_is_refused():
    rep = C4.regular(1)
    with pytest.raises(Unsupported, match="groups=1"):
        equivariant(nn.Conv2d(8, 4, 3, groups=2), rep, rep)
    with pytest.raises(ShapeError, match="acts on 3 axes"):
        equivariant(nn.Conv2d(4, 4, 3), rep, rep, space=C4.trivial(3))
    with pytest.raises(SymmetryBroken, match="sides of its input"):
        check_symmetry(nn.Conv2d(4, 4, 3), rep, (8, 6))
    with pytest.raises(ValueError, match="ndim=4"):
        group_cnn(C4, 1, (2,), 3, 8, ndim=4)


def test_a_layer_without_values_is_tied():
    layer = equivariant(nn.Conv2d(4, 8, 3, device="meta"), C4.regular(1), C4.regular(2))
    assert sum(p.numel() for p in layer.parameters()) == 74
    assert layer.weight.is_meta


C2 = Cyclic(2)


@pytest.mark.parametrize(
    ("blocks", "rep", "follows"),
    [
        (2, C4.regular(2), True),
        (1, C4.regular(2), True),
        (4, C4.regular(2), False),
        (8, C4.regular(2), True),
        (1, C2.trivial(1) + C2.sign(1), False),
        (2, C2.trivial(1) + C2.sign(1), True),
        (2, C2.trivial(2) + C2.sign(2), True),
        (1, C2.sign(3), True),
        (1, C3.space(2), False),
        (2, C3.space(2) + C3.trivial(2), False),
    ],
    ids=str,
)
def test_a_normalization_takes_whole_fields(blocks, rep, follows):
    """The rule, and what a normalization with the group's weights really does."""
    torch.manual_seed(0)
    plain = nn.GroupNorm(blocks, rep.size, affine=False).double()
    x = torch.randn(3, rep.size, 7, dtype=torch.float64)
    space = rep.group.trivial(1)
    found = eadem.certify(plain, rep.group, x, in_rep=rep, out_rep=rep, space=space)
    assert (found.relative < 1e-12) == follows
    if not follows:
        with pytest.raises(SymmetryBroken, match="whole blocks"):
            equivariant(plain, rep, rep)
        with pytest.raises(SymmetryBroken, match="whole blocks"):
            check_symmetry(plain, rep, (7,), space=space)
        return
    check_symmetry(plain, rep, (7,), space=space)


def test_the_weight_of_a_normalization_has_no_sign():
    torch.manual_seed(0)
    rep = C2.trivial(2) + C2.sign(2)
    layer = equivariant(nn.GroupNorm(4, 4).double(), rep, rep)
    assert torch.equal(layer.weight, torch.ones(4, dtype=torch.float64))
    assert sum(p.numel() for p in layer.parameters()) == 4 + 2
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
    x, still = torch.randn(2, 4, 5, dtype=torch.float64), C2.trivial(1)
    found = eadem.certify(layer, C2, x, in_rep=rep, out_rep=rep, space=still)
    assert found.relative <= 1e-12
    check_symmetry(layer, rep, (7,), space=still)
    with pytest.raises(SymmetryBroken, match="one representation twice"):
        equivariant(nn.GroupNorm(4, 4), C2.trivial(4), rep)


def test_channels_that_are_cut_off_are_said():
    both = C2.sign(1) + C2.trivial(1)
    with pytest.warns(UserWarning, match=r"outputs 0 \(1 of 2\) are always zero"):
        layer = equivariant(nn.Linear(2, 2, bias=False), C2.trivial(2), both)
    assert torch.equal(layer.weight[0], torch.zeros(2))
    assert bool((layer.weight[1] != 0).all())
    with pytest.warns(UserWarning, match=r"inputs 0 \(1 of 2\) are never used"):
        equivariant(nn.Linear(2, 2, bias=False), both, C2.trivial(2))
    turned = C3.space(2) + C3.trivial(1)
    with pytest.warns(UserWarning, match=r"inputs 0, 1 \(2 of 3\)"):
        equivariant(nn.Linear(3, 2), turned, C3.trivial(2))
    equivariant(nn.Linear(2, 2, bias=False), both, both)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.PReLU(4), "one weight"),
        (nn.LayerNorm([4, 8, 8]), "elementwise_affine=False"),
        (nn.LayerNorm([8, 8]), "elementwise_affine=False"),
        (nn.LayerNorm(8, elementwise_affine=False), "last 1 of 2"),
        (nn.GroupNorm(1, 4), "equivariant"),
        (nn.GroupNorm(2, 4), "whole blocks"),
        (nn.InstanceNorm2d(4, affine=True), "weights or statistics"),
        (nn.AdaptiveAvgPool2d((3, 2)), "differently"),
    ],
    ids=str,
)
def test_what_stands_between_is_looked_at(layer, message):
    with pytest.raises(SymmetryBroken, match=message):
        check_symmetry(nn.Sequential(layer), C4.regular(1), 8)


@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(),
        nn.LayerNorm([4, 8, 8], elementwise_affine=False),
        nn.LayerNorm([8, 8], elementwise_affine=False),
        nn.GroupNorm(1, 4, affine=False),
        nn.InstanceNorm2d(4),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveMaxPool2d(5),
    ],
    ids=str,
)
def test_what_may_stand_between_passes(layer):
    rep, x = C4.regular(1), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    check_symmetry(nn.Sequential(layer), rep, 8)
    found = eadem.certify(layer.double(), C4, x, in_rep=rep, out_rep=rep)
    assert found.relative <= 1e-12


def test_one_side_is_that_of_every_axis():
    dna = ReverseComplement()
    conv = equivariant(nn.Conv1d(4, 4, 3), dna.bases(), dna.regular(2))
    check_symmetry(conv, dna.bases(), 16)
    cube = Octahedral()
    check_symmetry(
        equivariant(nn.Conv3d(1, 1, 3), cube.trivial(), cube.trivial()), cube.trivial(), 5
    )


def test_the_mode_of_every_part_is_left_as_it_was():
    model = nn.Sequential(nn.ReLU(), nn.Dropout()).train()
    model[1].eval()
    check_symmetry(model, C4.regular(1), 8)
    assert [m.training for m in model.modules()] == [True, True, False]
