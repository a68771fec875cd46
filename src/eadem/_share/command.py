"""What `eadem share` does, from a folder or gguf file to a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eadem._share.attach import standing
from eadem._share.families import matrices
from eadem._share.files import open_model, read_text, write
from eadem._share.loss import Loss
from eadem._share.measure import compared
from eadem._share.page import write_page
from eadem._share.plans import read_plan
from eadem._share.recover import recover
from eadem._share.run import Shared, share, usual_length
from eadem._share.samples import own_samples
from eadem._share.text import Batch
from eadem.bind import twin
from eadem.errors import EademError, OutOfRange
from eadem.report import page

__all__ = ["Asked", "share_files"]


@dataclass(frozen=True)
class Asked:
    """The command's arguments."""

    model: Path
    calibrate: Path
    keep: float = 0.8
    plan: Path | None = None
    test: Path | None = None
    plain: bool = False
    windows: int = 48
    length: int | None = None
    reach: int = 2
    recover: int = 0
    seed: int = 0
    stored: bool = False
    samples: int = 0

    @property
    def mark(self) -> str:
        """What tells this run from others, for the file that an interrupted recovery leaves."""
        numbers = (self.keep, self.windows, self.length, self.reach, self.recover, self.seed)
        said = repr((*numbers, self.stored, self.samples))
        plan = "" if self.plan is None else self.plan.read_text(encoding="utf-8")
        return hashlib.sha256((said + plan).encode()).hexdigest()


def share_files(
    asked: Asked,
    folder: Path,
    state: Path,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> Shared:
    """Share a model that lies in files, and write what comes of it into `folder`.

    `state`: the file that an interrupted recovery leaves and goes on from.
    """
    if asked.samples and not asked.recover:
        raise OutOfRange(
            f"{asked.samples} own samples are asked for, which only recovery reads; give "
            "--recover STEPS with --own-samples"
        )
    page.ready()
    plan = None if asked.plan is None else read_plan(asked.plan)
    text = read_text(asked.calibrate)
    test = None if asked.test is None else read_text(asked.test)
    model, tokenizer = open_model(asked.model, stored=asked.stored)
    if tokenizer is None:
        raise OutOfRange(
            f"{asked.model} has no tokenizer that transformers can read; add its "
            "files to the folder"
        )
    try:
        say(str(standing(matrices(model))))
    except EademError:
        if plan is None:
            raise
    original = None
    if asked.recover:  # a mapped file twice is in memory once
        original = open_model(asked.model, stored=True)[0] if asked.stored else twin(model)
    samples = []
    if original is not None and asked.samples:
        samples = own_samples(
            original,
            asked.samples,
            length=asked.length or usual_length(model),
            seed=asked.seed,
            said=None if progress is None else lambda a, b: progress("writing samples", a, b),
        )
    found = share(
        model,
        asked.keep,
        text,
        tokenizer=tokenizer,
        test=test,
        plan=plan,
        windows=(asked.windows, max(2, asked.windows // 3), max(2, asked.windows // 2)),
        length=asked.length,
        reach=asked.reach,
        seed=asked.seed,
        progress=progress,
    )
    assert found.texts is not None
    if original is not None and found.plan.entries:
        recover(
            model,
            original,
            found.texts.fit,
            samples=samples,
            steps=asked.recover,
            seed=asked.seed,
            state=state,
            mark=asked.mark,
            said=None if progress is None else lambda a, b, _loss: progress("recovering", a, b),
        )
        tested = Loss(original, found.texts.test)
        found.recovered = tested(model)
    ids = _reading(found.texts.test)
    # speed is measured beside the dense model, which may be larger than memory
    found.cost = compared(model, found.matrices, found.plan, None if asked.stored else ids)
    write(found, folder, asked.model, plain=asked.plain, tokenizer=tokenizer)
    write_page(found, folder / "report.html")
    return found


def _reading(batches: Sequence[Batch]) -> Tensor | None:
    """Up to 512 tokens of whole windows, (batch, length), to measure the speed of reading."""
    whole = [b.ids for b in batches if not b.padded]
    if not whole:
        return None
    ids = torch.cat(whole)
    return ids[: max(1, 512 // ids.shape[1])]
