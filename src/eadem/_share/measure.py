"""What a model takes to run: bytes that stay in memory, operations, tokens a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eadem._share.families import Matrix
from eadem._share.plans import Entry, Plan
from eadem.bind import twin

__all__ = ["Cost", "cache_bytes", "compared", "cost", "kept_by", "operations", "speeds"]


@dataclass(frozen=True)
class Cost:
    """Numbers in the matrices, bytes of the whole model, multiplications a token."""

    free: int
    bytes: int
    multiplications: int
    constants: int

    def table(self) -> dict[str, int]:
        """As plain data."""
        return asdict(self)


def kept_by(e: Entry, group: Sequence[Matrix]) -> int:
    """Numbers that a tie keeps of its matrices."""
    if e.method == "tied":
        rows, columns = group[0].shape
        return rows * columns + len(group) * e.rank * (rows + columns)
    side = group[0].shape[0] if group[0].narrow else group[0].shape[1]
    return e.rank * (sum(m.size for m in group) // side + side - e.rank)


def operations(found: Sequence[Matrix], plan: Plan) -> tuple[int, int]:
    """Numbers kept in the matrices, and multiplications a token in one pass through them."""
    by_site = {m.site: m for m in found}
    alone = {m.site: m.size for m in found}
    work = {m.site: m.size * m.uses for m in found}
    free = 0
    for e in plan.entries:
        group = [by_site[s] for s in e.sites]
        for m in group:
            del alone[m.site]
            rows, columns = m.shape
            if e.method == "factored":
                work[m.site] = e.rank * (rows + columns - e.rank) * m.uses
            elif e.rank:
                work[m.site] += e.rank * (rows + columns) * m.uses
        free += kept_by(e, group)
    return free + sum(alone.values()), sum(work.values())


def cost(model: nn.Module, found: Sequence[Matrix], plan: Plan) -> Cost:
    """What a shared model takes; `constants` are bytes of the maps' own (places of
    pivots), at most.
    """
    free, work = operations(found, plan)
    held: dict[int, Tensor] = {}
    for p in (*model.parameters(), *model.buffers()):
        held[p.untyped_storage().data_ptr()] = p
    by_site = {m.site: m for m in found}
    constants = 0  # each site's own: the pivots, the others, and the way back
    for e in plan.entries:
        if e.method == "factored":
            m = by_site[e.sites[0]]
            constants += 16 * (m.shape[0] if m.narrow else m.shape[1]) * (len(e.sites) + 1)
    total = sum(p.untyped_storage().nbytes() for p in held.values())
    return Cost(free, total, work, constants)


def compared(
    model: nn.Module, found: Sequence[Matrix], plan: Plan, ids: Tensor | None = None
) -> dict[str, tuple[float, float]]:
    """What the dense model takes and what the shared one does, by name; with `ids` (batch,
    length) their speed too, for which the dense model is built beside it.
    """
    now, before = cost(model, found, plan), operations(found, Plan(()))
    full_bytes = now.bytes + (before[0] - now.free) * next(model.parameters()).element_size()
    held: dict[str, tuple[float, float]] = {
        "weights in the blocks": (before[0], now.free),
        "bytes of all parameters": (full_bytes, now.bytes),
        "bytes of the maps' own constants": (0, now.constants),
        "multiplications a token in the blocks": (before[1], now.multiplications),
    }
    cache = cache_bytes(model)
    if cache is not None:
        held["bytes of cache a token"] = (cache, cache)
    if ids is None:
        return held
    dense, shared = speeds([twin(model), model], ids)
    held[f"tokens a second, reading {ids.numel()}"] = (dense["read"], shared["read"])
    if dense["write"] == dense["write"]:
        held["tokens a second, writing with the cache"] = (dense["write"], shared["write"])
    return held


def cache_bytes(model: nn.Module) -> int | None:
    """Bytes of keys and values that a causal model's cache holds for one token."""
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not heads or not width:
        return None
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or width // heads
    item = next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * groups * size * item)


@torch.no_grad()
def speeds(
    models: Sequence[nn.Module], ids: Tensor, *, rounds: int = 3, decode: int = 8
) -> list[dict[str, float]]:
    """Tokens a second of wall time, of several models in turn: reading `ids` at once,
    and writing one token after another with the cache (NaN where a model has none).
    """
    seen: list[dict[str, list[float]]] = [{"read": [], "write": []} for _ in models]
    for _ in range(rounds):
        for model, times in zip(models, seen, strict=True):
            start = time.perf_counter()
            model(input_ids=ids)
            times["read"].append(ids.numel() / (time.perf_counter() - start))
            times["write"].append(_writing(model, ids[:1, :16], decode))
    return [{k: statistics.median(v) for k, v in times.items()} for times in seen]


def _writing(model: Any, ids: Tensor, steps: int) -> float:
    if not getattr(model, "can_generate", lambda: False)():
        return float("nan")
    found = model(input_ids=ids, use_cache=True)
    cache = getattr(found, "past_key_values", None)
    if cache is None or getattr(model.config, "is_encoder_decoder", False):
        return float("nan")
    start = time.perf_counter()
    for _ in range(steps):
        word = found.logits[:, -1:].argmax(-1)
        found = model(input_ids=word, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
    return steps / (time.perf_counter() - start)
