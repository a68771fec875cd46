"""The arrow against dense algebra: steps, solves, covariances, any shape of sharing."""

import pytest
import torch

from eadem.solvers.arrow import Arrow, Part


def normal(generator, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def random_arrow(seed, blocks):
    """Parts with their dense J (m, n) and r. `blocks`: (N, m, own, shared of how many)."""
    generator = torch.Generator().manual_seed(seed)
    pool = max(of for *_, of in blocks)
    n = pool
    parts, rows, right = [], [], []
    total = pool + sum(count * own for count, _, own, _, _ in blocks)
    for count, m, own, shared, of in blocks:
        at_own = n + torch.arange(count * own).reshape(count, own)
        n += count * own
        at_shared = torch.stack(
            [torch.randperm(of, generator=generator)[:shared] for _ in range(count)]
        )
        a, b, r = (normal(generator, count, m, k) for k in (own, shared, 1))
        parts.append(Part(at_own, at_shared, a, b, r.squeeze(-1)))
        for i in range(count):
            wide = torch.zeros(m, total, dtype=torch.float64)
            wide[:, at_own[i]] = a[i]
            wide[:, at_shared[i]] = b[i]
            rows.append(wide)
            right.append(r[i, :, 0])
    return Arrow(parts, total), torch.cat(rows), torch.cat(right)


CASES = {
    "one block": [(1, 9, 4, 0, 0)],
    "all share": [(5, 7, 3, 2, 2)],
    "some share": [(6, 7, 2, 2, 4), (3, 5, 0, 3, 4), (1, 20, 6, 4, 4)],
    "fewer rows than columns": [(8, 2, 3, 1, 3)],
    "nothing of its own": [(4, 6, 0, 3, 3)],
}


@pytest.fixture(params=CASES, ids=list(CASES))
def problem(request):
    return random_arrow(3, CASES[request.param])


def test_what_is_read_off(problem):
    arrow, j, r = problem
    torch.testing.assert_close(arrow.norms, j.norm(dim=0))
    torch.testing.assert_close(arrow.gradient, j.T @ r)
    step = torch.linspace(-1, 2, arrow.n, dtype=torch.float64)
    assert arrow.along(step) == pytest.approx(float((j @ step).square().sum()), rel=1e-12)
    values = torch.linalg.svdvals(j)
    rows = arrow.triangular_rows()
    torch.testing.assert_close(torch.linalg.svdvals(rows)[: len(values)], values)


def test_damped_steps_and_solves(problem):
    arrow, j, r = problem
    damping = torch.linspace(0.5, 2, arrow.n, dtype=torch.float64)
    held = torch.zeros(arrow.n, dtype=torch.bool)
    held[::4] = True
    for mask in (None, held):
        kept = j if mask is None else j * ~mask
        stacked = torch.cat([kept, torch.diag(damping)])
        target = torch.cat([-r, torch.zeros(arrow.n, dtype=torch.float64)])
        want = torch.linalg.lstsq(stacked, target.unsqueeze(1)).solution.squeeze(1)
        factor = arrow.factor(damping, mask)
        torch.testing.assert_close(factor.step, want)
        left = float(r @ r) - float((stacked @ want - target).square().sum())
        assert factor.decrease == pytest.approx(left, rel=1e-10)
        d = damping if mask is None else torch.where(mask, 1.0, damping)
        matrix = kept.T @ kept + torch.diag(d**2)
        right = torch.stack([torch.ones(arrow.n), torch.arange(arrow.n)], 1).double()
        torch.testing.assert_close(factor.solve(right), torch.linalg.solve(matrix, right))


def test_covariances(problem):
    arrow, j, _ = problem
    damping = torch.full((arrow.n,), 0.3, dtype=torch.float64)
    inverse = torch.linalg.inv(j.T @ j + torch.diag(damping**2))
    factor = arrow.factor(damping)
    for i, part in enumerate(arrow.parts):
        at = torch.cat([part.at_own, part.at_shared], 1)
        want = torch.stack([inverse[a][:, a] for a in at])
        torch.testing.assert_close(factor.block_covariances(i), want)


def test_rows_that_are_too_many_at_once_are_reduced_in_turn(monkeypatch):
    monkeypatch.setattr("eadem.solvers.arrow.ROWS", 40)
    arrow, j, r = random_arrow(5, CASES["some share"])
    want = torch.linalg.lstsq(j, -r.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(arrow.factor(torch.zeros(arrow.n).double()).step, want)
