"""A part of a tied model that reads values which another part holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.bind import resolved, whole_vector
from eadem.errors import Unsupported
from eadem.hmm import CategoricalHMM


class Line(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.x = torch.arange(5, dtype=torch.float64)
        self.y = 2 * self.x + shift

    def residual(self):
        return self.slope * self.x - self.y


def test_a_fit_of_a_part_says_where_its_values_are():
    joint = eadem.Joint({"a": Line(0.0), "b": Line(1.0)})
    eadem.tie(joint, "*.slope")
    part = eadem.Joint({"b": joint["b"]})
    with pytest.raises(Unsupported, match=r"values of b\.slope are held by another part"):
        eadem.least_squares(part)
    with pytest.raises(Unsupported, match="twin of this part"):
        eadem.score_test(part, lambda m, x: -((m["b"].slope - x) ** 2), torch.ones(3))
    alone = eadem.Joint({"b": eadem.twin(joint["b"])})
    fit = eadem.least_squares(alone)
    assert fit.chi2 < eadem.least_squares(joint).chi2
    assert whole_vector(joint, resolved(joint)).shape == (1,)


def test_a_hidden_markov_model_that_is_a_part():
    whole = nn.ModuleDict({k: CategoricalHMM(2, n_features=3, random_state=0) for k in "ab"})
    eadem.tie(whole, "*.emissionprob")
    symbols = np.random.default_rng(0).integers(0, 3, (40, 1))
    whole["a"].fit(symbols)
    with pytest.raises(Unsupported, match="emissionprob are held by another part"):
        whole["b"].fit(symbols)
