"""Winning back what sharing cost: θ trained to give what the original gives (distillation)."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from eadem._share.loss import Loss, hidden, predicted
from eadem._share.text import Batch
from eadem.bind import ties
from eadem.errors import OutOfRange, RecordError

__all__ = ["mixes", "recover", "text_loss", "trained"]


def mixes(device: torch.device) -> bool:
    """Whether products in bfloat16 are the faster ones: on any device but the CPU, and on a
    CPU that has matrix instructions (AMX) for them.
    """
    if device.type != "cpu":
        return True
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(asked is not None and asked())


def recover(
    model: nn.Module,
    original: nn.Module,
    batches: Sequence[Batch],
    *,
    steps: int,
    rate: float = 1e-4,
    text: float = 0.0,
    seed: int = 0,
    mixed: bool | None = None,
    state: Path | None = None,
    every: int = 20,
    mark: str = "",
    said: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train the θ of a tied model towards the original's outputs; returns each step's loss.

    AdamW with a cosine schedule (a twentieth of the steps to warm up), one batch a step, in
    bfloat16 where the machine is made for it (`mixed` says so or forbids it). The loss is the
    divergence of the original's next-token distribution (Hinton, Vinyals & Dean 2015), of
    which a part `text` may be the cross-entropy of the text itself; or the squared distance of
    the hidden states. With `state` the run is kept in that file `every` so many steps and goes
    on from there; `mark` says what run it is. Whatever is not in θ stays as it is.

    Raises OutOfRange for a model without ties, RecordError for a file of another run.
    """
    thetas = list({id(p): p for t in ties(model) for p in t.thetas}.values())
    if not thetas or steps < 1 or not batches:
        raise OutOfRange(
            f"recovery trains the free values of ties: {len(thetas)} parameters, {steps} steps "
            f"and {len(batches)} batches were given; share the model first"
        )
    kind = Loss(model, []).kind
    if not 0 <= text <= 1 or (text and kind == "hidden"):
        raise OutOfRange(
            f"text={text!r} is the part of the loss that the text's own cross-entropy has: "
            "from 0 to 1, and 0 for a model that predicts no text"
        )
    original.eval()
    return trained(
        model,
        thetas,
        lambda batch: _distance(model, original, batch, kind, text),
        batches,
        steps=steps,
        rate=rate,
        seed=seed,
        mixed=mixed,
        state=state,
        every=every,
        mark=mark,
        said=said,
    )


def trained(
    model: nn.Module,
    thetas: Sequence[nn.Parameter],
    distance: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    *,
    steps: int,
    rate: float,
    seed: int = 0,
    mixed: bool | None = None,
    state: Path | None = None,
    every: int = 20,
    mark: str = "",
    said: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """`recover`'s schedule for any parameters of a model and any loss of a batch."""
    optimizer = torch.optim.AdamW(thetas, lr=rate, weight_decay=0.0, fused=True)
    done, losses = _resumed(state, mark, thetas, optimizer)
    order = torch.randperm(
        steps * len(batches), generator=torch.Generator().manual_seed(seed)
    ).remainder(len(batches))
    asked = {id(p): p.requires_grad for p in model.parameters()}
    for p in model.parameters():
        p.requires_grad_(False)
    for p in thetas:
        p.requires_grad_(True)
    device = thetas[0].device
    cast: Any = contextlib.nullcontext()
    if mixes(device) if mixed is None else mixed:
        cast = torch.autocast(device.type, torch.bfloat16)
    model.eval()
    try:
        for step in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            with cast:
                loss = distance(batches[int(order[step])].to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(thetas, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if said is not None:
                said(step + 1, steps, losses[-1])
            if state is not None and (step + 1) % every == 0 and step + 1 < steps:
                _kept(state, mark, step + 1, thetas, optimizer, losses)
    finally:
        for p in model.parameters():
            p.requires_grad_(asked.get(id(p), True))
    if state is not None:
        state.unlink(missing_ok=True)
    return losses


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def text_loss(model: nn.Module, batch: Batch, kind: str) -> Tensor:
    """The cross-entropy of the text itself, nats a token."""
    logits, labels = predicted(model, batch, kind)
    return cross_entropy(logits.float(), labels)


def _distance(
    model: nn.Module, original: nn.Module, batch: Batch, kind: str, text: float = 0.0
) -> Tensor:
    if kind == "hidden":
        live = batch.mask.bool()
        with torch.no_grad():
            want = hidden(original, batch)[live]
        away: Tensor = (hidden(model, batch)[live] - want).square().sum()
        return away / want.square().sum()
    if text == 1:
        return text_loss(model, batch, kind)
    with torch.no_grad():
        wanted = log_softmax(predicted(original, batch, kind)[0].float(), -1)
    logits, labels = predicted(model, batch, kind)
    given = log_softmax(logits.float(), -1)
    apart = kl_div(given, wanted, log_target=True, reduction="batchmean")
    if not text:
        return apart
    return (1 - text) * apart - text * given.gather(1, labels[:, None]).mean()


def _kept(
    state: Path,
    mark: str,
    step: int,
    thetas: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
) -> None:
    """The run so far, written beside the file and then put in its place."""
    whole = {
        "mark": mark,
        "step": step,
        "thetas": [t.detach() for t in thetas],
        "optimizer": optimizer.state_dict(),
        "losses": list(losses),
    }
    beside = state.with_name(state.name + ".new")
    try:
        torch.save(whole, beside)
        os.replace(beside, state)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _resumed(
    state: Path | None,
    mark: str,
    thetas: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[float]]:
    if state is None or not state.exists():
        return 0, []
    try:
        found: Any = torch.load(state, weights_only=True)
        same = found["mark"] == mark and len(found["thetas"]) == len(thetas)
    except Exception as error:  # whatever a damaged file raises
        raise RecordError(
            f"{state} is no recovery that was interrupted ({type(error).__name__}); remove it"
        ) from error
    if not same:
        raise RecordError(
            f"{state} is of a recovery with another plan or length; remove it, or run that one "
            "to its end"
        )
    with torch.no_grad():
        for p, value in zip(thetas, found["thetas"], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(found["optimizer"])
    return int(found["step"]), list(found["losses"])
