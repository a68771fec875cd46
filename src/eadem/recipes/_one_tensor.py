"""A small language model, and what is exact of a tensor in two roles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import eadem

__all__ = [
    "BATCH",
    "DECAY",
    "DEPTH",
    "HEADS",
    "LENGTH",
    "RATE",
    "Language",
    "adamw",
    "models",
    "nats",
    "one_tensor",
    "refusals",
    "tied",
]

LENGTH, BATCH, HEADS, DEPTH = 48, 16, 4, 2
RATE, DECAY = 2e-3, 0.1


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
    (folder / "tied.safetensors").unlink()
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
