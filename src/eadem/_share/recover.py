"""Winning back what sharing cost: θ trained to give what the original gives (distillation)."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eadem._share.coordinates import Coordinates, lowered
from eadem._share.divergence import IGNORED, apart
from eadem._share.loss import Loss, hidden, predicted
from eadem._share.text import Batch
from eadem.errors import OutOfRange, RecordError

__all__ = ["mixes", "plain_attention", "recover", "text_loss", "trained"]


def mixes(device: torch.device) -> bool:
    """Whether products in bfloat16 are the faster ones: on any device but the CPU, and on a
    CPU that has instructions for them (AMX, or AVX-512 with BF16).
    """
    if device.type != "cpu":
        return True
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def recover(
    model: nn.Module,
    original: nn.Module,
    batches: Sequence[Batch],
    *,
    samples: Sequence[Batch] = (),
    part: float = 1 / 3,
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
    the hidden states. Of the steps a `part` read `samples` instead, where there are any (text
    that the original wrote, `own_samples`), and always towards the original.

    Matrices of low rank are trained in coordinates in which a step moves the matrix as far as
    it would move its own entries (eadem._share.coordinates): a `rate` for the original suits
    here. θ is written at the end. Embeddings, and whatever is not in θ, stay as they are.

    With `state` the run is kept in that file `every` so many steps and goes on from there;
    `mark` says what run it is.

    Raises OutOfRange for a model without ties, RecordError for a file of another run.
    """
    found = Coordinates(model)
    if not found.parameters or steps < 1 or not batches:
        raise OutOfRange(
            f"recovery trains the free values of ties, embeddings left out: "
            f"{len(found.parameters)} parameters, {steps} steps and {len(batches)} batches "
            "were given; give steps and text, and a model that was shared (more "
            "than its embeddings)"
        )
    if not 0 <= part < 1:
        raise OutOfRange(f"part={part!r} is the part of the steps that read samples: 0 to 1")
    kind = Loss(model, []).kind
    if not 0 <= text <= 1 or (text and kind == "hidden"):
        raise OutOfRange(
            f"text={text!r} is the part of the loss that the text's own cross-entropy has: "
            "from 0 to 1, and 0 for a model that predicts no text"
        )
    original.eval()
    model.eval()
    device = found.parameters[0].device
    mixed = mixes(device) if mixed is None else mixed
    own = {id(b) for b in samples}

    def away(batch: Batch) -> Tensor:
        weight = 0.0 if id(batch) in own else text
        return _distance(found.place(), original, batch, kind, weight)

    with contextlib.ExitStack() as stack:
        for one in (original, found.twin):
            stack.enter_context(lowered(one, mixed))
            stack.enter_context(plain_attention(one))
        losses = trained(
            found.twin,
            found.parameters,
            away,
            batches,
            samples=samples,
            part=part,
            steps=steps,
            rate=rate,
            seed=seed,
            mixed=mixed,
            state=state,
            every=every,
            mark=mark,
            said=said,
            beside=found.scales,
        )
    found.write()
    return losses


def trained(
    model: nn.Module,
    thetas: Sequence[nn.Parameter],
    distance: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    *,
    samples: Sequence[Batch] = (),
    part: float = 1 / 3,
    steps: int,
    rate: float,
    seed: int = 0,
    mixed: bool | None = None,
    state: Path | None = None,
    every: int = 20,
    mark: str = "",
    said: Callable[[int, int, float], None] | None = None,
    beside: Sequence[Tensor] = (),
) -> list[float]:
    """`recover`'s schedule for any parameters of a model and any loss of a batch.

    `beside`: tensors that are not trained, but that an interrupted run needs as they were.
    """
    optimizer = torch.optim.AdamW(thetas, lr=rate, weight_decay=0.0, fused=True)
    done, losses = _resumed(state, mark, [*thetas, *beside], optimizer)
    order = _ordered(batches, samples, part, steps, seed)
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
                loss = distance(order[step])
            loss.backward()
            nn.utils.clip_grad_norm_(thetas, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if said is not None:
                said(step + 1, steps, losses[-1])
            if state is not None and (step + 1) % every == 0 and step + 1 < steps:
                _kept(state, mark, step + 1, [*thetas, *beside], optimizer, losses)
    finally:
        for p in model.parameters():
            p.requires_grad_(asked.get(id(p), True))
    if state is not None:
        state.unlink(missing_ok=True)
    return losses


def _ordered(
    batches: Sequence[Batch], samples: Sequence[Batch], part: float, steps: int, seed: int
) -> list[Batch]:
    """The batch of each step; of the steps, evenly spread, a `part` read samples."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(found: Sequence[Batch]) -> Iterator[Batch]:
        while found:
            yield from (found[i] for i in torch.randperm(len(found), generator=generator))

    text, own = drawn(batches), drawn(samples)
    part = part if samples else 0.0
    turns = [int((step + 1) * part) > int(step * part) for step in range(steps)]
    return [next(own if turn else text) for turn in turns]


def _schedule(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def text_loss(model: nn.Module, batch: Batch, kind: str) -> Tensor:
    """The cross-entropy of the text itself, nats a token."""
    logits, labels = _aimed(model, batch, kind)
    return apart(logits, None, labels, text=1.0)


def _aimed(model: nn.Module, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """All logits (n, words), and the tokens (n,) that they predict; IGNORED for padding."""
    if kind == "seq2seq":
        return predicted(model, batch, kind)
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    live = batch.mask[:, 1:].bool() & batch.mask[:, :-1].bool()
    labels = torch.full_like(batch.ids, IGNORED)
    labels[:, :-1] = torch.where(live, batch.ids[:, 1:], IGNORED)
    return logits.flatten(0, 1), labels.flatten()


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
        wanted = _aimed(original, batch, kind)[0]
    logits, labels = _aimed(model, batch, kind)
    return apart(logits, wanted, labels, text)


@contextlib.contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Attention by plain products for a while, on a CPU: for windows as short as these, the
    gradient of torch's fused kernel takes several times as long in bfloat16.
    """
    configs: dict[int, Any] = {}
    if all(p.is_cpu for p in model.parameters()):
        found = [getattr(m, "config", None) for m in model.modules()]
        configs = {id(c): c for c in found if _fused(c)}
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for config in configs.values():
            config._attn_implementation = "sdpa"


def _fused(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) == "sdpa"


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
    thetas: Sequence[Tensor],
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
