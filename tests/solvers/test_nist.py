"""NIST's 27 certified problems of nonlinear regression, each from both of its starts."""

import math

import nist
import numpy as np
import pytest
import torch
from torch import nn

import eadem

#: Certified digits that every parameter and standard deviation must agree to.
DIGITS = 6
#: Its residual is rounding noise in float64 (χ² = 1.4e-25), so its standard deviations are too.
NOISE = "Lanczos1"


class Curve(nn.Module):
    def __init__(self, data, start):
        super().__init__()
        self.x, self.y = torch.tensor(data.x), torch.tensor(data.y)
        self.model = nist.MODELS[data.name]
        self.b = nn.Parameter(torch.tensor(data.starts[start], dtype=torch.float64))

    def residual(self):
        return self.y - self.model(torch, self.x, self.b)


@pytest.mark.parametrize("start", [0, 1], ids=["start1", "start2"])
@pytest.mark.parametrize("name", nist.MODELS)
def test_certified(name, start):
    data = nist.read(name)
    fit = eadem.least_squares(Curve(data, start))
    assert fit.converged or name == NOISE, fit.message
    assert nist.digits(fit.values["b"].numpy(), data.values) >= DIGITS
    assert fit.dof == len(data.y) - len(data.values)
    if name != NOISE:
        assert nist.digits(fit.stderr["b"].numpy(), data.deviations) >= DIGITS
        assert math.isclose(fit.chi2, data.chi2, rel_tol=1e-9)


def test_the_files_are_read_as_their_headers_say():
    data = nist.read("Thurber")
    assert (len(data.y), len(data.values)) == (37, 7)
    np.testing.assert_allclose(data.starts[0], [1000, 1000, 400, 40, 0.7, 0.3, 0.03])
    assert data.chi2 == 5.6427082397e03
