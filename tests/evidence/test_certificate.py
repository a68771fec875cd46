"""Certificates of shift equivariance and invariance, exact, broken and refused."""

import pytest
import torch
from torch import nn

from eadem.evidence import EvidenceError, Shifts, certify
from eadem.groups import Cyclic
from eadem.nn import equivariant


def conv(padding_mode="circular", stride=1, kernel=3):
    torch.manual_seed(3)
    return nn.Conv2d(
        2, 3, kernel, stride=stride, padding=kernel // 2, padding_mode=padding_mode
    ).double()


@pytest.fixture
def x():
    return torch.randn(2, 2, 8, 6, dtype=torch.float64, generator=torch.manual_seed(0))


def test_circular_padding_over_every_cyclic_shift(x):
    found = certify(conv(), Shifts((-2, -1)), x)
    assert found.tried == 48
    assert found.compared == 1.0
    assert found.holds(1e-12)
    assert found.kind == "equivariance"


def test_zero_padding_in_the_interior_only(x):
    model = conv("zeros")
    whole = certify(model, Shifts((-2, -1)), x)
    assert not whole.holds(1e-2)
    assert whole.worst != (0, 0)
    inside = certify(model, Shifts((-2, -1), margin=1), x)
    assert inside.holds(1e-12)
    assert 0 < inside.compared < 1
    assert "of the outputs" in str(inside)


def test_a_margin_too_small_is_caught(x):
    model = conv("zeros", kernel=5)
    assert not certify(model, Shifts((-2, -1), margin=1), x).holds(1e-3)
    assert certify(model, Shifts((-2, -1), margin=2), x).holds(1e-12)


def test_the_mask_against_a_loop_over_positions():
    shifts, y = Shifts((0,), margin=2), torch.zeros(7)
    for (s,) in shifts.elements(y):
        mask = shifts.compared((s,), y)
        for i in range(7):
            assert bool(mask[i]) == (2 <= i < 5 and 2 <= (i - s) % 7 < 5)


def test_a_stride_moves_the_output_by_fewer_positions(x):
    model = conv(stride=2)
    found = certify(model, Shifts((-2, -1), stride=2), x)
    assert found.tried == 12
    assert found.holds(1e-12)
    with pytest.raises(EvidenceError, match="does not divide"):
        certify(model, Shifts(-1, stride=4), x)


def test_a_global_maximum_is_invariant(x):
    model = conv()
    found = certify(lambda v: model(v).amax((-2, -1)), Shifts((-2, -1)), x, kind="invariance")
    assert found.tried == 48
    assert found.holds(1e-12)
    assert not certify(model, Shifts((-2, -1)), x, kind="invariance").holds(1e-2)


def test_a_layer_that_knows_positions_is_not_equivariant(x):
    torch.manual_seed(0)
    layer = nn.Linear(6, 6).double()
    found = certify(layer, Shifts(-1), x)
    assert not found.holds(1e-2)
    assert found.absolute > 0


def test_size_limits_the_shifts(x):
    assert certify(conv(), Shifts((-2, -1), size=(2, 3)), x).tried == 6


def test_a_function_that_is_not_deterministic_does_not_pass(x):
    torch.manual_seed(0)
    dropout = nn.Dropout(0.5)
    assert not certify(dropout, Shifts(-1, size=1), x).holds(1e-2)


def test_gradients_are_not_kept(x):
    certify(lambda v: conv()(v) if not torch.is_grad_enabled() else 1 / 0, Shifts(-1, 2), x)


def test_what_cannot_be_compared_is_refused(x):
    with pytest.raises(EvidenceError, match="nothing to compare"):
        certify(conv(), Shifts(-1, margin=3), x)
    with pytest.raises(EvidenceError, match="invariance"):
        certify(lambda v: v.sum(), Shifts(-1), x)
    with pytest.raises(EvidenceError, match="no axis 7"):
        certify(lambda v: v, Shifts(7), x)
    with pytest.raises(EvidenceError, match="not finite"):
        certify(lambda v: v / 0, Shifts(-1), x)
    with pytest.raises(EvidenceError, match="one for each"):
        Shifts((-2, -1), margin=(1, 2, 3))
    with pytest.raises(EvidenceError, match="kind"):
        certify(lambda v: v, Shifts(-1), x, kind="symmetry")


C4 = Cyclic(4)
REP = C4.regular(1)


def flattened():
    """A group convolution, a ReLU and a flattening that all follow, and a layer that does."""
    torch.manual_seed(0)
    conv = equivariant(nn.Conv2d(1, 4, 3, padding=1), C4.trivial(), REP)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten())
    places = REP * C4.grid((6, 6))
    return model.append(equivariant(nn.Linear(144, 4), places, REP)).double()


def square():
    return torch.randn(2, 1, 6, 6, dtype=torch.float64)


def test_a_flattening_is_not_blamed_for_what_follows():
    model = flattened()
    assert certify(model, C4, square(), out_rep=REP).verdict == "holds"
    model.append(nn.Linear(4, 4).double())
    found = certify(model, C4, square(), out_rep=REP)
    assert found.verdict == "broken, first at 4"


def test_a_reshape_between_modules_is_followed():
    model = flattened()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, _, self.linear = model
            self.last = nn.Linear(4, 4).double()

        def forward(self, x):
            return self.last(self.linear(self.act(self.conv(x).flatten(1))))

    assert certify(Net(), C4, square(), out_rep=REP).lost_at == "last"


def test_a_break_before_a_flattening_is_found():
    model = flattened()
    broken = nn.Sequential(model[0], nn.Conv2d(4, 4, 3, padding=1).double(), *model[1:])
    assert certify(broken, C4, square(), out_rep=REP).lost_at == "1"


def test_what_runs_between_modules_is_not_blamed_on_the_next():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x):
            return self.act(x * torch.arange(6.0, dtype=x.dtype))

    found = certify(Net(), C4, square())
    assert found.verdict == "broken"
    assert found.lost_at is None


def test_running_statistics_stay_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3)).double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert not certify(model, C4, square() + 3, out_rep=REP).holds()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training


def test_foreign_arguments_are_refused():
    with pytest.raises(EvidenceError, match="in_rep=3"):
        certify(nn.ReLU(), C4, square(), in_rep=3)
    with pytest.raises(EvidenceError, match="another group"):
        certify(nn.ReLU(), C4, square(), in_rep=Cyclic(2).trivial(1))
    with pytest.raises(EvidenceError, match="a tuple"):
        certify(lambda v: (v, v), C4, square())
