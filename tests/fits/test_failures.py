"""A fit that fails says why, and keeps the best values; so does one that is not determined."""

import math
import warnings

import pytest
import torch
from curves import Decay, decays, double
from torch import nn

import eadem
from eadem.errors import NoSuchSite, TieConflict, TooLarge, Unsupported
from eadem.fits.fit import RankWarning
from eadem.joint import NotABlock
from eadem.solvers import SolverError


class Given(nn.Module):
    """A residual given as a function of one parameter w."""

    def __init__(self, function, start):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(double(start))

    def residual(self):
        return self.function(self.w)


def test_what_is_no_block_is_refused():
    with pytest.raises(NotABlock, match="block 'a' is a Linear without residual"):
        eadem.Joint({"a": nn.Linear(1, 1)})
    with pytest.raises(NotABlock, match="at least one"):
        eadem.Joint({})
    with pytest.raises(Unsupported, match=r"'a\.b'"):
        eadem.Joint({"a.b": Given(lambda w: w, [0.0])})
    with pytest.raises(NotABlock, match="Linear has no residual"):
        eadem.least_squares(nn.Linear(1, 1))
    with pytest.raises(NotABlock, match="gave a float"):
        eadem.least_squares(eadem.Joint({"a": Given(lambda w: 1.0, [0.0])}))
    with pytest.raises(KeyError, match="no block 'b'"):
        eadem.Joint({"a": Given(lambda w: w, [0.0])})["b"]


def test_float32_is_refused():
    with pytest.raises(Unsupported, match=r"'w' is float32.*\.double\(\)"):
        eadem.least_squares(Given(lambda w: w, [0.0]).float())
    with pytest.raises(SolverError, match=r"float32.*float64"):
        eadem.least_squares(Given(lambda w: w.float(), [0.0]))


def test_nothing_to_fit():
    with pytest.raises(SolverError, match="frozen"):
        eadem.least_squares(Given(lambda w: w, [0.0]).requires_grad_(False))


def test_a_start_that_is_not_finite_names_block_and_place():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    good = Given(lambda w: w * x, [1.0])
    bad = Given(lambda w: (x + w).log(), [0.6])
    with pytest.raises(SolverError, match="'bad' is not finite at place 0"):
        eadem.least_squares(eadem.Joint({"good": good, "bad": bad}))


def test_steps_out_of_the_domain_are_refused_and_the_fit_goes_on():
    x = torch.linspace(1, 2, 9, dtype=torch.float64)
    model = eadem.Joint({"a": Given(lambda w: (x * w).log() - (x * 1e-3).log(), [50.0])})
    fit = eadem.least_squares(model)  # Gauss–Newton leads to w < 0 at once
    assert fit.converged
    assert float(fit.values["a.w"]) == pytest.approx(1e-3)


def test_a_wall_on_the_way_is_named_and_the_best_kept():
    x = torch.linspace(1, 2, 9, dtype=torch.float64)

    def wall(w):
        return torch.where(w < 3.0, torch.nan, w * x)

    model = eadem.Joint({"walled": Given(wall, [5.0])})
    fit = eadem.least_squares(model)
    assert not fit.converged
    assert "not finite" in fit.message
    assert "walled, residual 0" in fit.message
    assert fit.message in fit.notes
    assert float(fit.values["walled.w"]) == pytest.approx(3.0, abs=1e-6)
    assert model.walled.w.item() == float(fit.values["walled.w"])


def test_a_derivative_that_is_not_finite_is_named():
    fit = eadem.least_squares(eadem.Joint({"root": Given(lambda w: w.sqrt() + 1, [0.0])}))
    assert not fit.converged
    assert "derivative of residual 0 of root" in fit.message


