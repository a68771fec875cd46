"""What each matrix sees of calibration text, as second moments, in float64.

To second order, and with inputs x and gradients g at the outputs taken as independent (K-FAC;
Martens & Grosse 2015), a change ΔW costs ½·tr(G ΔW Σ ΔWᵀ) of loss, with Σ = E[x xᵀ] and
G = E[g gᵀ]. Only the side that a group shares is kept of each: for a matrix that reads the
residual stream Σ and WᵀGW, for one that writes into it G and WΣWᵀ. In what follows A is W or
Wᵀ, so that A (free, d) ≈ C·B with B (r, d) shared, `metric` is Σ or G, (d, d), and `content`
is AᵀGA or the same with Σ. Of embeddings there is the metric alone: Σ of the one that writes
words, G of the one that is looked up.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eadem._share.families import HEAD, LOOKED_UP, Matrix
from eadem._share.loss import Loss, probe
from eadem._share.scratch import room
from eadem._share.text import Batch

__all__ = ["Moments", "moments", "stored", "wide"]

#: Most bytes of moments that are summed in one pass over the text.
LIMIT = 2 << 30


def stored(model: nn.Module, m: Matrix) -> Tensor:
    """W (out, in) of one matrix, detached."""
    module = model.get_submodule(m.module)
    found: Any = module.weight
    value: Tensor = found.detach()
    return value.t() if m.transposed else value


def wide(model: nn.Module, m: Matrix) -> Tensor:
    """A in float64: W, or Wᵀ for a matrix whose output side is shared."""
    w = stored(model, m).double()
    return w.t() if m.narrow else w


class Moments:
    """`metric` and `content` of matrices, in files."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="eadem-share-")
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, True)
        self.tokens = 0

    def _path(self, what: str, name: str) -> Path:
        return Path(self._folder) / f"{what}-{name}.npy"

    def put(self, what: str, name: str, value: Tensor) -> None:
        """Keep one matrix of moments."""
        with room():
            np.save(self._path(what, name), value.cpu().numpy())

    def _get(self, what: str, name: str) -> Tensor:
        return torch.from_numpy(np.load(self._path(what, name)))

    def metric(self, m: Matrix) -> Tensor:
        """Σ, or G for a matrix whose output side is shared: float64 (d, d)."""
        return self._get("metric", m.site if m.narrow else m.source)

    def content(self, m: Matrix) -> Tensor:
        """WᵀGW, or WΣWᵀ for a matrix whose output side is shared: float64 (d, d)."""
        return self._get("content", m.site)

    def close(self) -> None:
        """Remove the files."""
        self._remove()


def _side(m: Matrix) -> int:
    return m.shape[0] if m.narrow else m.shape[1]


