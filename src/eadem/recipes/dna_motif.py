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

import torch

import eadem
from eadem.evidence import Shifts, certify
from eadem.recipes import Context
from eadem.recipes._dna_motif_page import NAMES, report, table
from eadem.recipes._motif import (
    FILTERS,
    MOTIF,
    Classifier,
    Read,
    Windows,
    genome,
    read_filter,
    reverse_complement,
    scores_of,
    trained,
    turned_by,
    windows,
)
from eadem.recipes._page import mean
from eadem.recipes._training import one_thread_count, seeded
from eadem.recipes._verification import area
from eadem.report import page

__all__ = ["Windows", "classifier", "genome", "report", "reverse_complement", "run", "windows"]

SIZES, TEST = (100, 200, 400, 800), 1000
FIRST = 0.6
EXACT, BEHIND, FOUND = 1e-12, 0.01, 0.8


def classifier(tied: bool, seed: int) -> Classifier:
    """A classifier; tied, its second eight filters are the first eight on the other strand."""
    with seeded(seed):
        model = Classifier(2 * FILTERS if tied else FILTERS)
    if tied:
        own, other = f"[:{FILTERS}]", f"[{FILTERS}:]"
        with eadem.plan(model):
            strands = {own: eadem.Same(), other: eadem.Flip(-2, -1)}
            eadem.tie(model, {f"filters.weight{at}": via for at, via in strands.items()})
            eadem.tie(model, f"filters.bias{own}", f"filters.bias{other}")
            eadem.tie(model, f"head.weight[:, :{FILTERS}]", f"head.weight[:, {FILTERS}:]")
    return model


def run(context: Context) -> None:
    """Train at every size, certify, and leave metrics.json and report.html."""
    page.ready()
    sizes, repeats = ((400,), 2) if context.quick else (SIZES, 10)
    sequence, cut = genome(), int(FIRST * len(genome()))
    aucs: dict[str, dict[int, list[float]]] = {k: {n: [] for n in sizes} for k in NAMES}
    reads: list[Read] = []
    with one_thread_count(), context.stage("training", 2 * repeats * len(sizes)) as advance:
        for repeat in range(repeats):
            seed = 1000 * context.seed + repeat
            generator = torch.Generator().manual_seed(seed)
            test = windows(sequence[cut:], TEST, generator)
            for n in sizes:
                train = windows(sequence[:cut], n, generator)
                tied, plain = (trained(classifier(t, seed), train, seed) for t in (True, False))
                advance(2)
                for name, scores in scores_of(tied, plain, test.x).items():
                    aucs[name][n].append(area(scores, test.y == 1))
            reads.append(read_filter(tied, test))
        x, last = test.x.double(), {"tied": tied.double(), "plain": plain.double()}
        shifted = {
            k: certify(m, Shifts((-1,)), x[:20], kind="invariance") for k, m in last.items()
        }
        moved = {name: found.relative for name, found in shifted.items()}
        turned = {name: turned_by(model, x) for name, model in last.items()}
        counts = {"tied": eadem.counts(tied), "plain": eadem.counts(plain)}
    _claim(context, aucs, reads, moved, turned)
    context.write_metrics(
        {
            "data": {"source": "NC_001422", "bases": len(sequence), "motif": MOTIF},
            "auc": aucs,
            "counts": {k: {"free": c.free, "expanded": c.expanded} for k, c in counts.items()},
            "shifted": moved,
            "other_strand": turned,
            "consensus": [r.consensus for r in reads],
            "logo": reads[0].counts,
        }
        | {"repeats": repeats}
    )
    report(context.out)
    context.say(table(aucs))


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
