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
network, each trained on for as long. Expected run time: 9 minutes, 15 s when quick.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import eadem
from eadem.evidence.score import holm
from eadem.nn import share_layers
from eadem.recipes import Context
from eadem.recipes._sequences import (
    LETTERS,
    LONGEST,
    TASKS,
    Batch,
    Transformer,
    attended,
    batch,
    cached,
    scores,
)
from eadem.recipes._training import Advance, concurrently, one_thread_count, seeded
from eadem.recipes._transformer_kv_page import report, table
from eadem.report import page

__all__ = ["PATTERNS", "report", "run"]

ATTENTIONS = ("encoder.{}.attn", "decoder.{}.attn", "decoder.{}.cross")
KEYS_AND_VALUES = {"encoder": ("attn.k", "attn.v"),
                   "decoder": ("attn.k", "attn.v", "cross.k", "cross.v")}  # fmt: skip
DEPTH, RATE, BATCH, WARMUP = 4, 3e-3, 64, 50
RELAXED, RANK = 4, 4


@dataclass(frozen=True)
class Sizes:
    """Width, steps, repeats, steps after relaxing; sequences to test on; rounds of timing;
    micro-batches of the evidence.
    """

    width: int
    steps: int
    repeats: int
    more: int
    tested: int
    rounds: int
    fresh: int


FULL, QUICK = Sizes(32, 600, 3, 150, 600, 9, 32), Sizes(16, 5, 2, 3, 60, 2, 6)


def nothing(model: nn.Module) -> None:
    """Every site for itself."""


def embedding(model: nn.Module) -> None:
    """One letter, one vector: read by the encoder, by the decoder, and written."""
    eadem.tie(model, "source.weight", "target.weight", "head.weight")


def layers(model: nn.Module, every: int | None = None) -> None:
    """Keys and values of all layers, or of so many neighbours."""
    for side, parts in KEYS_AND_VALUES.items():
        share_layers(model, f"{side}.*", *parts, every=every)


def k_is_v(model: nn.Module) -> None:
    """One tensor for keys and values of each attention."""
    for name in (a.format(i) for i in range(DEPTH) for a in ATTENTIONS):
        eadem.tie(model, f"{name}.k.weight", f"{name}.v.weight")


def encoder_decoder(model: nn.Module) -> None:
    """Keys of both sides, and values of both, in layers of one number."""
    for i in range(DEPTH):
        for part in "kv":
            eadem.tie(model, *(f"{a.format(i)}.{part}.weight" for a in ATTENTIONS))


def blocks(model: nn.Module) -> None:
    """One layer for the encoder, used again, and one for the decoder."""
    share_layers(model, "encoder.*")
    share_layers(model, "decoder.*")


PATTERNS: dict[str, Callable[[nn.Module], None]] = {
    "none": nothing,
    "embedding": embedding,
    "adjacent": partial(layers, every=2),
    "all": layers,
    "k=v": k_is_v,
    "encoder-decoder": encoder_decoder,
    "blocks": blocks,
}
#: Those that share keys or values.
KV = tuple(PATTERNS)[2:]


def tensors(pattern: str) -> int:
    """How many tensors the decoder caches: K and V of what was written and of the source."""
    source = {"adjacent": DEPTH, "all": 2, "blocks": 2}.get(pattern, 2 * DEPTH)
    return 2 * DEPTH if pattern == "k=v" else 2 * DEPTH + source


def nats(model: nn.Module, seen: Batch) -> Tensor:
    """Cross-entropy of every letter (n, length)."""
    return cross_entropy(scores(model, seen).transpose(1, 2), seen.wanted, reduction="none")


def trained(
    model: Transformer, generator: torch.Generator, steps: int, advance: Advance
) -> Transformer:
    """Steps of Adam on fresh sequences, at a rate that rises over the first WARMUP of them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    for _ in range(steps):
        optimizer.zero_grad()
        nats(model, batch(BATCH, generator)).mean().backward()
        optimizer.step()
        rate.step()
        advance(1)
    return model


@torch.no_grad()
def measured(model: Transformer, other: Batch, test: Batch) -> dict[str, Any]:
    """Loss, accuracy and alignment on the longest sequences."""
    found = scores(model, test)
    right = found.argmax(2) == test.wanted
    task = test.source[:, 0] - LETTERS
    at, chosen = aligned(model, test), int(aligned(model, other).argmax())
    return {
        "loss": float(cross_entropy(found.transpose(1, 2), test.wanted)),
        "accuracy": float(right.double().mean()),
        "whole": float(right.all(1).double().mean()),
        "by_task": [float(right[task == i].double().mean()) for i in range(len(TASKS))],
        "alignment": float(at[chosen]),
    }


def aligned(model: Transformer, seen: Batch) -> Tensor:
    """How often the maximum of cross-attention is at the known place, by layer and head."""
    most = attended(model, seen).argmax(4)  # (depth, n, heads, length)
    return (most == seen.place.unsqueeze(1)).double().mean((1, 3)).flatten()


def verdict(model: nn.Module, generator: torch.Generator, samples: int) -> dict[str, Any]:
    """The mean test of every tied site, on fresh sequences, after Holm's correction."""
    fresh = [batch(16, generator) for _ in range(samples)]

    def density(m: nn.Module, seen: tuple[Tensor, ...]) -> Tensor:
        return -nats(m, Batch(*seen)).sum(1)

    data = [(one.source, one.wanted, one.place) for one in fresh]
    found = eadem.evidence.site_mean_test(model, density, data, samples=samples)
    joint = found.pop("joint")
    corrected = holm([one.pvalue for one in found.values()])
    return {
        "joint": {"statistic": joint.statistic, "pvalue": joint.pvalue},
        "sites": {
            site: {"statistic": one.statistic, "holm": p}
            for (site, one), p in zip(found.items(), corrected, strict=True)
        },
    }


