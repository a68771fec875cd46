"""The log-likelihood of a model at its sites: per observation, its gradients and information.

`log_density(model, batch)` gives one log density per observation. Here it becomes a function
of the values at all sites, in float64, with its derivatives one observation at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eadem.bind import at_sites, resolved
from eadem.evidence._release import fitted
from eadem.evidence.score import EvidenceError
from eadem.solvers._autograd import NO_RULE, slope

__all__ = ["Density", "Information", "Likelihood"]

#: One log density per observation of a batch.
Density = Callable[[Any, Any], Tensor]
#: "observed" (minus the Hessian), "outer" (Σ s sᵀ), or an embedding whose JᵀJ is expected.
Information = str | Callable[[Any, Any], Tensor]
#: Numbers that one block of derivatives may hold.
BLOCK = 2**24


class Likelihood:
    """A model's log densities on data, as a function of the values at its sites.

    `data` is one batch (a tensor, a tuple, a mapping, any object), or a list, a DataLoader or
    another iterable of batches, in a fixed order. `values` (expanded,) are the sites' values
    at the fit and `densities` (n,) the log densities there. Everything is in `dtype`.

    Raises EvidenceError where the densities are not one finite number per observation, or
    differ from one call to the next.
    """

    def __init__(
        self,
        model: nn.Module,
        log_density: Density,
        data: Any,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.model, self.dtype = model, dtype
        self.plan = resolved(model)
        first = next(model.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device
        self.values: Tensor = self.plan.expand(fitted(model)).detach().to(self.device, dtype)
        if not self.values.numel():
            raise EvidenceError(
                f"{type(model).__name__} has no values that data could speak of; give the "
                "fitted model, with its parameters"
            )
        self.at = at_sites(model, log_density, dtype)
        self.data = _batches(data)
        with torch.no_grad():
            parts = [self._checked(batch, not i) for i, batch in enumerate(self.batches())]
        if not parts:
            raise EvidenceError("`data` holds no batch; give one batch or several")
        self.sizes = [len(p) for p in parts]
        if not any(self.sizes):
            raise EvidenceError("`data` holds no observation; give batches that are not empty")
        self.densities = torch.cat(parts).cpu()

    @property
    def n(self) -> int:
        """The number of observations."""
        return len(self.densities)

    def batches(self) -> Iterator[Any]:
        """The batches, floating-point tensors in `dtype`, on the model's device."""
        for batch in self.data:
            yield pytree.tree_map(self._wide, batch)

    def _wide(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wide = leaf.is_floating_point()
        return leaf.to(self.device, self.dtype) if wide else leaf.to(self.device)

    def _checked(self, batch: Any, twice: bool) -> Tensor:
        found = self.at(self.values, batch)
        if not isinstance(found, Tensor) or found.ndim != 1:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise EvidenceError(
                f"log_density gave {shape}; it must give one log density for each observation "
                "of the batch, a tensor of shape (n,), neither summed nor averaged"
            )
        bad = int((~torch.isfinite(found)).sum())
        if bad:
            raise EvidenceError(
                f"{bad} of {len(found)} log densities are not finite at the fit: it is at a "
                "boundary, or the density is not that of these data"
            )
        close = 1e-9 if self.dtype == torch.float64 else 1e-4
        if twice and not torch.allclose(found, self.at(self.values, batch), close, close):
            raise EvidenceError(
                "log_density gives other values when it is called again; put dropout and the "
                "like in evaluation mode with model.eval()"
            )
        return found

    def scores(self) -> Tensor:
        """s_i, the gradient of each log density at the sites: (n, expanded)."""
        return torch.cat([self._scores(b, n) for b, n in self._sized()])

    def _sized(self) -> Iterator[tuple[Any, int]]:
        yield from zip(self.batches(), self.sizes, strict=True)

    def _scores(self, batch: Any, n: int) -> Tensor:
        if not n:
            return self.values.new_zeros(0, self.values.numel()).cpu()
        found = self._by_vmap(batch, n)
        if found is not None:
            return found.cpu()
        values = self.values.clone().requires_grad_()
        each = self.at(values, batch)
        rows = [slope(each[i], values, retain=i + 1 < n) for i in range(n)]
        return torch.stack(rows).cpu()

    def _by_vmap(self, batch: Any, n: int) -> Tensor | None:
        """One observation at a time, side by side; None where the batch cannot be cut so."""
        if not _by_observation(batch, n):
            return None

        def one(row: Any) -> tuple[Tensor, Tensor]:
            alone = pytree.tree_map(lambda x: x.unsqueeze(0), row)

            def density(values: Tensor) -> Tensor:
                found: Tensor = self.at(values, alone).reshape(())
                return found

            found: tuple[Tensor, Tensor] = torch.func.grad_and_value(density)(self.values)
            return found

        chunk = max(1, BLOCK // max(1, self.values.numel()))
        try:
            scores, alone = torch.func.vmap(one, chunk_size=chunk)(batch)
        except NO_RULE:
            return None
        with torch.no_grad():
            together = self.at(self.values, batch)
        same = torch.allclose(alone, together, rtol=1e-9, atol=1e-9)
        return scores.detach() if same else None

    def gradient(self) -> Tensor:
        """g = Σ s_i, (expanded,)."""
        total = torch.zeros_like(self.values)
        for batch in self.batches():
            values = self.values.clone().requires_grad_()
            total += slope(self.at(values, batch).sum(), values)
        return total.cpu()

    def sums(self, ids: Tensor, count: int) -> Tensor:
        """Scores summed by `ids` (n,) in 0 … count−1: (count, expanded), in little memory."""
        total = torch.zeros(count, self.values.numel(), dtype=self.dtype)
        start = 0
        for batch, n in self._sized():
            own = ids[start : start + n].to(self.device)
            start += n
            if n * self.values.numel() <= BLOCK:
                total.index_add_(0, own.cpu(), self._scores(batch, n))
                continue
            values = self.values.clone().requires_grad_()
            each = self.at(values, batch)
            present = own.unique().tolist()
            for k in present:
                last = k == present[-1]
                total[k] += slope(each[own == k].sum(), values, retain=not last).cpu()
        return total

    def hessian(self) -> Tensor:
        """Minus the second derivative of the log-likelihood, (expanded, expanded)."""
        p = self.values.numel()
        total = torch.zeros(p, p, dtype=torch.float64)
        for batch in self.batches():
            total -= self._hessian(batch).cpu()
        return (total + total.T) / 2

    def _hessian(self, batch: Any) -> Tensor:
        p = self.values.numel()
        eye = torch.eye(p, dtype=torch.float64, device=self.device)

        def total(values: Tensor) -> Tensor:
            found: Tensor = self.at(values, batch).sum()
            return found

        def product(v: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(torch.func.grad(total), (self.values,), (v,))[1]
            return found

        try:
            rows: Tensor = torch.func.vmap(product, chunk_size=64)(eye).detach()
            return rows
        except NO_RULE:
            values = self.values.clone().requires_grad_()
            first = slope(total(values), values, create=True)
            return torch.stack([slope(first[i], values, retain=True) for i in range(p)])

    def gram(self, embedding: Density) -> Tensor:
        """JᵀJ of `embedding(model, batch)` at the sites, (expanded, expanded)."""
        p, at = self.values.numel(), at_sites(self.model, embedding, torch.float64)
        total = torch.zeros(p, p, dtype=torch.float64)
        eye = torch.eye(p, dtype=torch.float64, device=self.device)
        for batch, n in self._sized():
            if not n or self._gram_by_rows(at, batch, n, total):
                continue

            def flat(values: Tensor, batch: Any = batch) -> Tensor:
                found: Tensor = at(values, batch).reshape(-1)
                return found

            def column(v: Tensor, flat: Any = flat) -> Tensor:
                found: Tensor = torch.func.jvp(flat, (self.values,), (v,))[1]
                return found

            try:
                rows = torch.func.vmap(column, chunk_size=64)(eye).detach().cpu()
            except NO_RULE:
                values = self.values.clone().requires_grad_()
                each = flat(values)
                slopes = [slope(e, values, retain=True) for e in each]
                rows = torch.stack(slopes, dim=1).cpu()
            total += rows @ rows.T
        return total

    def _gram_by_rows(self, at: Density, batch: Any, n: int, total: Tensor) -> bool:
        """Add a batch's JᵀJ one observation at a time, side by side; False where the batch
        cannot be cut so, or an observation has more outputs than the sites have values.
        """
        with torch.no_grad():
            together = at(self.values, batch)
        if not isinstance(together, Tensor):
            raise EvidenceError(
                f"the function (model, batch) gave a {type(together).__name__}; its squared "
                "Jacobian is the information, so it must give a tensor"
            )
        if not _by_observation(batch, n) or together.shape[:1] != (n,):
            return False
        together = together.reshape(n, -1)
        if together.shape[1] > self.values.numel():
            return False

        def one(row: Any) -> tuple[Tensor, Tensor]:
            alone = pytree.tree_map(lambda x: x.unsqueeze(0), row)

            def outputs(values: Tensor) -> tuple[Tensor, Tensor]:
                found: Tensor = at(values, alone).reshape(-1)
                return found, found

            found: tuple[Tensor, Tensor] = torch.func.jacrev(outputs, has_aux=True)(self.values)
            return found

        found = torch.zeros_like(total)
        many = max(1, BLOCK // max(1, together.shape[1] * self.values.numel()))
        for i in range(0, n, many):
            some = pytree.tree_map(lambda x, i=i: x[i : i + many], batch)
            try:
                rows, alone = torch.func.vmap(one)(some)
            except NO_RULE:
                return False
            if not torch.allclose(alone, together[i : i + many], rtol=1e-9, atol=1e-9):
                return False
            rows = rows.detach().reshape(-1, self.values.numel()).cpu()
            found += rows.T @ rows
        total += found
        return True

    def information(self, kind: Information, scores: Tensor | None = None) -> Tensor:
        """The sites' information matrix, of the stated kind."""
        if callable(kind):
            return self.gram(kind)
        if kind == "outer":
            s = self.scores() if scores is None else scores
            return s.T @ s
        if kind == "observed":
            return self.hessian()
        raise EvidenceError(
            f"information={kind!r}; ask for 'observed', 'outer', or give a function "
            "(model, batch) → tensor whose squared Jacobian is the expected information"
        )


def _by_observation(batch: Any, n: int) -> bool:
    """Whether every leaf of a batch is a tensor with a row for each of n observations."""
    leaves = pytree.tree_leaves(batch)
    return all(isinstance(x, Tensor) and x.ndim and len(x) == n for x in leaves)


def _batches(data: Any) -> Sequence[Any] | Any:
    """Something that gives the batches each time it is iterated over."""
    one = isinstance(data, Tensor | tuple | Mapping | str) or not hasattr(data, "__iter__")
    if one:
        return [data]
    return list(data) if isinstance(data, Iterator) else data
