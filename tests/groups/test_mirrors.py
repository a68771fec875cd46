"""Mirrors as ties: the other strand of DNA, causal and anti-causal filters, palindromes."""

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import ShapeError
from eadem.groups import Cyclic, ReverseComplement
from eadem.testing import check_map

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def one_hot(sequence):
    return torch.eye(4)[["ACGT".index(b) for b in sequence]].T


def test_the_other_strand_letter_by_letter():
    text = "GATTACAGG"
    other = text[::-1].translate(COMPLEMENT)
    strand = eadem.ReverseComplement().bind((4, 9)).forward(one_hot(text))
    assert torch.equal(strand, one_hot(other))
    check_map(eadem.ReverseComplement(), (3, 4, 5))
    check_map(eadem.ReverseComplement(channel_dim=0, dim=1), (4, 5))


def test_two_filters_read_both_strands():
    torch.manual_seed(0)
    model = nn.ModuleDict({"plus": nn.Conv1d(4, 2, 5), "minus": nn.Conv1d(4, 2, 5)})
    eadem.tie(model, "minus.weight", to="plus.weight", via=eadem.ReverseComplement())
    eadem.tie(model, "plus.bias", "minus.bias")
    x = torch.randn(1, 4, 12)
    strand = x.flip(1, 2)
    torch.testing.assert_close(model["plus"](strand), model["minus"](x).flip(-1))
    assert eadem.counts(model).free == 2 * 4 * 5 + 2


def test_the_view_is_the_element_of_the_group():
    dna = ReverseComplement()
    image = (dna.bases() * dna.grid((6,))).images[0]
    view = eadem.ReverseComplement().bind((4, 6))
    values = torch.randn(4, 6, dtype=torch.float64)
    moved = torch.from_numpy(image.apply(values.reshape(-1).numpy())).reshape(4, 6)
    assert torch.equal(moved, view.forward(values))


@pytest.mark.parametrize(("shape", "dims"), [((3, 5, 7), (-2, -1)), ((4, 4), (1, -1))])
def test_what_is_refused(shape, dims):
    with pytest.raises(ShapeError):
        eadem.ReverseComplement(*dims).bind(shape)


@pytest.mark.parametrize("length", [4, 5])
def test_a_palindrome_is_the_trivial_representation_of_the_mirror(length):
    mirror = Cyclic(2)
    even = eadem.Equivariant(mirror.trivial(2), mirror.trivial(3)).bind((3, 2, length))
    odd = eadem.Equivariant(mirror.trivial(2), mirror.sign(3)).bind((3, 2, length))
    for phi, sign in ((even, False), (odd, True)):
        same = eadem.Palindrome(dim=-1, odd=sign).bind((3, 2, length))
        theta = torch.randn(same.in_shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(phi.forward(theta.reshape(-1)), same.forward(theta))


def test_an_anticausal_filter_is_a_causal_one_in_reversed_time():
    torch.manual_seed(0)
    model = nn.ModuleDict({"past": nn.Conv1d(2, 3, 4), "future": nn.Conv1d(2, 3, 4)})
    eadem.tie(model, "future.weight", to="past.weight", via=eadem.Flip(-1))
    eadem.tie(model, "past.bias", "future.bias")
    x = torch.randn(1, 2, 10)
    pad = nn.functional.pad
    forward = model["past"](pad(x, (3, 0)))
    backward = model["future"](pad(x.flip(-1), (0, 3))).flip(-1)
    torch.testing.assert_close(forward, backward)
    moved = x.clone()
    moved[..., 6:] = 0
    assert torch.equal(model["past"](pad(moved, (3, 0)))[..., :6], forward[..., :6])
