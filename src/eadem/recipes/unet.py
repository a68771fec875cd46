"""A U-Net whose decoder mirrors its encoder, on nuclei.

A fluorescence micrograph with 125 nuclei outlined by hand (512×512; package stardist, BSD-3),
cut into 16 tiles of 128×128. `eadem.nn.UNet(..., tied=True)` ties every 3×3 filter of the
decoder to the filter of the encoder opposite, level by level: its adjoint, channels exchanged
and space turned, `via=eadem.Flip(-2, -1) @ eadem.Transpose(0, 1)`. It is compared with the
untied U-Net of the same widths, its twin at the start, which has more parameters (full
budget), and with an untied one made narrower until its parameters are no more than the tied
one's (equal budget).

Each repeat draws four tiles to learn from and eight others to test on, disjoint, and a start.
Equal between the models: tiles, crops of 64×64 and their mirrorings in their order, updates of
Adam, rate; parameters as said; the tied one and its twin also compute the same. Dice is
2|A ∩ B| / (|A| + |B|) over the pixels of all test tiles, at probability one half.

Claim C18; 3 repeats. The evidence of the tie, level by level: Chen and Qin's mean test of each
decoder filter at the tied fit, on the 64 disjoint 32×32 pieces of the training tiles.
Expected run time: 2 minutes, 10 s when quick (2 repeats, fewer updates).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import eadem
from eadem.nn import UNet
from eadem.recipes import Context
from eadem.recipes._nuclei import SIDE, crops, dice, nuclei
from eadem.recipes._training import Advance, concurrently, descending, one_thread_count, seeded
from eadem.recipes._unet_evidence import verdict
from eadem.recipes._unet_page import report
from eadem.report import page

__all__ = ["crops", "dice", "narrower", "report", "run"]

WIDTHS = (8, 16, 32)
LEARNED, TESTED, BATCH, RATE, MARGIN = 4, 8, 8, 3e-3, 0.01
NETS = ("tied", "full", "equal")


def narrower(widths: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The widest untied U-Net, its widths in one proportion, of no more than `most` values."""
    for last in range(widths[-1], 0, -1):
        found = tuple(max(1, last * w // widths[-1]) for w in widths)
        if eadem.counts(UNet(1, 1, found)).free <= most:
            return found
    raise ValueError(f"no U-Net of these proportions has only {most} values")


def trained(
    model: nn.Module,
    tiles: tuple[Tensor, Tensor],
    updates: int,
    seed: int,
    advance: Advance = lambda steps: None,
) -> list[float]:
    """Adam with a rate that falls to zero along a cosine; the loss at every step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    drawn = (crops(tiles, BATCH, generator) for _ in range(updates))
    losses = (binary_cross_entropy_with_logits(model(x), inside) for x, inside in drawn)
    path = []
    for loss in descending(optimizer, losses, rate):
        path.append(loss)
        advance(1)
    return path


def compared(
    images: Tensor, masks: Tensor, updates: int, seed: int, advance: Advance
) -> dict[str, Any]:
    """One repeat: its tiles, the three models, the evidence of the tied one, and pictures."""
    with seeded(seed):
        order = torch.randperm(len(images))
        tied = UNet(1, 1, WIDTHS, tied=True)
        narrow = UNet(1, 1, narrower(WIDTHS, eadem.counts(tied).free))
        models = dict(zip(NETS, (tied, eadem.twin(tied), narrow), strict=True))
    learned, tested = order[:LEARNED], order[LEARNED : LEARNED + TESTED]
    pictures = {"image": images[tested[0]], "mask": masks[tested[0]]}
    nets = {}
    for name, model in models.items():
        path = trained(model, (images[learned], masks[learned]), updates, seed, advance)
        with torch.no_grad():
            mask = (model(images[tested]) > 0).float()
        one = {"free": eadem.counts(model).free, "dice": dice(mask, masks[tested])}
        nets[name] = one | {"loss": path}
        pictures[name] = mask[0]
    small = {k: v[0, ::2, ::2].round(decimals=2) for k, v in pictures.items()}
    evidence = verdict(tied, (images[learned], masks[learned]))
    return {"nets": nets, "evidence": evidence, "pictures": small}


def run(context: Context) -> None:
    """Train the three on every repeat's tiles, test them, and leave metrics and a page."""
    page.ready()
    repeats, updates = (2, 30) if context.quick else (3, 120)
    images, masks = nuclei(SIDE)
    jobs = [
        functools.partial(compared, images, masks, updates, 1000 * context.seed + repeat)
        for repeat in range(repeats)
    ]
    with one_thread_count(), context.stage("updates", 3 * repeats * updates) as advance:
        each = concurrently(jobs, advance)
    found = {name: [one["nets"][name] for one in each] for name in NETS}
    _claim(context, found)
    context.write_metrics(
        {
            "data": {"source": "stardist 0.9.2, img2d and mask2d", "tiles": len(images)},
            "widths": {"tied": WIDTHS, "equal": narrower(WIDTHS, found["tied"][0]["free"])},
            "nets": found,
            "evidence": [one["evidence"] for one in each],
            "pictures": each[-1]["pictures"],
        }
    )
    report(context.out)


def _claim(context: Context, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Claim C18."""
    free = {k: runs[0]["free"] for k, runs in found.items()}
    means = {k: sum(r["dice"] for r in runs) / len(runs) for k, runs in found.items()}
    context.claim(
        "C18",
        "U-Net with decoder filters tied to encoder filters: fewer parameters, at little cost.",
        "the tied U-Net has at most 0.7 of the free values of the untied one of its widths, "
        f"its Dice, mean over 3 repeats (quick: 2), is no more than {MARGIN:g} below that "
        "one's, and not below that of an untied one with no more free values than it",
        {"share": "≤ 0.7", "below full": f"≤ {MARGIN:g}", "above equal": "≥ 0"},
        {
            "share": free["tied"] / free["full"],
            "below full": means["full"] - means["tied"],
            "above equal": means["tied"] - means["equal"],
            "dice": {k: [r["dice"] for r in runs] for k, runs in found.items()},
        },
        free["tied"] <= 0.7 * free["full"]
        and free["equal"] <= free["tied"]
        and means["full"] - means["tied"] <= MARGIN
        and means["tied"] >= means["equal"],
    )
