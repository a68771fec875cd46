"""A plain training loop for classifiers, reproducible to the bit on one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from eadem.recipes._digits import Digits

__all__ = [
    "THREADS",
    "Advance",
    "Epoch",
    "Trained",
    "concurrently",
    "descending",
    "evaluate",
    "fit",
    "one_thread_count",
    "seeded",
]

Advance = Callable[[int], object]
T = TypeVar("T")

#: Sums are split over threads, so the number of threads is part of what is computed. One is
#: also the number that does not slow down on a busy machine.
THREADS = 1

#: How many models are trained at a time. No result depends on it.
WORKERS = 2

_building = threading.Lock()


@dataclass(frozen=True)
class Epoch:
    """The state after an epoch: mean training loss in it, loss and accuracy on the test set."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Trained:
    """What `fit` returns: the curve, and the seconds spent on steps (not on tests)."""

    curve: tuple[Epoch, ...]
    steps: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Accuracy on the test set after the last epoch."""
        return self.curve[-1].test_accuracy

    @property
    def loss(self) -> float:
        """Cross-entropy on the test set after the last epoch."""
        return self.curve[-1].test_loss


@contextmanager
def one_thread_count() -> Iterator[None]:
    """Exactly THREADS threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's generator starts from `seed`, and no other block of this kind runs meanwhile."""
    with _building:
        torch.manual_seed(seed)
        yield


def concurrently(jobs: Sequence[Callable[[Advance], T]], advance: Advance) -> list[T]:
    """The jobs' results, in order; each job is given the `advance` to call at its steps.

    After an error, or Ctrl-C, the jobs that are running end at their next step.
    """
    stopped = threading.Event()

    def step(steps: int) -> None:
        if stopped.is_set():
            raise InterruptedError("another job failed, or the run was interrupted")
        advance(steps)

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(job, step) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def descending(
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    rate: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Iterator[float]:
    """A step for each loss, and its value; `losses` makes each when its turn has come.

    >>> w = torch.ones((), requires_grad=True)
    >>> list(descending(torch.optim.SGD([w], 0.5), (w**2 / 2 for _ in range(2))))
    [0.5, 0.125]
    """
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rate is not None:
            rate.step()
        yield float(loss.detach())


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    model.eval()
    scores = model(digits.images)
    loss = nn.functional.cross_entropy(scores, digits.labels)
    right = int((scores.argmax(1) == digits.labels).sum())
    return float(loss), right / len(digits)


def fit(
    model: nn.Module,
    train: Digits,
    test: Digits,
    *,
    epochs: int,
    seed: int,
    batch: int = 32,
    lr: float = 1e-3,
    test_every: int = 1,
    advance: Advance = lambda steps: None,
) -> Trained:
    """Adam on the cross-entropy; batches are drawn anew each epoch from `seed`.

    The test set is looked at every `test_every` epochs and after the last; nothing is chosen
    by it.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    curve: list[Epoch] = []
    spent, steps = 0.0, 0
    for epoch in range(1, epochs + 1):
        model.train()
        start, total = time.perf_counter(), torch.zeros(())
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            part = train[rows]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(part.images), part.labels)
            loss.backward()
            optimizer.step()
            total += loss.detach().cpu() * len(rows)
            steps += 1
            advance(1)
        spent += time.perf_counter() - start
        if epoch % test_every == 0 or epoch == epochs:
            curve.append(Epoch(epoch, float(total) / len(train), *evaluate(model, test)))
    return Trained(tuple(curve), steps, spent)
