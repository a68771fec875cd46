"""A motif in DNA, wherever it stands and on either strand.

GATTACA is planted in windows of 100 bases of a real genome, the bacteriophage φX174 (5,386
bases; GenBank NC_001422), at a random place and on a random strand, where it is read as
TGTAATC. A filter over the one-hot sequence with a global maximum is to say which windows have
it. Training windows are cut from the first 60 % of the genome, test windows from the rest; the
genome itself has neither GATTACA nor TGTAATC in it.

Three classifiers of 369 free values, all of them `nn.Conv1d`, maximum, `nn.Linear`, trained
alike (Adam, 100 passes, weight decay 1e-3):

- *tied*: eight filters and their reverse complements; a filter's weight at (base, place) is its
  partner's at (complement, mirrored place), which in the order ACGT reverses both axes. The
  partners' biases and head weights are equal, so the two strands give one answer;
- *plain*: eight filters, nothing tied;
- *averaged*: the plain classifier's logits on a window and on its reverse complement, averaged,
  which takes as much work as the tied one's.

Claim C26, at 10 repeats (2 at one size when quick), each with its own windows and weights. The
number of filters, the passes and the flanks that are read were settled at other seeds (7000 and
on). Expected run time: 4 minutes, 15 s when quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.evidence import Shifts, certify
from eadem.recipes import Context
from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.recipes._training import one_thread_count, seeded
from eadem.report import chart, numbers, page, terminal
from eadem.report.logo import logo

__all__ = ["Windows", "classifier", "genome", "report", "reverse_complement", "run", "windows"]

BASES = "ACGT"  # reversed, each base is its complement
MOTIF = "GATTACA"
LENGTH, TAPS, FILTERS, FLANK = 100, 11, 8, 6
SIZES, TEST = (100, 200, 400, 800), 1000
PASSES, BATCH = 100, 50
FIRST = 0.6
EXACT, BEHIND, FOUND = 1e-12, 0.01, 0.8
NAMES = {"tied": "tied", "plain": "plain", "averaged": "plain, strands averaged"}


@dataclass(frozen=True)
class Windows:
    """One-hot windows (n, 4, length) and whether each has the motif (n,), float32."""

    x: Tensor
    y: Tensor


def genome() -> Tensor:
    """The genome as numbers of BASES: (5386,) int64."""
    text = resources.files("eadem.data").joinpath("phix174.fa").read_text(encoding="ascii")
    return _numbered("".join(text.split("\n")[1:]))


def _numbered(sequence: str) -> Tensor:
    return torch.tensor([BASES.index(base) for base in sequence])


def reverse_complement(x: Tensor) -> Tensor:
    """One-hot sequences (…, 4, length) as they are read on the other strand."""
    return x.flip(-2, -1)


def windows(sequence: Tensor, n: int, generator: torch.Generator) -> Windows:
    """`n` windows of a sequence; every other one has the motif planted, on either strand."""
    start = torch.randint(len(sequence) - LENGTH + 1, (n,), generator=generator)
    found = sequence[start.unsqueeze(1) + torch.arange(LENGTH)]
    motif = _numbered(MOTIF)
    at = torch.randint(LENGTH - len(motif) + 1, (n,), generator=generator)
    strand = torch.randint(2, (n,), generator=generator)
    for i in range(0, n, 2):
        read = motif if strand[i] else (3 - motif).flip(0)
        found[i, at[i] : at[i] + len(motif)] = read
    x = nn.functional.one_hot(found, 4).to(torch.float32).transpose(1, 2)
    return Windows(x, (torch.arange(n) % 2 == 0).to(torch.float32))


class Classifier(nn.Module):
    """Filters, the maximum of each over all positions, and a weighted sum."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(4, filters, TAPS, padding=TAPS // 2, padding_mode="circular")
        self.head = nn.Linear(filters, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n,)."""
        scores: Tensor = self.head(self.filters(x).amax(-1)).squeeze(-1)
        return scores


def classifier(tied: bool, seed: int) -> Classifier:
    """A classifier; tied, its second eight filters are the first eight on the other strand."""
    with seeded(seed):
        model = Classifier(2 * FILTERS if tied else FILTERS)
    if tied:
        own, other = f"[:{FILTERS}]", f"[{FILTERS}:]"
        with eadem.plan(model):
            eadem.tie(
                model,
                {
                    f"filters.weight{own}": eadem.Same(),
                    f"filters.weight{other}": eadem.Flip(-2, -1),
                },
            )
            eadem.tie(model, f"filters.bias{own}", f"filters.bias{other}")
            eadem.tie(model, f"head.weight[:, :{FILTERS}]", f"head.weight[:, {FILTERS}:]")
    return model


def trained(model: Classifier, data: Windows, seed: int) -> Classifier:
    """The model after PASSES over the windows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(PASSES * max(1, 200 // len(data.y))):
        for rows in torch.randperm(len(data.y), generator=generator).split(BATCH):
            optimizer.zero_grad()
            scores = model(data.x[rows])
            loss = nn.functional.binary_cross_entropy_with_logits(scores, data.y[rows])
            loss.backward()
            optimizer.step()
    return model


def auc(scores: Tensor, y: Tensor) -> float:
    """The chance that a window with the motif scores above one without."""
    with_, without = scores[y == 1], scores[y == 0]
    above = (with_.unsqueeze(1) > without).double() + (
        with_.unsqueeze(1) == without
    ).double() / 2
    return float(above.mean())


@dataclass(frozen=True)
class Read:
    """What a classifier's strongest filter looks for: how often each base stood at each of
    its places, and of FLANK more on either side, where it responded most in windows that have
    the motif.
    """

    counts: Tensor
    consensus: str
    found: bool


@torch.no_grad()
def read_filter(model: Classifier, data: Windows) -> Read:
    """The filter with the largest weight in the head."""
    strongest = int(model.head.weight.reshape(-1).argmax())
    x = data.x[data.y == 1]
    at = model.filters(x)[:, strongest].argmax(-1)
    span = torch.arange(-FLANK - TAPS // 2, FLANK + TAPS // 2 + 1)
    places = (at.unsqueeze(1) + span) % LENGTH
    seen = x.gather(2, places.unsqueeze(1).expand(-1, 4, -1)).sum(0).T  # (places, bases)
    consensus = "".join(BASES[int(row.argmax())] for row in seen)
    other = "".join(BASES[3 - BASES.index(base)] for base in reversed(MOTIF))
    return Read(seen, consensus, MOTIF in consensus or other in consensus)


def run(context: Context) -> None:
    """Train at every size, certify, and leave metrics.json and report.html."""
    page.ready()
    sizes, repeats = ((400,), 2) if context.quick else (SIZES, 10)
    sequence = genome()
    cut = int(FIRST * len(sequence))
    aucs: dict[str, dict[int, list[float]]] = {k: {n: [] for n in sizes} for k in NAMES}
    reads: list[Read] = []
    with one_thread_count(), context.stage("training", 2 * repeats * len(sizes)) as advance:
        for repeat in range(repeats):
            seed = 1000 * context.seed + repeat
            generator = torch.Generator().manual_seed(seed)
            test = windows(sequence[cut:], TEST, generator)
            for n in sizes:
                train = windows(sequence[:cut], n, generator)
                tied = trained(classifier(True, seed), train, seed)
                advance(1)
                plain = trained(classifier(False, seed), train, seed)
                advance(1)
                for name, scores in _scores(tied, plain, test.x).items():
                    aucs[name][n].append(auc(scores, test.y))
            reads.append(read_filter(tied, test))
        x, last = test.x.double(), {"tied": tied.double(), "plain": plain.double()}
        moved = {
            name: certify(model, Shifts((-1,)), x[:20], kind="invariance").relative
            for name, model in last.items()
        }
        turned = {name: _turned(model, x) for name, model in last.items()}
        counts = {"tied": eadem.counts(tied), "plain": eadem.counts(plain)}
    _claim(context, aucs, reads, moved, turned)
    context.write_metrics(
        {
            "data": {"source": "NC_001422", "bases": len(sequence), "motif": MOTIF},
            "repeats": repeats,
            "auc": aucs,
            "counts": {k: {"free": c.free, "expanded": c.expanded} for k, c in counts.items()},
            "shifted": moved,
            "other_strand": turned,
            "consensus": [r.consensus for r in reads],
            "logo": reads[0].counts,
        }
    )
    report(context.out)
    context.say(terminal.grid("Area under the ROC curve", _COLUMNS, _rows(aucs)))


@torch.no_grad()
def _scores(tied: Classifier, plain: Classifier, x: Tensor) -> dict[str, Tensor]:
    other = plain(reverse_complement(x))
    return {"tied": tied(x), "plain": plain(x), "averaged": (plain(x) + other) / 2}


@torch.no_grad()
def _turned(model: Classifier, x: Tensor) -> float:
    """Largest change of a logit from one strand to the other, over the largest logit."""
    scores = model(x)
    return float((model(reverse_complement(x)) - scores).abs().max() / scores.abs().max())


def _claim(
    context: Context,
    aucs: Mapping[str, Mapping[int, list[float]]],
    reads: Sequence[Read],
    moved: Mapping[str, float],
    turned: Mapping[str, float],
) -> None:
    """Claim C26."""
    over = {n: mean(aucs["tied"][n]) - mean(aucs["plain"][n]) for n in aucs["plain"]}
    behind = {n: mean(aucs["tied"][n]) - mean(aucs["averaged"][n]) for n in aucs["plain"]}
    share = sum(r.found for r in reads) / len(reads)
    context.claim(
        "C26",
        "A one-dimensional filter with a global maximum finds a DNA motif wherever it stands; "
        "tied to its reverse complement, on either strand.",
        f"logits change by ≤ {EXACT:g} (relative) under every cyclic shift, and, tied, on the "
        f"other strand; the tied network's strongest filter reads {MOTIF} or its reverse "
        f"complement in ≥ {FOUND:g} of the repeats at the largest size; mean AUC no less than "
        f"plain at any size, and than the averaged strands' less {BEHIND:g}",
        {"shift": f"≤ {EXACT:g}", "strand": f"≤ {EXACT:g}", "reads": f"≥ {FOUND:g}"},
        {
            "shift": max(moved.values()),
            "strand": turned["tied"],
            "strand, plain": turned["plain"],
            "reads": share,
            "AUC over plain": over,
            "AUC over averaged": behind,
        },
        max(moved.values()) <= EXACT
        and turned["tied"] <= EXACT
        and share >= FOUND
        and min(over.values()) >= 0
        and min(behind.values()) >= -BEHIND,
    )


_COLUMNS = ["windows", *NAMES.values(), "tied better than averaged in"]


def _rows(aucs: Mapping[str, Mapping[Any, list[float]]]) -> list[list[str]]:
    found = []
    for n, tied in aucs["tied"].items():
        pairs = list(zip(tied, aucs["averaged"][n], strict=True))
        won = f"{sum(a > b for a, b in pairs)} of {len(pairs)}"
        found.append([str(n), *(f"{mean(aucs[k][n]):.3f}" for k in NAMES), won])
    return found


def _curves(aucs: Mapping[str, Mapping[str, list[float]]]) -> str:
    series = [
        chart.repeated(name, aucs[key], style)
        for style, (key, name) in enumerate(NAMES.items())
    ]
    label = "AUC on windows of the unseen part of the genome: mean, least and greatest"
    ticks = [float(n) for n in aucs["plain"]]
    return chart.chart(
        chart.Chart(label, "training windows", "AUC", series, True, x_ticks=ticks)
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    aucs, counts = metrics["auc"], metrics["counts"]
    sizes = list(aucs["tied"])
    least, largest = sizes[0], sizes[-1]
    untied = mean(aucs["plain"][least])
    caption = (
        f"The tied network's strongest filter, learned from {largest} windows: the bases under "
        f"it where it responded most, and {FLANK} more on either side, in test windows that "
        "have the motif"
    )
    certified = [
        [
            name,
            *(numbers.significant(metrics[key][name]) for key in ("shifted", "other_strand")),
        ]
        for name in ("tied", "plain")
    ]
    whole = page.Page(
        title="A motif, wherever it stands",
        eyebrow="eadem run dna-motif",
        lede=f"{MOTIF} is planted in a virus's genome, on either strand. One tie says that a "
        "filter and its reverse complement are the same filter.",
        facts=[
            (f"{counts[k]['free']} → {counts[k]['expanded']}", f"free values → sites, {k}")
            for k in ("tied", "plain")
        ]
        + [
            (
                f"{mean(aucs['tied'][least]):.3f}",
                f"AUC from {least} windows; {untied:.3f} plain",
            )
        ],
        sections=[
            claims(metrics),
            page.Section(
                "filter",
                "What was learned",
                "In bits, as sequence logos are drawn. On the other strand the motif reads "
                "TGTAATC.",
                [logo(torch.tensor(metrics["logo"]).double().numpy(), BASES, caption)],
            ),
            page.Section(
                "accuracy",
                "What the tie is worth",
                "The untied classifier must learn both strands from the data. Averaging its "
                "answers on both strands makes up for some of that, at twice the work.",
                [_curves(aucs), page.table(_COLUMNS, _rows(aucs), numeric=(1, 2, 3, 4))],
            ),
            page.Section(
                "certificate",
                "What holds exactly",
                "Largest relative change of a logit under all cyclic shifts of a window, and "
                "on its other strand.",
                [page.table(["network", "shifts", "other strand"], certified, numeric=(1, 2))],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
