"""Bias and variance of a tie that is right, nearly right, and wrong.

Signals are those of MNIST-1D (package mnist1d, Apache-2.0; Greydanus and Kobak, ICML 2024):
synthetic, 40 samples, drawn by its `make_dataset` at the published settings.

*Linear part.* A stock `nn.Linear(40, 36)` is to learn y = W x + noise (standard deviation
0.5; the power of W x is 1) by least squares from n signals, under three plans: *connected*,
1,440 free values; *local*, a window of 5 at each of 36 places, 180; *shared*, one window, 5.
The world decides whether the last tie is right: W is one filter at all places (*right*); a
filter that drifts along the signal (*approximate*: a sine of 0.25 of its size); or the right
world with the pixels of x shuffled (*wrong*). Training sets and noise are drawn anew in each
of 200 repeats (20 when quick); the error W̃ − W, in mean squared output over all signals, is
split into bias² and variance without bias of its own (U-statistics), with jackknife standard
errors. The closed form is that of `eadem.theory.observations_needed`. The evidence is the score
test of the shared filter, given the windows, in every world.

*Networks.* The three convolutions of the MNIST-1D benchmark, shared (stock `nn.Conv1d`), and
untied from the same start (`eadem.nn.LocallyConnected1d.from_conv`); an MLP and a logistic
regression stand beside them. Each is trained on 4 disjoint training sets of 4,000 signals,
pixels in order and shuffled, and the two on 1,000 of each too; equal data and steps for all.
Their probabilities' squared error (Brier) is split in the same way; its bias² holds what no
model can know. Published test accuracies in %: logistic 32, MLP 68, CNN 94; shuffled MLP 68,
CNN 56.

Claim C09, in five parts. Steps and rate of the networks, noise and drift were settled at seed
77. Expected run time: 5 minutes on two cores, 20 s when quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import free_vector, resolved
from eadem.evidence import ScoreResult, score_statistic
from eadem.recipes import Context
from eadem.recipes._bias_variance_nets import MODELS, trained_all
from eadem.recipes._bias_variance_page import report, table
from eadem.recipes._data import Package
from eadem.recipes._decomposition import Split, decomposed
from eadem.recipes._training import one_thread_count
from eadem.report.page import ready

__all__ = ["World", "fitted", "plans", "report", "run", "signals", "verdict", "world"]

WIDTH, TAPS, NOISE, DRIFT = 40, 5, 0.5, 0.25
PLACES = WIDTH - TAPS + 1
FILTER, TURN = (1.0, 2.0, 0.0, -2.0, -1.0), (1.0, -1.0, 0.0, -1.0, 1.0)
WORLDS = ("right", "approximate", "wrong")
SIZES = (60, 120, 240, 480, 960)
QUICK_SIZES = (60, 240, 960)
EVIDENCE, LEVEL = 240, 0.05
#: Features of one output's regression under each plan, and how often a signal uses them.
FEATURES = {"connected": (WIDTH, 1), "local": (TAPS, 1), "shared": (TAPS, PLACES)}
#: Predicates: standard errors; relative error of the closed form; what "a little" is.
ERRORS, CLOSE, LITTLE, HELP, HURT = 4.0, 0.1, 0.05, 2.0, 5.0
PACKAGE = Package("mnist1d", "≥0.0.2", "mnist1d", "Apache-2.0", 'install "eadem[recipes]"')


def signals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals (n, 40) float64 and their labels (n,), drawn by the package."""
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.train_split, settings.seed = n, 1.0, seed
    made = make_dataset(settings)
    return torch.as_tensor(made["x"]), torch.as_tensor(made["y"], dtype=torch.int64)


@dataclass(frozen=True)
class World:
    """Signals as a learner sees them (N, 40), and the true W (36, 40)."""

    x: Tensor
    truth: Tensor

    @property
    def root(self) -> Tensor:
        """L of E[xxᵀ] = L Lᵀ: ‖A L‖² is the mean squared output of A."""
        root: Tensor = torch.linalg.cholesky(self.x.T @ self.x / len(self.x))
        return root


def world(name: str, x: Tensor, seed: int) -> World:
    """One of WORLDS."""
    base, turn = (torch.tensor(w, dtype=torch.float64) for w in (FILTER, TURN))
    drift = DRIFT * (name == "approximate") * float(base.norm() / turn.norm())
    phase = 2 * math.pi * torch.arange(PLACES, dtype=torch.float64) / PLACES
    each = base + drift * phase.sin().unsqueeze(1) * turn
    truth = torch.zeros(PLACES, WIDTH, dtype=torch.float64)
    for p in range(PLACES):
        truth[p, p : p + TAPS] = each[p]
    truth /= (x @ truth.T).square().mean().sqrt()
    if name == "wrong":
        order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))
        x, truth = x[:, order], truth[:, order]
    return World(x, truth)


