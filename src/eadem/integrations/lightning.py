"""Lightning: a callback that logs, during training, whether tied sites want the same."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from eadem.errors import MissingPackage, OutOfRange
from eadem.evidence import Trace, trace
from eadem.integrations.tensorboard import scalars

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = ["conflict_logger"]


def conflict_logger(every: int = 1) -> Callback:
    """A callback for `Trainer(callbacks=[…])` that logs the figures of `tensorboard.scalars`,
    summed over accumulated batches, after every `every`-th optimizer step's backward passes.

    Batches between are not traced and cost nothing. Raises MissingPackage without lightning.
    """
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "conflict_logger needs the package 'lightning', which is not installed: "
            "pip install lightning"
        ) from error
    if every < 1:
        raise OutOfRange(f"every={every}; log after every step (1), or every n-th")

    class ConflictLogger(Callback):
        """Traces the steps that are logged."""

        def __init__(self) -> None:
            self.open: ExitStack | None = None
            self.seen: Trace | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            if self.open is None and trainer.global_step % every == 0:
                self.open = ExitStack()
                fresh = self.open.enter_context(trace(module))
                if self.seen is not None:
                    fresh.carry(self.seen)
                self.seen = fresh

        def on_before_optimizer_step(self, trainer: Any, module: Any, *_: Any) -> None:
            if self.open is not None and self.seen is not None:
                module.log_dict(scalars(self.seen))

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            # with accumulated gradients the step comes some batches later
            if self.seen is not None and not self.seen.calls:
                self.close()

        def on_train_end(self, *_: Any) -> None:
            self.close()

        def on_exception(self, *_: Any) -> None:
            self.close()

        def close(self) -> None:
            """Give the model its own classes back."""
            if self.open is not None:
                self.open.close()
                self.open = None

    return ConflictLogger()
