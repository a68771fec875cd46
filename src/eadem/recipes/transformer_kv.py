"""What a transformer can share: a grid of patterns on one encoder–decoder.

The network learns to copy, reverse or sort three to five of eight letters, as the first token
of the source says. It has four layers a side, all of whose parameters are in stock modules,
with a module each for queries, keys and values (`k`, `v`). The sequences are drawn: no letter
comes twice, so that each letter written stands at one known place of the source.

Seven patterns are declared on it by `eadem.tie` and `eadem.nn.share_layers`: none; both
embeddings and the classifier; keys and values of adjacent layers; of all layers (as in
multi-layer sharing: Brandon et al., NeurIPS 2024, who share what is computed, too); K = V in
every attention (Kitaev, Kaiser & Levskaya, ICLR 2020, for queries and keys); encoder and
decoder, layer by layer (as in Xia et al., AAAI 2019); and whole blocks (ALBERT: Lan et al.,
ICLR 2020). All begin with the values of one untied network and see the same sequences in the
same order, for as many steps of Adam; parameters differ, operations do not. Measured: free
values; bytes of the distinct tensors that writing one sequence keeps; loss, accuracy and
alignment on other sequences (how often the maximum of cross-attention is at the known place, in
the head where it is most often on yet others); tokens per second of CPU time.

Claim C25, in three parts, settled before any full run, over 3 repeats with their own start and
sequences. *Fewer parameters*: every pattern has fewer than none, and what is cached is as
counted: K = V half of it, keys and values of the source once for all layers or for each pair
where those share, no less where encoder and decoder do. *A shared space*: with keys and values
shared between encoder and decoder, alignment and the accuracy of copying are higher than with
none, each by more than two standard errors of the paired difference. *Loss*: the mean test loss
of every pattern that shares keys or values is above that of none. The last two are not asked of
a quick run, which is too short to learn.

The evidence of the ties at the tied fit, on fresh sequences: Chen and Qin's mean test of every
site, Holm's correction, rejected at 1 %. Then the four sites blamed most where all layers share
keys and values are relaxed (shared + rank 4), beside the four blamed least and the tied
network, each trained on for as long. Expected run time: 3 minutes, 15 s when quick.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

import eadem
from eadem.nn import share_layers
from eadem.recipes import Context
from eadem.recipes._sequences import (
    DEPTH,
    LONGEST,
    Transformer,
    batch,
    cached,
)
from eadem.recipes._training import Advance, concurrently, one_thread_count, seeded
from eadem.recipes._transformer_kv_claims import claim
from eadem.recipes._transformer_kv_measures import (
    FULL,
    QUICK,
    Sizes,
    measured,
    relaxed,
    speeds,
    trained,
    verdict,
)
from eadem.recipes._transformer_kv_page import report, table
from eadem.report import page

__all__ = ["PATTERNS", "report", "run", "share"]

ATTENTIONS = ("encoder.{}.attn", "decoder.{}.attn", "decoder.{}.cross")
KEYS_AND_VALUES = {"encoder": ("attn.k", "attn.v"),
                   "decoder": ("attn.k", "attn.v", "cross.k", "cross.v")}  # fmt: skip


PATTERNS = ("none", "embedding", "adjacent", "all", "k=v", "encoder-decoder", "blocks")


def share(model: nn.Module, pattern: str) -> None:
    """Declare one of PATTERNS on the network."""
    if pattern == "embedding":  # one letter, one vector: read on both sides, and written
        eadem.tie(model, "source.weight", "target.weight", "head.weight")
    elif pattern in ("adjacent", "all"):  # keys and values of two neighbours, or of all layers
        for side, parts in KEYS_AND_VALUES.items():
            share_layers(model, f"{side}.*", *parts, every=2 if pattern == "adjacent" else None)
    elif pattern == "k=v":
        for name in (a.format(i) for i in range(DEPTH) for a in ATTENTIONS):
            eadem.tie(model, f"{name}.k.weight", f"{name}.v.weight")
    elif pattern == "encoder-decoder":  # in layers of one number
        for i, part in product(range(DEPTH), "kv"):
            eadem.tie(model, *(f"{a.format(i)}.{part}.weight" for a in ATTENTIONS))
    elif pattern == "blocks":  # one layer for the encoder, used again, and one for the decoder
        share_layers(model, "encoder.*")
        share_layers(model, "decoder.*")


def built(name: str, width: int, seed: int = 0) -> Transformer:
    """The network under a pattern; of one seed all begin alike."""
    with seeded(seed):
        model = Transformer(width, DEPTH)
    share(model, name)
    return model


def _pattern(
    seed: int, name: str, size: Sizes, judged: bool, advance: Advance
) -> dict[str, Any]:
    """One pattern in one repeat, and, where all layers share, what relaxing gives back."""
    model = built(name, size.width, seed)
    generator = torch.Generator().manual_seed(seed)
    other, test = (batch(size.tested, generator, LONGEST) for _ in range(2))
    trained(model, generator, size.steps, advance)
    kept = cached(model, test[:1])
    found = measured(model, other, test) | {
        "free": eadem.counts(model).free,
        "tensors": len(kept),
        "bytes": sum(one.numel() * one.element_size() for one in kept),
        "evidence": verdict(model, generator, size.fresh) if judged else None,
    }
    if name == "all":
        blamed = found["evidence"]["sites"]
        found |= relaxed(model, blamed, generator, size.more, (other, test), advance)
    return found


def run(context: Context) -> None:
    """Train the grid; leave metrics and a page."""
    page.ready()
    size = QUICK if context.quick else FULL
    seeds = [1000 * context.seed + r for r in range(size.repeats)]
    keys = [(name, seed) for seed in seeds for name in PATTERNS]
    jobs = [
        partial(_pattern, s, n, size, n == "all" or (n != "none" and s == seeds[0]))
        for n, s in keys
    ]
    total = len(keys) * size.steps + 3 * len(seeds) * size.more
    with one_thread_count(), context.stage("steps", total) as advance:
        speed = speeds({n: built(n, size.width) for n in PATTERNS}, size.rounds)
        done = concurrently(jobs, advance)
    grid: dict[str, list[Any]] = {name: [] for name in PATTERNS}
    for (name, _), one in zip(keys, done, strict=True):
        grid[name].append(one)
    claim(context, grid)
    context.write_metrics(
        {"steps": size.steps, "more": size.more, "patterns": grid, "tokens_per_second": speed}
    )
    report(context.out)
    context.say(table(context.out))
