"""What sharing costs a model, measured: next-token loss, or distance of its hidden states.

A causal model and an encoder–decoder are measured by their cross-entropy in nats a token (the
second reads the first half of a window and writes the second); any other by the squared
distance of the last hidden states from the original's, relative to their square.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eadem._share.text import Batch

__all__ = ["Loss", "quantity", "writes"]


def writes(model: nn.Module) -> str:
    """What a model's loss is taken of: "causal", "seq2seq" or "hidden"."""
    config: Any = getattr(model, "config", None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq" if head is not None else "hidden"
    kind = str(getattr(config, "model_type", ""))
    causal = kind in ("gpt2", "llama", "mistral", "qwen2", "smollm3") or (
        head is not None and "CausalLM" in type(model).__name__
    )
    return "causal" if causal and head is not None else "hidden"


def quantity(model: nn.Module) -> str:
    """What the loss of this model is, in words."""
    if writes(model) == "hidden":
        return "relative squared distance of the hidden states"
    return "cross-entropy (nats a token)"


class Loss:
    """The loss of a model on batches; `reference` is what the original gives for them."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.kind = writes(model)
        self.batches = list(batches)
        self.reference: list[Tensor] = []
        if self.kind == "hidden":
            with torch.no_grad():
                self.reference = [hidden(model, b)[b.mask.bool()] for b in self.batches]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """The mean loss over all batches."""
        total, weight = 0.0, 0.0
        for i, batch in enumerate(self.batches):
            if self.kind == "hidden":
                want = self.reference[i].double()
                away = hidden(model, batch)[batch.mask.bool()].double() - want
                total += float(away.square().sum())
                weight += float(want.square().sum())
            else:
                logits, labels = predicted(model, batch, self.kind)
                total += float(cross_entropy(logits.float(), labels, reduction="sum"))
                weight += len(labels)
        return total / weight


def hidden(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states, (batch, length, width)."""
    base = getattr(model, "base_model", model)
    extra: dict[str, Tensor] = {}
    if getattr(base.config, "is_encoder_decoder", False):
        extra["decoder_input_ids"] = batch.ids
    found: Tensor = base(
        input_ids=batch.ids, attention_mask=batch.mask, **extra
    ).last_hidden_state
    return found


def predicted(model: nn.Module, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """Logits (n, words) and the tokens (n,) that they predict; padding left out."""
    if kind == "seq2seq":
        half = batch.ids.shape[1] // 2
        read, write = batch.ids[:, :half], batch.ids[:, half:]
        config: Any = model.config
        start = int(config.decoder_start_token_id or 0)
        shifted = torch.cat([torch.full_like(write[:, :1], start), write[:, :-1]], dim=1)
        logits = model(input_ids=read, decoder_input_ids=shifted).logits
        return logits.reshape(-1, logits.shape[-1]), write.reshape(-1)
    extra: dict[str, Tensor] = {}
    if batch.padded and "position_ids" in inspect.signature(model.forward).parameters:
        extra["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **extra
    ).logits
    if not batch.padded:  # an index's gradient takes longer than the model's head
        return logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten()
    live = batch.mask[:, 1:].bool() & batch.mask[:, :-1].bool()
    return logits[:, :-1][live], batch.ids[:, 1:][live]


def probe(
    model: nn.Module, batch: Batch, kind: str, generator: torch.Generator
) -> tuple[Tensor, float]:
    """A scalar whose squared gradients are, in the mean, the curvature of the loss, and the
    number by which they are to be divided.

    For cross-entropy these are gradients at tokens that the model draws itself (Fisher's
    information); for a squared distance, those of a random combination of the hidden states.
    """
    if kind == "hidden":
        found = hidden(model, batch)[batch.mask.bool()]
        sign = torch.randn(found.shape, generator=generator, dtype=torch.float64).to(found)
        return (2**0.5 * sign * found).sum(), float(found.detach().square().sum())
    logits, _ = predicted(model, batch, kind)
    with torch.no_grad():
        drawn = torch.multinomial(logits.float().softmax(-1), 1, generator=generator).reshape(
            -1
        )
    return cross_entropy(logits.float(), drawn, reduction="sum"), float(len(drawn))
