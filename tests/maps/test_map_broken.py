"""check_map finds what is wrong with a wrong map, and says which law, map and seed."""

import pytest
import torch

from eadem.maps import LinearMap, Map, Positive, Same
from eadem.maps.index import Index, IndexMap
from eadem.maps.nonlinear import Diagonal
from eadem.testing import check_map


class Sums(LinearMap):
    def forward(self, theta):
        return theta.cumsum(-1)


class WrongAdjoint(Sums):
    def adjoint(self, grad):
        return grad.cumsum(-1)


class SlightlyWrongAdjoint(Sums):
    def adjoint(self, grad):
        return super().adjoint(grad) * (1 + 1e-9)


class WrongRank(Sums):
    @property
    def rank(self):
        return 2


class WrongGram(Sums):
    def gram(self):
        return torch.eye(3, dtype=torch.float64)


class WrongLift(Sums):
    def lift(self, values):
        return self.adjoint(values)


class NoLift(Sums):
    def lift(self, values):
        raise RuntimeError("not today")


class NotLinear(LinearMap):
    def forward(self, theta):
        return theta + 1.0


class HiddenOffset(Sums):
    def expand(self, theta):
        return self.forward(theta) + 1.0


class WrongShape(LinearMap):
    def forward(self, theta):
        return theta[:-1]


class Widens(LinearMap):
    def forward(self, theta):
        return theta.to(torch.float64)


class Detached(LinearMap):
    def forward(self, theta):
        return 2.0 * theta - theta.detach()

    def adjoint(self, grad):
        return grad


class WrongIndex(IndexMap):
    def _index(self):
        return Index(torch.tensor([0, 1, 1]), 3)

    def forward(self, theta):
        return theta


class WrongView(Same):
    def forward(self, theta):
        return theta * 2.0


class WrongDerivative(Positive):
    def linearize(self, theta):
        return Diagonal(torch.ones_like(theta)).bind(self.out_shape)


class WrongInverse(Positive):
    def lift(self, values):
        return values.log()


class Forgetful(LinearMap):
    def __init__(self, factor=1.0):
        super().__post_init__()
        object.__setattr__(self, "factor", factor)

    def forward(self, theta):
        return self.factor * theta


class KeepsInferenceTensors(LinearMap):
    def forward(self, theta):
        if "kept" not in self.__dict__:
            object.__setattr__(self, "kept", torch.full((3,), 2.0, dtype=torch.float64))
        return theta * self.kept.to(theta.dtype)


@pytest.mark.parametrize(
    ("phi", "law"),
    [
        (WrongAdjoint(), "adjoint"),
        (SlightlyWrongAdjoint(), "adjoint"),
        (WrongRank(), "rank and matrix"),
        (WrongGram(), "rank and matrix"),
        (WrongLift(), "lift"),
        (NoLift(), "shapes"),
        (NotLinear(), "linearity"),
        (HiddenOffset(), "offset"),
        (WrongShape(), "shapes"),
        (Widens(), "shapes"),
        (Detached(), "gradients"),
        (WrongIndex(), "index and view"),
        (WrongView(), "index and view"),
        (WrongDerivative(), "linearization"),
        (WrongInverse(), "inversion"),
        (Forgetful(2.0), "copies"),
        (KeepsInferenceTensors(), "first use"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_a_broken_map_is_caught(phi, law):
    with pytest.raises(AssertionError, match=f"breaks the law of {law}") as caught:
        check_map(phi, (3,), seed=5)
    message = str(caught.value)
    assert type(phi).__name__ in message
    assert "seed 5" in message


def test_the_violation_has_a_size():
    with pytest.raises(AssertionError, match=r"off by \d.*allowed 1e-05"):
        check_map(WrongAdjoint(), (3,))


def test_what_runs_is_a_map():
    check_map(Sums(), (3,))
    assert issubclass(Sums, Map)
