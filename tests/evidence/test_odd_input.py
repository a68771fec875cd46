"""What is odd but legal, and what is refused: empty batches, fixed values, no observation."""

import pickle

import pytest
import torch
from torch import nn

import eadem
from eadem import evidence
from eadem.errors import EademError
from eadem.evidence import EvidenceError


class Pair(nn.Module):
    """Two means of n values."""

    def __init__(self, n=2, **kind):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(n, **kind)) for _ in range(2))


def pair(n=2, **kind):
    model = Pair(n, **kind)
    eadem.tie(model, "a", "b")
    return model


def density(model, x):
    """Unit normal, (n, 2, values)."""
    return -0.5 * (x - torch.stack([model.a, model.b])).square().sum((1, 2))


def means(model, x):
    return torch.stack([model.a, model.b]).expand(len(x), 2, -1)


@pytest.fixture
def seen():
    torch.manual_seed(0)
    return torch.randn(12, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize("information", ["observed", "outer", means])
def test_an_empty_batch_among_others_says_nothing(seen, information):
    whole = evidence.score_test(pair(), density, seen, information=information)
    cut = evidence.score_test(
        pair(), density, [seen[:5], seen[:0], seen[5:]], information=information
    )
    assert cut.statistic == pytest.approx(whole.statistic, rel=1e-12)
    assert cut.robust.statistic == pytest.approx(whole.robust.statistic, rel=1e-12)


def test_a_density_that_one_batch_has_no_parameter_in_counts_as_flat(seen):
    def partly(model, batch):
        x, used = batch
        return density(model, x) if used else torch.zeros(len(x), dtype=torch.float64)

    found = evidence.score_test(pair(), partly, [(seen, True), (seen, False)])
    alone = evidence.score_test(pair(), density, seen)
    assert found.statistic == pytest.approx(alone.statistic, rel=1e-12)
    assert found.robust.statistic == pytest.approx(alone.robust.statistic, rel=1e-12)


def test_a_tie_that_fixes_everything_is_tested_against_nothing_free(seen):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2))
    eadem.tie(model, "w", via=eadem.Fixed(torch.zeros(2)))
    x = seen[:, 0]
    found = evidence.score_test(model, lambda m, x: -0.5 * (x - m.w).square().sum(1), x)
    assert found.df == 2
    assert found.statistic == pytest.approx(len(x) * float(x.mean(0).square().sum()), rel=1e-12)


def test_a_score_test_is_pickled_with_its_table(seen):
    found = evidence.score_test(pair(), density, seen)
    again = pickle.loads(pickle.dumps(found))
    assert str(again.table()) == str(found.table())
    assert again.again("a").statistic == found.again("a").statistic


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda m, x: evidence.score_test(m, density, x, 3), "release=3; name sites"),
        (lambda m, x: evidence.score_test(m, density, x).again(3), "release=3; name sites"),
        (lambda m, x: evidence.score_test(m, density, x, x[0] * torch.nan), "one row for each"),
        (
            lambda m, x: evidence.score_test(m, density, x, torch.full((4, 1), torch.nan)),
            "`release` is not finite",
        ),
        (
            lambda m, x: evidence.score_test(m, density, x, cluster="ab"),
            "number of its cluster",
        ),
        (lambda m, x: evidence.score_test(m, density, x[:0]), "holds no observation"),
        (lambda m, x: evidence.score_test(nn.ReLU(), density, x), "no values that data"),
        (lambda m, x: evidence.score_test(pair(0), density, x), "no values that data"),
        (lambda m, x: evidence.score_test(3, density, x), r"nn\.Module"),
        (lambda m, x: evidence.score_test(m.to("meta"), density, x), "meta device"),
        (
            lambda m, x: evidence.score_test(m, density, x, information=lambda m, x: None),
            "gave a NoneType",
        ),
        (lambda m, x: evidence.wald_test(m, pair().to("meta"), density, x), "meta device"),
    ],
)
def test_what_a_score_test_cannot_be_made_of_is_said(seen, asked, said):
    with pytest.raises(EademError, match=said):
        asked(pair(), seen)


def test_the_free_values_of_a_model_without_parameters_are_none():
    assert eadem.bind.free_vector(nn.ReLU()).shape == (0,)
    with pytest.raises(EvidenceError, match="no values"):
        evidence.example_gradients(nn.ReLU(), density, torch.zeros(3, 2, 2))
