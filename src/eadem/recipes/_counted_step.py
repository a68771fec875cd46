"""One training step: what it computes, what it stores, how long it takes."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import eadem

__all__ = ["Alive", "Step", "largest_change", "timed"]


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still alive, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.now = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is(t)}
        for tensor in tree_leaves(made):
            if _is(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known | given:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def gone(self, key: int, size: int) -> None:
        """A storage has been freed."""
        self.known.discard(key)
        self.now -= size


def _is(value: object) -> bool:
    return isinstance(value, Tensor)


class Step:
    """A model's training step: forward, backward and Adam."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-4)
        for _ in range(2):  # Adam's state is there after the first
            self.take()

    def take(self) -> None:
        """Do it."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """The processor's time for so many, which other processes do not add to."""
        start = time.thread_time()
        for _ in range(steps):
            self.take()
        return time.thread_time() - start

    def counted(self) -> dict[str, int]:
        """What one step needs."""
        state = sum(_bytes(v) for s in self.optimizer.state.values() for v in s.values())
        self.optimizer.zero_grad()
        with FlopCounterMode(display=False) as operations:
            self.model(self.x)
            forward = operations.get_total_flops()
            self.take()
        self.optimizer.zero_grad()
        with Alive() as alive:
            self.take()
        counts = eadem.counts(self.model)
        values = sum(_bytes(p) for p in self.parameters)
        return {
            "free": counts.free,
            "expanded": counts.expanded,
            "gradient": sum(_bytes(p.grad) for p in self.parameters if p.grad is not None),
            "optimizer": state,
            "operations": operations.get_total_flops() - forward,
            "peak": values + state + alive.most,
        }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def timed(steps: Mapping[str, Step], rounds: Iterable[int]) -> dict[str, Any]:
    """A tied step beside its untied twin, taking turns: `ratios` of every round in order of
    size, and the median `seconds` of each.
    """
    many = max(1, round(0.05 / steps["untied"].seconds(1)))
    times = [{k: step.seconds(many) / many for k, step in steps.items()} for _ in rounds]
    return {
        "ratios": sorted(t["tied"] / t["untied"] for t in times),
        "seconds": {k: median(t[k] for t in times) for k in steps},
    }


def largest_change(outputs: Tensor, others: Tensor) -> float:
    """Relative to the largest entry."""
    return float((outputs - others).detach().abs().max() / outputs.detach().abs().max())
