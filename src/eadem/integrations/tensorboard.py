"""TensorBoard: what a trace saw of a step, as scalars.

```python
with eadem.trace(model) as seen:
    for step, batch in enumerate(batches):
        loss(model, batch).backward()
        log(writer, seen, step)  # before zero_grad or after: a trace keeps its own
        ...
```
"""

from __future__ import annotations

from typing import Any

from eadem.evidence import Trace

__all__ = ["log", "scalars"]


def scalars(seen: Trace) -> dict[str, float]:
    """A step's figures by name, and the end of that step (`Trace.step`).

    `eadem/conflict/TIE` is the share of the tie's gradient energy that cancels in this step,
    `eadem/conflict_of_means/TIE` that of the mean gradients so far, and
    `eadem/gradient/SITE` the norm of the gradient at a site.
    """
    norms = {f"eadem/gradient/{name}": size for name, size in seen.norms().items()}
    now = {f"eadem/conflict/{name}": share for name, share in seen.step().items()}
    lasting = seen.conflict(seen.means)
    return {
        **now,
        **{f"eadem/conflict_of_means/{name}": share for name, share in lasting.items()},
        **norms,
    }


def log(writer: Any, seen: Trace, step: int) -> None:
    """Write a step's `scalars` to a `torch.utils.tensorboard.SummaryWriter`, or to anything
    with its `add_scalar`.
    """
    for name, value in scalars(seen).items():
        writer.add_scalar(name, value, step)
