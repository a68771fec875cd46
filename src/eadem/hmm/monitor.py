"""What happened while a model was fitted."""

from __future__ import annotations

import sys

__all__ = ["ConvergenceMonitor"]


class ConvergenceMonitor:
    """The log-likelihood before every step of a fit.

    `history` has one for each step, `iter` their number. Converged where a step gains less
    than `tol`, or after `n_iter` steps. Subclass and put in a model's `monitor_` for another
    criterion.

    >>> monitor = ConvergenceMonitor(tol=0.1, n_iter=10, verbose=False)
    >>> for value in (-10.0, -9.0, -8.95):
    ...     monitor.report(value)
    >>> monitor.converged, monitor.iter
    (True, 3)
    """

    def __init__(self, tol: float, n_iter: int, verbose: bool) -> None:
        self.tol, self.n_iter, self.verbose = tol, n_iter, verbose
        self.history: list[float] = []
        self.iter = 0

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v!r}" for k, v in sorted(vars(self).items()))
        return f"{type(self).__name__}({shown})"

    def _reset(self) -> None:
        self.iter = 0
        self.history.clear()

    def report(self, log_prob: float) -> None:
        """Take note of a step; printed to standard error where verbose."""
        if self.verbose:
            gain = log_prob - self.history[-1] if self.history else float("nan")
            print(f"{self.iter + 1:>10d} {log_prob:>16.8f} {gain:>+16.8f}", file=sys.stderr)
        self.history.append(log_prob)
        self.iter += 1

    @property
    def converged(self) -> bool:
        """Whether the fit may stop."""
        few = len(self.history) < 2
        gained = not few and self.history[-1] - self.history[-2] < self.tol
        return self.iter == self.n_iter or gained
