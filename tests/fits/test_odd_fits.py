"""A fit of odd but legal data, and what it is not given an answer to."""

import math

import pytest
import torch
from curves import Decay, decays, double
from torch import nn

import eadem
from eadem.evidence import EvidenceError
from eadem.fits import callables
from eadem.joint import NotABlock
from eadem.solvers import SolverError


class Offsets(nn.Module):
    """Two values, seen as they are."""

    def __init__(self, *seen):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.seen = double(seen).reshape(-1, 2)

    def residual(self):
        return (self.seen - self.w).reshape(-1)


def joint(sizes=(20, 30)):
    truths = [(3.0, 0.7, 0.1), (5.0, 0.7, 0.2)]
    data = decays(truths, sizes)
    model = eadem.Joint({f"d{i}": Decay(*xy) for i, xy in enumerate(data)})
    eadem.tie(model, "*.rate")
    return model


def test_a_block_without_data_is_fitted_along_and_reported(tmp_path):
    model = joint(sizes=(20, 0))
    eadem.tie(model, "*.height")
    eadem.tie(model, "*.floor")
    fit = eadem.least_squares(model)
    alone = eadem.least_squares(Decay(*decays([(3.0, 0.7, 0.1)], [20])[0]))
    assert fit.chi2 == pytest.approx(alone.chi2, rel=1e-9)
    row = next(b for b in fit.report().blocks if b.name == "d1")
    assert (row.size, row.chi2) == (0, 0.0)
    assert "d1" in str(fit)
    page = fit.report().save(tmp_path / "fit.html").read_text(encoding="utf-8")
    assert "residuals of d0" in page
    assert "residuals of d1" not in page


def test_no_residual_at_all_is_refused():
    with pytest.raises(SolverError, match="has no residual; give it data"):
        eadem.least_squares(joint(sizes=(0, 0)))


@pytest.mark.parametrize("seen", [[(1.0, 2.0)], [(1.0, 2.0)] * 3])
def test_residuals_that_leave_no_variance_are_said_to(seen):
    model = Offsets(*seen)
    fit = eadem.least_squares(model)
    with pytest.raises(EvidenceError, match="absolute_sigma=True"):
        fit.profile("w[0]")
    with pytest.raises(EvidenceError, match="absolute_sigma=True"):
        fit.score_test("w")
    known = eadem.least_squares(model, absolute_sigma=True)
    interval = known.profile("w[0]")
    half = 1.959963984540054 / math.sqrt(len(seen))
    assert interval.low == pytest.approx(1.0 - half, rel=1e-6)
    assert known.score_test("w").df == 0


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_the_level_of_an_interval_is_a_probability(level):
    fit = eadem.least_squares(joint())
    with pytest.raises(SolverError, match=r"between 0 and 1, as 0\.95"):
        fit.profile("d0.rate", level)


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), 1.0, (0.0, 1.0, 2.0), ("a", "b"), ()])
def test_what_is_no_pair_of_bounds_is_refused(bounds):
    model = joint()
    before = eadem.bind.free_vector(model)
    with pytest.raises(SolverError, match=r"give \(low, high\)"):
        eadem.least_squares(model, bounds={"d0.rate": bounds})
    assert torch.equal(eadem.bind.free_vector(model), before)


@pytest.mark.parametrize(
    "given", [{"tolerance": -1.0}, {"tolerance": math.nan}, {"max_iterations": -1}]
)
def test_settings_are_not_negative(given):
    with pytest.raises(SolverError, match="it is 0 or more"):
        eadem.least_squares(joint(), **given)


def test_a_negative_number_of_starts_is_refused():
    with pytest.raises(SolverError, match="starts=-1"):
        eadem.least_squares(joint(), starts=-1)


def test_callables_take_all_trained_values_and_no_fewer():
    model = joint()
    model["d0"].floor.requires_grad_(False)
    made = callables(model)
    n = len(made.start)
    assert made.residual(made.start).shape == (50,)
    for x in (made.start[:1], [*made.start, 0.0], made.start[None]):
        with pytest.raises(eadem.ShapeError, match=f"has {n} trained free values"):
            made.residual(x)
    assert made.jacobian(made.start).shape == (50, n)


def test_a_covariance_of_nothing_and_a_residual_that_is_none_are_said():
    with pytest.raises(eadem.NoSuchSite, match="`names` is empty"):
        eadem.least_squares(joint()).covariance([])
    model = joint()
    model["d0"].residual = lambda: 3.0
    with pytest.raises(NotABlock, match="gave a float, not a tensor"):
        model.residual()
    with pytest.raises(NotABlock, match="with a name"):
        eadem.Joint([Offsets((1.0, 2.0))])


class Root(nn.Module):
    """A residual whose derivative is not finite where it starts."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(double(0.0))

    def residual(self):
        return self.w.sqrt() + torch.ones(1, dtype=self.w.dtype)


def test_a_model_that_is_one_block_is_called_the_model():
    assert "derivative of residual 0 of the model" in eadem.least_squares(Root()).message
    with pytest.raises(SolverError, match="residual of the model is not finite"):
        eadem.least_squares(Root(), bounds={"w": (-2.0, -1.0)})