class Wrong(torch.autograd.Function):
    """Says that its slope is the opposite of what it is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w):
        return w * 1.0

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad


def test_a_wrong_derivative_stalls():
    fit = eadem.least_squares(Given(lambda w: Wrong.apply(w) - double([1.0, 2.0]), [5.0, 5.0]))
    assert not fit.converged
    assert "stalled" in fit.message
    torch.testing.assert_close(fit.values["w"], double([5.0, 5.0]))


def test_too_few_iterations():
    data = decays([(3.0, 0.7, 0.1)], (30,))[0]
    fit = eadem.least_squares(Decay(*data), max_iterations=2)
    assert not fit.converged
    assert fit.message == "stopped after 2 iterations"
    assert fit.history[-1] < fit.history[0]


def test_what_the_data_do_not_determine_is_named_and_left():
    x = torch.linspace(0, 1, 8, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    y = 3 * x + 0.01 * torch.randn(8, dtype=torch.float64, generator=g)
    model = Given(lambda w: y - (w[0] + 2 * w[1]) * x - w[2], [1.0, 4.0, 0.0, 7.0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = eadem.least_squares(model)
    text = " ".join(str(w.message) for w in caught if w.category is RankWarning)
    assert "w[0] − 0.5·w[1]" in text or "w[1] − 2·w[0]" in text
    assert "w[3]" in text
    assert fit.converged
    assert (fit.free, fit.dof) == (2, 6)
    error = fit.stderr["w"]
    assert torch.isinf(error).tolist() == [True, True, False, True]
    assert float(fit.values["w"][3]) == 7.0
    alone = eadem.least_squares(Given(lambda w: y - w[0] * x - w[1], [0.0, 0.0]))
    assert float(error[2]) == pytest.approx(float(alone.stderr["w"][1]), rel=1e-9)
    assert math.isinf(fit.covariance("w")[0, 0])
    assert fit.covariance("w[2]").item() == pytest.approx(float(error[2]) ** 2)


def test_a_near_degeneracy_is_a_note():
    x = torch.linspace(0, 1, 20, dtype=torch.float64)
    y = torch.sin(3 * x)
    fit = eadem.least_squares(
        Given(lambda w: y - w[0] * x - w[1] * (x + 1e-7 * x**2), [1.0, 1.0])
    )
    assert any(n.startswith("nearly degenerate") and "w[1]" in n for n in fit.notes)
    assert bool(torch.isfinite(fit.stderr["w"]).all())


def test_degeneracy_of_a_large_fit_is_found_without_its_dense_matrix(monkeypatch):
    data = decays([(3.0, 0.7, 0.0)] * 12, [12] * 12)  # more than are looked for at first

    class Double(Decay):
        def residual(self):
            return self.y - (self.height + self.floor) * torch.exp(-self.rate * self.x)

    model = eadem.Joint({f"d{i}": Double(*d) for i, d in enumerate(data)})
    eadem.tie(model, "*.rate")
    monkeypatch.setattr("eadem.fits._rank.DENSE", 4)
    with pytest.warns(RankWarning, match=r"d\d.(height|floor) − 1·d\d.(height|floor)|more"):
        fit = eadem.least_squares(model)
    assert fit.free == 13
    assert math.isfinite(float(fit.stderr["d0.rate"]))
    assert math.isinf(float(fit.stderr["d3.height"]))


def test_bounds_are_refused_where_they_mean_nothing():
    model = Given(lambda w: w, [1.0, 2.0])
    with pytest.raises(NoSuchSite):
        eadem.least_squares(model, bounds={"v": (0, 1)})
    with pytest.raises(TieConflict, match="no value for"):
        eadem.least_squares(model, bounds={"w": (2, 1)})
    eadem.tie(model, "w", via=eadem.Positive())
    with pytest.raises(Unsupported, match="non-linear"):
        eadem.least_squares(model, bounds={"w": (0, 1)})


def test_a_covariance_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("eadem.fits.fit.DENSE_LIMIT", 1)
    fit = eadem.least_squares(Given(lambda w: w - 1.0, [0.0, 0.0]), absolute_sigma=True)
    with pytest.raises(TooLarge, match=r"fit\.covariance\(names\)"):
        fit.covariance()
