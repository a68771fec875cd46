"""Text that a model writes itself, for a recovery that needs no text of every domain.

What a model writes from its first token on is spread over all that it was trained on; a
student that is only asked about one text forgets the rest (data-free distillation: LLM-QAT,
Liu et al. 2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eadem._share.coordinates import lowered
from eadem._share.loss import Loss
from eadem._share.recover import mixes
from eadem._share.text import Batch, batches
from eadem.errors import OutOfRange, Unsupported

__all__ = ["own_samples"]


@torch.no_grad()
def own_samples(
    model: nn.Module,
    count: int,
    *,
    length: int = 128,
    size: int = 4,
    seed: int = 0,
    abreast: int = 128,
    mixed: bool | None = None,
    said: Callable[[int, int], None] | None = None,
) -> list[Batch]:
    """`count` windows of `length` tokens that a causal model draws itself, `size` in a batch.

    Each begins with the token that begins (or ends) a text, and goes on at temperature 1 over
    the end of one text to the next. `abreast`: windows written at a time; `mixed`: in
    bfloat16, by default where the machine is made for it; `said(done, total)`: progress.

    Raises Unsupported for a model that is not causal, or has no such token; OutOfRange for
    less than one window of two tokens.
    """
    if count < 1 or length < 2:
        raise OutOfRange(f"{count} own samples of {length} tokens; 1 of 2 are the least")
    config: Any = getattr(model, "config", None)
    first = getattr(config, "bos_token_id", None)
    first = getattr(config, "eos_token_id", None) if first is None else first
    writes = Loss(model, []).kind == "causal"
    if not writes or not isinstance(first, int):
        lacks = "has no such token in its config" if writes else "does not write text"
        raise Unsupported(
            "own samples are what a causal model writes after the token that begins a text; "
            f"{type(model).__name__} {lacks}. Recover it on more text instead"
        )
    device = next(model.parameters()).device
    mixed = mixes(device) if mixed is None else mixed
    generator = torch.Generator(device).manual_seed(seed)
    found: list[Tensor] = []
    cast = torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext()
    mode = model.training
    model.eval()
    try:
        with lowered(model, mixed), cast:
            for at in range(0, count, abreast):
                start = torch.full((min(abreast, count - at), 1), first, device=device)
                found.append(_written(model, start, length, generator))
                if said is not None:
                    said(at + len(start), count)
    finally:
        model.train(mode)
    return batches(torch.cat(found), size)


def _written(model: nn.Module, ids: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Each row of `ids` (n, 1) continued to `length` tokens, by inverting the distribution."""
    cache: Any = None
    for _ in range(length - ids.shape[1]):
        out = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        reached = out.logits[:, -1].float().softmax(-1).cumsum(-1)
        u = torch.rand(len(ids), 1, generator=generator, device=ids.device) * reached[:, -1:]
        drawn = torch.searchsorted(reached, u, right=True).clamp(max=reached.shape[1] - 1)
        ids = torch.cat([ids, drawn], dim=1)
    return ids
