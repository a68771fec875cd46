"""Text as windows of tokens: for calibration, for choosing between plans, and for testing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eadem.errors import DataError, OutOfRange

__all__ = ["Batch", "Texts", "batches", "read", "tokens", "windows"]

#: Fewest windows: for the inputs' covariance, for the choice between plans, for the test.
FEWEST = (4, 2, 2)
#: Tokens in a row that two texts must not have in common.
RUN = 24


@dataclass(frozen=True)
class Batch:
    """`ids` and `mask` (batch, length), the mask one where there is a token."""

    ids: Tensor
    mask: Tensor

    @property
    def padded(self) -> bool:
        """Whether some places hold no token."""
        return not bool(self.mask.all())

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Texts:
    """Batches that have no window in common: for statistics, for the choice, for the test."""

    fit: list[Batch]
    choose: list[Batch]
    test: list[Batch]


def tokens(text: str, tokenizer: Any) -> Tensor:
    """One text as token ids (n,), without special tokens."""
    if tokenizer is None:
        raise OutOfRange(
            "the calibration is text, which needs a tokenizer; give tokenizer=…, or token ids "
            "(windows, length)"
        )
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(found, dtype=torch.int64)


def windows(ids: Tensor, length: int) -> Tensor:
    """Consecutive windows (n, length) of token ids (m,); what is left over is dropped."""
    return ids[: len(ids) // length * length].reshape(-1, length)


def _spread(found: Tensor, most: int) -> Tensor:
    """At most `most` windows, evenly spaced."""
    if len(found) <= most:
        return found
    return found[torch.linspace(0, len(found) - 1, most).round().to(torch.int64)]


def batches(found: Tensor, size: int) -> list[Batch]:
    """Windows (n, length) without padding, `size` at a time."""
    return [Batch(part, torch.ones_like(part)) for part in found.split(size)]


def _sentences(texts: Sequence[str], tokenizer: Any, length: int, size: int) -> list[Batch]:
    if tokenizer is None:
        raise OutOfRange("the calibration is text, which needs a tokenizer; give tokenizer=…")
    found = []
    for start in range(0, len(texts), size):
        made = tokenizer(
            list(texts[start : start + size]),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        found.append(Batch(made["input_ids"], made["attention_mask"]))
    return found


def read(
    calibration: str | Sequence[str] | Tensor,
    tokenizer: Any,
    *,
    length: int,
    most: tuple[int, int, int],
    test: str | Sequence[str] | Tensor | None = None,
    size: int = 4,
) -> Texts:
    """Calibration text, a list of texts, or token ids (windows, length), as batches.

    The first part gives statistics, the next chooses between plans, and the last is for the
    test, where `test` gives none. `most`: of each, the most windows.

    Raises DataError where the text is too short, with how much is needed, or where calibration
    and test share a passage.
    """
    if isinstance(calibration, list | tuple):
        return _of_sentences(calibration, tokenizer, length, most, test, size)
    assert isinstance(calibration, str | Tensor)
    found = _windows(calibration, tokenizer, length)
    parts = FEWEST[:2] if test is not None else FEWEST
    if len(found) < sum(parts):
        raise DataError(
            f"the calibration text is too short: {len(found)} windows of {length} tokens, and "
            f"{sum(parts)} are needed ({sum(parts) * length} tokens); give more text, or a "
            "shorter window"
        )
    wanted = most[: len(parts)]
    ends = _ends(len(found), parts, wanted)
    fit, choose, *rest = (found[a:b] for a, b in zip([0, *ends], ends, strict=False))
    if test is None:
        tested = rest[0]
    elif isinstance(test, str | Tensor):
        tested = _windows(test, tokenizer, length)
        if len(tested) < FEWEST[2]:
            raise DataError(
                f"the test text is too short: {len(tested)} windows of {length} tokens, and "
                f"{FEWEST[2]} are needed"
            )
    else:
        raise DataError("calibration and test are both lists of texts, or neither is")
    if test is not None:
        _apart(torch.cat([fit, choose]), tested)
    return Texts(
        batches(_spread(fit, most[0]), size),
        batches(_spread(choose, most[1]), size),
        batches(_spread(tested, most[2]), size),
    )


def _windows(text: str | Tensor, tokenizer: Any, length: int) -> Tensor:
    if isinstance(text, Tensor):
        if text.ndim != 2 or text.dtype not in (torch.int64, torch.int32):
            raise DataError(
                f"calibration ids are integers (windows, length), not {tuple(text.shape)} of "
                f"{text.dtype}"
            )
        return text.to(torch.int64)
    return windows(tokens(text, tokenizer), length)


def _ends(count: int, fewest: Sequence[int], most: Sequence[int]) -> list[int]:
    """Where each part ends: in proportion to what is wanted of each."""
    total, ends, at = sum(most), [], 0
    for i, (low, want) in enumerate(zip(fewest, most, strict=True)):
        rest = sum(fewest[i + 1 :])
        share = max(low, round(count * want / total))
        at = min(at + share, count - rest)
        ends.append(at)
    ends[-1] = count
    return ends


def _of_sentences(
    texts: Sequence[str],
    tokenizer: Any,
    length: int,
    most: tuple[int, int, int],
    test: object,
    size: int,
) -> Texts:
    if test is not None and not isinstance(test, list | tuple):
        raise DataError("calibration and test are both lists of texts, or neither is")
    parts = FEWEST[:2] if test is not None else FEWEST
    if len(texts) < 8 * sum(parts):
        raise DataError(
            f"{len(texts)} texts are too few for calibration; {8 * sum(parts)} are needed"
        )
    if test is not None and (both := set(texts) & set(test)):
        raise DataError(f"calibration and test both hold {sorted(both)[0]!r:.80}")
    ends = _ends(len(texts), [8 * n for n in parts], most[: len(parts)])
    cut = [list(texts[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    tested = cut[2] if test is None else list(test)
    made = [
        _sentences(c[:n], tokenizer, length, size)
        for c, n in zip([cut[0], cut[1], tested], most, strict=True)
    ]
    return Texts(*made)


def _apart(calibration: Tensor, test: Tensor) -> None:
    """Raise DataError where two sets of windows have a passage in common."""
    run = min(RUN, calibration.shape[1], test.shape[1])
    seen = {tuple(w[i : i + run].tolist()) for w in test for i in range(0, len(w) - run + 1, 1)}
    for w in calibration.tolist():
        for i in range(len(w) - run + 1):
            if tuple(w[i : i + run]) in seen:
                raise DataError(
                    f"calibration and test text share a passage of {run} tokens; take the "
                    "test from text that calibration does not hold"
                )
