"""The size of the tests on few draws, seeds fixed; benchmarks/bench_evidence.py has many."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

HERE = Path(__file__).resolve()
BENCH = HERE.parents[2] / "benchmarks" / "bench_evidence.py"
spec = importlib.util.spec_from_file_location("bench_evidence", BENCH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

DRAWS = 40


@pytest.mark.parametrize("case", [bench.regression, bench.network, bench.clusters])
def test_p_values_at_a_true_tie_are_uniform(case):
    draws = [case(torch.Generator().manual_seed(10_000 + s)) for s in range(DRAWS)]
    for name in draws[0]:
        values = np.array([d[name] for d in draws])
        if case is bench.clusters and name == "plain":
            assert (values < 0.05).mean() > 0.5  # what `cluster` is for
        else:
            assert stats.kstest(values, "uniform").pvalue > 1e-3, name
            assert (values < 0.05).sum() <= stats.binom.isf(1e-4, DRAWS, 0.05)


def test_the_benchmark_reports_a_share_of_rejections():
    def case(generator):
        return {"": float(torch.rand((), generator=generator))}

    share = bench.share(case, 50)[""]
    seen = [
        float(torch.rand((), generator=torch.Generator().manual_seed(s))) for s in range(50)
    ]
    assert share == np.mean(np.array(seen) < 0.05)


@pytest.mark.parametrize(("case", "draws"), [(bench.regression, 40), (bench.network, 20)])
def test_the_power_is_that_of_a_non_central_chi_square(case, draws):
    rejected = bench.share(lambda g: case(g, 10.0), draws)["plain"]
    wanted = float(stats.ncx2.sf(stats.chi2.isf(0.05, 4), 4, 10.0))
    assert abs(rejected - wanted) < 3.5 * (wanted * (1 - wanted) / draws) ** 0.5