def _pattern(
    seed: int, name: str, size: Sizes, judged: bool, advance: Advance
) -> dict[str, Any]:
    """One pattern in one repeat, and, where all layers share, what relaxing gives back."""
    with seeded(seed):
        model = Transformer(size.width, DEPTH)
    PATTERNS[name](model)
    generator = torch.Generator().manual_seed(seed)
    other, test = (batch(size.tested, generator, LONGEST) for _ in range(2))
    trained(model, generator, size.steps, advance)
    bytes_ = sum(one.numel() * one.element_size() for one in cached(model, test[:1]))
    found = measured(model, other, test) | {
        "free": eadem.counts(model).free,
        "tensors": len(cached(model, test[:1])),
        "bytes": bytes_,
        "evidence": verdict(model, generator, size.fresh) if judged else None,
    }
    if name == "all":
        sites = found["evidence"]["sites"]
        order = sorted(sites, key=lambda s: -sites[s]["statistic"])
        relaxed = {"tied": [], "most": order[:RELAXED], "least": order[-RELAXED:]}
        found["relaxed"] = relaxed
        state = generator.get_state()
        for which, loose in relaxed.items():
            one = copy.deepcopy(model)
            for site in loose:
                eadem.relax(one, site, RANK, seed=seed)
            generator.set_state(state)
            trained(one, generator, size.more, advance)
            found[f"after_{which}"] = measured(one, other, test)
    return found


@torch.no_grad()
def speeds(width: int, rounds: int) -> dict[str, float]:
    """Letters per second of CPU time, forward; medians of rounds in which all take turns."""
    seen = batch(BATCH, torch.Generator().manual_seed(0), LONGEST)
    models: dict[str, Transformer] = {}
    for name, pattern in PATTERNS.items():
        models[name] = Transformer(width, DEPTH)
        pattern(models[name])
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.thread_time()
            scores(model, seen)
            taken[name].append(time.thread_time() - start)
    return {n: seen.wanted.numel() / statistics.median(each[1:]) for n, each in taken.items()}


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
        speed = speeds(size.width, size.rounds)
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


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The mean of a − b, and its standard error.

    >>> paired([2.0, 4.0], [1.0, 1.0])
    (2.0, 1.0)
    """
    away = [x - y for x, y in zip(a, b, strict=True)]
    error = statistics.stdev(away) / math.sqrt(len(away)) if len(away) > 1 else math.inf
    return statistics.mean(away), error


def claim(context: Context, grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Claim C25, in three parts."""
    free = {n: runs[0]["free"] for n, runs in grid.items()}
    kept = {n: runs[0]["tensors"] for n, runs in grid.items()}
    fewer = all(f < free["none"] for n, f in free.items() if n != "none")
    wanted = {n: tensors(n) for n in grid}
    context.claim(
        "C25",
        "Sharing keys and values across layers, or between encoder and decoder, takes fewer "
        "parameters.",
        "every pattern has fewer free values than none, and the decoder caches as many "
        "distinct tensors as counted by hand",
        {"free values": f"< {free['none']}", "tensors": wanted},
        {"free values": free, "tensors": kept},
        fewer and kept == wanted,
    )
    if not context.quick:
        _learned(context, grid)


def _learned(context: Context, grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """What is asked of networks that have learned."""
    none, shared = grid["none"], grid["encoder-decoder"]
    gains = {
        "alignment": paired(*([r["alignment"] for r in runs] for runs in (shared, none))),
        "copying": paired(*([r["by_task"][0] for r in runs] for runs in (shared, none))),
    }
    context.claim(
        "C25",
        "Keys and values shared between encoder and decoder give a shared space that helps "
        "copying and alignment.",
        "alignment and accuracy of copying are above those without sharing, each by > 2 "
        "standard errors of the paired difference",
        dict.fromkeys(gains, "> 2 standard errors"),
        {n: f"{mean:+.3f} ± {error:.3f}" for n, (mean, error) in gains.items()},
        all(mean > 2 * error for mean, error in gains.values()),
    )
    losses = {n: statistics.mean(r["loss"] for r in runs) for n, runs in grid.items()}
    context.claim(
        "C25",
        "Sharing keys and values comes at some loss of expressiveness.",
        "the mean test loss of every pattern that shares keys or values is above that of none",
        f"> {losses['none']:.3f}",
        {n: round(losses[n], 3) for n in KV},
        all(losses[n] > losses["none"] for n in KV),
    )