def _passes(found: Sequence[Matrix], limit: int) -> Iterator[list[Matrix]]:
    """Consecutive matrices whose moments fit the limit together."""
    held: list[Matrix] = []
    total = 0
    for m in found:
        need = 16 * _side(m) ** 2
        if held and total + need > limit:
            yield held
            held, total = [], 0
        held.append(m)
        total += need
    if held:
        yield held


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for gradients, for a while; what they are multiplied with does."""
    asked = [p for p in model.parameters() if p.requires_grad]
    mode = model.training
    for p in asked:
        p.requires_grad_(False)
    hooks = [
        module.register_forward_hook(lambda _m, _a, out: out.detach().requires_grad_())
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    model.eval()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(mode)
        for p in asked:
            p.requires_grad_(True)


def moments(
    model: nn.Module,
    batches: Sequence[Batch],
    found: Sequence[Matrix],
    *,
    limit: int | None = None,
    seed: int = 0,
    said: Callable[[int, int], None] | None = None,
) -> Moments:
    """The moments of some matrices over batches; `said(done, total)` is told of each batch.

    Memory beyond the model's own stays below `limit` bytes (LIMIT) and one batch's
    activations: where all moments together are more, the text is read several times.
    """
    kept = Moments()
    kind = Loss(model, []).kind
    parts = list(_passes(found, LIMIT if limit is None else limit))
    total, done = len(parts) * len(batches), 0
    modules = dict(model.named_modules())
    with _frozen(model), torch.enable_grad():
        for part in parts:
            sums = _Sums(model, part)
            handles = [
                layer.register_forward_hook(sums.hook(m))
                for m in part
                for layer in _layers(modules, m)
            ]
            generator = torch.Generator().manual_seed(seed)
            try:
                for batch in batches:
                    sums.mask = batch.mask.bool() if batch.padded else None
                    value, weight = probe(model, batch, kind, generator)
                    value.backward()
                    sums.weight += weight
                    done += 1
                    if said is not None:
                        said(done, total)
            finally:
                for handle in handles:
                    handle.remove()
            sums.keep(kept)
    return kept


def _layers(modules: dict[str, nn.Module], m: Matrix) -> list[nn.Module]:
    """The layers that use a matrix: one, but for a table that several embeddings look into."""
    own = modules[m.module]
    if m.kind != LOOKED_UP:
        return [own]
    every = [e for e in modules.values() if isinstance(e, nn.Embedding)]
    return [e for e in every if e.weight is own.weight]


class _Sums:
    """Sums of outer products in one pass."""

    def __init__(self, model: nn.Module, part: Sequence[Matrix]) -> None:
        self.model, self.part = model, part
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.rows: dict[tuple[str, str], int] = {}
        self.mask: Tensor | None = None
        self.weight = 0.0
        self.first: dict[str, str] = {}
        for m in part:
            self.first.setdefault(m.source, m.site)

    def _rows(self, value: Tensor) -> Tensor:
        found = value.detach()
        if self.mask is not None and found.shape[:2] == self.mask.shape:
            return found[self.mask]
        return found.reshape(-1, found.shape[-1])

    def _add(self, what: str, name: str, rows: Tensor) -> None:
        key = (what, name)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        product = (rows.T @ rows).double()
        if key in self.sums:
            self.sums[key] += product
        else:
            self.sums[key] = product
        self.rows[key] = self.rows.get(key, 0) + len(rows)

    def hook(self, m: Matrix) -> Callable[[nn.Module, Any, Tensor], None]:
        """A forward hook that adds up what one layer sees."""
        if m.kind in (HEAD, LOOKED_UP):
            return self._embedding(m)
        w = stored(self.model, m)

        def add(_module: nn.Module, args: Any, out: Tensor) -> None:
            if m.narrow:
                self._add("content", m.site, self._rows(args[0]) @ w.T)
            elif self.first[m.source] == m.site:
                self._add("metric", m.source, self._rows(args[0]))
            if out.requires_grad:
                out.register_hook(pull)

        def pull(grad: Tensor) -> None:
            rows = self._rows(grad)
            if m.narrow:
                self._add("metric", m.site, rows)
            else:
                self._add("content", m.site, rows @ w)

        return add

    def _embedding(self, m: Matrix) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(_module: nn.Module, args: Any, out: Tensor) -> None:
            if m.kind == HEAD:
                self._add("metric", m.source, self._rows(args[0]))
            elif out.requires_grad:
                out.register_hook(pull)

        def pull(grad: Tensor) -> None:
            self._add("metric", m.source, self._rows(grad))

        return add

    def keep(self, kept: Moments) -> None:
        """Put the means into files. What comes of gradients is a sum over tokens, a unit of
        the loss's own weight.
        """
        for m in self.part:
            if m.kind in (HEAD, LOOKED_UP):
                key = ("metric", m.source)
                by = self.weight if m.kind == LOOKED_UP else self.rows.get(key, 0)
                zero = torch.zeros(_side(m), _side(m), dtype=torch.float64)
                kept.put(*key, self.sums.get(key, zero) / max(by, 1e-300))
                continue
            source = m.site if m.narrow else m.source
            inputs = ("content", m.site) if m.narrow else ("metric", source)
            pulled = ("metric", source) if m.narrow else ("content", m.site)
            zero = torch.zeros(_side(m), _side(m), dtype=torch.float64)
            seen = self.rows.get(inputs, 0)
            scale = seen / max(self.weight, 1e-300) / max(self.rows.get(pulled, 0), 1)
            for key, by in ((inputs, 1 / max(seen, 1)), (pulled, scale)):
                kept.put(*key, self.sums.get(key, zero) * by)
            kept.tokens = max(kept.tokens, seen)