def plans() -> dict[str, Tensor | None]:
    """φ of every plan of `nn.Linear(40, 36)`, (36, 40, free); None where all is free."""
    found: dict[str, Tensor | None] = {"connected": None}
    for name, map_ in (("local", eadem.Local1d), ("shared", eadem.Toeplitz1d)):
        model = nn.Sequential(nn.Linear(WIDTH, PLACES, bias=False, dtype=torch.float64))
        eadem.tie(model, "0.weight", via=map_(WIDTH, TAPS))
        dense = resolved(model).linearize(free_vector(model)).dense()
        found[name] = dense.reshape(PLACES, WIDTH, -1)
    return found


def fitted(phi: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """W (36, 40) of least squares under a plan: the normal equations, pulled back by φ."""
    moment, cross = x.T @ x, y.T @ x
    if phi is None:
        found: Tensor = torch.linalg.solve(moment, cross.T).T
        return found
    free = phi.shape[2]
    flat = phi.reshape(-1, free)
    within = flat.T @ (moment @ phi).reshape(-1, free)
    theta = torch.linalg.solve(within, flat.T @ cross.reshape(-1))
    return torch.mv(flat, theta).reshape(cross.shape)


def drawn(at: World, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A training set: signals, and what W makes of them, with noise."""
    x = at.x[torch.randint(len(at.x), (n,), generator=generator)]
    noise = torch.randn(n, PLACES, dtype=x.dtype, generator=generator)
    return x, x @ at.truth.T + NOISE * noise


def verdict(x: Tensor, y: Tensor, shared: Tensor) -> ScoreResult:
    """The score test of one window for all places, given that each reads a window."""
    windows = x.unfold(1, TAPS, 1)  # (n, places, taps)
    residual = y - x @ shared.T
    variance = residual.square().mean()
    gradient = torch.einsum("np,npk->pk", residual, windows) / variance
    blocks = torch.einsum("npj,npk->pjk", windows, windows) / variance
    tie = eadem.Gather(torch.arange(TAPS).repeat(PLACES)).bind((PLACES * TAPS,))
    return score_statistic(tie, gradient.reshape(-1), torch.block_diag(*blocks))


def closed_form(plan: str, n: int) -> float:
    """The variance, in mean squared output, under a right tie."""
    features, uses = FEATURES[plan]
    return features * NOISE**2 / (n * uses - features - 1)


def linear(context: Context, x: Tensor, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """The decomposition by world, plan and size, and what the score test says."""
    splits: dict[str, dict[str, dict[int, Split]]] = {}
    tests, optima, truths = {}, {}, {}
    phis = plans()
    for number, name in enumerate(context.progress(WORLDS, "worlds")):
        at = world(name, x, context.seed)
        root, truths[name] = at.root / math.sqrt(PLACES), at.truth
        splits[name] = {p: {} for p in phis}
        for n in context.progress(sizes, "sizes"):
            errors: dict[str, list[Tensor]] = {p: [] for p in phis}
            rejected, shared = 0, []
            for repeat in context.progress(range(repeats), "training sets"):
                seed = ((context.seed * 10 + number) * 1000 + repeat) * 1000 + n
                data = drawn(at, n, torch.Generator().manual_seed(seed))
                for plan, phi in phis.items():
                    found = fitted(phi, *data)
                    errors[plan].append(((found - at.truth) @ root).reshape(-1))
                shared.append(found[0, :TAPS])
                if n == EVIDENCE:
                    rejected += verdict(*data, found).pvalue < LEVEL
            for plan, each in errors.items():
                splits[name][plan][n] = decomposed(torch.stack(each))
            if n == EVIDENCE:
                tests[name] = rejected / repeats
        optima[name] = torch.stack(shared).mean(0)
    rows = torch.arange(PLACES)
    every = truths["approximate"].unfold(1, TAPS, 1)[rows, rows]
    return {
        "splits": splits,
        "rejected": tests,
        "truths": list(truths.values()),
        "filters": every,
        "shared": optima,
    }


def run(context: Context) -> None:
    """Both parts; leaves metrics.json and report.html."""
    ready()
    with one_thread_count():
        x, labels = signals(3000 if context.quick else 17_000, context.seed + 42)
        sizes, repeats = (QUICK_SIZES, 20) if context.quick else (SIZES, 200)
        found = linear(context, x, sizes, repeats)
        order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(context.seed))
        networks = trained_all(context, x.float(), labels, order)
    splits: Mapping[str, Any] = found["splits"]
    _linear_claims(context, splits, found)
    _network_claim(context, networks)
    plain = {
        w: {p: {n: asdict(s) for n, s in at.items()} for p, at in of.items()}
        for w, of in splits.items()
    }
    forms = {plan: {n: closed_form(plan, n) for n in sizes} for plan in FEATURES}
    own = {"repeats": repeats, "evidence": EVIDENCE, "closed_form": forms}
    shown = {"signals": x[:3], "labels": labels[:3], "order": order}
    context.write_metrics(found | own | {"splits": plain, "networks": networks, "data": shown})
    report(context.out)
    context.say(table(context.out))


def _linear_claims(context: Context, splits: Mapping[str, Any], found: Any) -> None:
    """Claim C09, the linear part."""
    right, near, wrong = (splits[name] for name in WORLDS)
    least, *_, most = sizes = list(right["shared"])
    worst = max(abs(s.bias) / s.bias_error for s in right["shared"].values())
    cut = max(right["shared"][n].variance / right["local"][n].variance for n in sizes)
    forms = [(s, closed_form(plan, n)) for plan in FEATURES for n, s in right[plan].items()]
    off = max(
        abs(s.variance - form) / (CLOSE * form + ERRORS * s.variance_error) for s, form in forms
    )
    context.claim(
        "C09",
        "A right tie cuts variance at no bias.",
        f"bias² of the shared filter within {ERRORS:g} standard errors of zero at every size; "
        f"its variance ≤ 0.1 of the local layer's; every plan's no further from the closed "
        f"form features·σ²/(N − features − 1), N = n·uses, than {CLOSE:.0%} of it and "
        f"{ERRORS:g} standard errors (the largest share of that allowance is given)",
        {"standard errors": f"≤ {ERRORS:g}", "variance": "≤ 0.1", "closed form": "≤ 1"},
        {"standard errors": worst, "variance": cut, "closed form": off},
        worst <= ERRORS and cut <= 0.1 and off <= 1,
    )
    bias = near["shared"][most]
    gain = near["local"][least].total - near["shared"][least].total
    context.claim(
        "C09",
        "An approximate tie costs a little bias, and less than it saves where data are few.",
        f"approximate world: bias² of the shared filter above {ERRORS:g} standard errors and "
        f"≤ {LITTLE:g} of the signal's power, at {most} signals; its error below the "
        f"local layer's at {least}",
        {"bias²": f"≤ {LITTLE:g}", "gain": "> 0"},
        {"bias²": bias.bias, "standard error": bias.bias_error, "gain": gain},
        ERRORS * bias.bias_error < bias.bias <= LITTLE and gain > 0,
    )
    costs = {n: wrong["shared"][n].bias for n in sizes}
    saves = {n: wrong["connected"][n].variance - wrong["shared"][n].variance for n in sizes}
    context.claim(
        "C09",
        "A wrong tie costs more than it saves.",
        "shuffled pixels: bias² of the shared filter above the variance that it saves over the "
        "connected layer, which has no bias, at every size",
        "cost > saving",
        {"cost": costs, "saving": saves},
        all(costs[n] > saves[n] for n in sizes),
    )
    mean = found["filters"].mean(0)
    spread = (found["filters"] - mean).square().sum(1).mean().sqrt()
    apart = float((found["shared"]["approximate"] - mean).norm())
    context.claim(
        "C09",
        "A shared filter under an approximate tie is close to the average of the places' own "
        "optima.",
        f"distance of its mean (at {most} signals) from their average ≤ 1/4 of their root "
        "mean square distance from it",
        "≤ 0.25",
        apart / float(spread),
        apart <= float(spread) / 4,
    )


def _network_claim(context: Context, networks: Mapping[str, Any]) -> None:
    """Claim C09, the networks."""
    mean = {
        w: {m: 100 * sum(at[m]["accuracy"]) / len(at[m]["accuracy"]) for m in MODELS}
        for w, at in networks["largest"].items()
    }
    gain = mean["right"]["shared"] - mean["right"]["local"]
    loss = mean["shuffled"]["local"] - mean["shuffled"]["shared"]
    right, wrong = (networks["largest"][how] for how in ("right", "shuffled"))
    spread = {m: right[m]["split"]["variance"] for m in ("shared", "local")}
    bias = {m: wrong[m]["split"]["bias"] for m in ("shared", "local")}
    context.claim(
        "C09",
        "Networks: sharing over places helps on signals in order, and hurts on shuffled ones.",
        "from the largest training sets: in order, mean test accuracy of the CNN ≥ its untied "
        f"twin's + {HELP:g} points, and its variance below; shuffled, accuracy ≤ the twin's "
        f"− {HURT:g} points, and bias² above",
        {"in order": f"≥ {HELP:g}", "shuffled": f"≥ {HURT:g}"},
        {"in order": gain, "variance": spread, "shuffled": loss, "bias²": bias},
        gain >= HELP
        and loss >= HURT
        and spread["shared"] < spread["local"]
        and bias["shared"] > bias["local"],
    )
