"""Where a shared parameter's gradient comes from: by site, and by each call of a site.

The gradient of a free value is the sum of its sites' gradients, φᵀg, and a site that is read
several times in a forward pass sums over its calls. Autograd leaves only the sum; a trace
keeps the summands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eadem._plan import Plan
from eadem.bind import free_vector, observe, resolved
from eadem.evidence.score import EvidenceError
from eadem.maps.base import LinearMap

__all__ = ["Trace", "trace"]


@contextmanager
def trace(model: nn.Module) -> Iterator[Trace]:
    """Within the block, keep every tied site's gradient, summed and call by call.

    A site is a parameter that a tie has a say in; a call is one reading of it in a forward
    pass. The forward and the backward pass both belong in the block; several of them add up,
    as they do in `.grad`. Non-linear maps are linearized at the values on entry. Raises
    EvidenceError where the model has no ties.

    >>> import eadem
    >>> model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}).double()
    >>> _ = eadem.tie(model, "a.weight", "b.weight")
    >>> x = torch.randn(5, 2, dtype=torch.float64)
    >>> with trace(model) as seen:
    ...     model["b"](model["a"](model["a"](x))).sum().backward()
    >>> {name: len(each) for name, each in seen.calls.items()}
    {'a.weight': 2, 'b.weight': 1}
    >>> torch.allclose(seen.pulled()["a.weight"], model["a"].weight.grad)
    True
    """
    plan = resolved(model)
    if not plan.groups:
        raise EvidenceError(
            f"{type(model).__name__} has no ties, so there is nothing to trace; declare them "
            "with eadem.tie"
        )
    linear = plan if isinstance(plan, LinearMap) else plan.linearize(free_vector(model))
    assert isinstance(linear, Plan)
    assert isinstance(linear, LinearMap)
    seen = Trace(linear)
    with observe(model, seen._read):
        yield seen


class Trace:
    """The gradients that `trace` saw: by site and by call. Empty before a backward pass."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls: dict[str, list[Tensor | None]] = {}

    def _read(self, site: str, value: Tensor) -> Tensor:
        """Stand between a site and its reader."""
        if not (value.requires_grad and torch.is_grad_enabled()):
            return value
        calls = self._calls.setdefault(site, [])
        number = len(calls)
        calls.append(None)
        copy = value.view_as(value)

        def keep(grad: Tensor) -> None:
            seen, grad = calls[number], grad.detach()
            calls[number] = grad.clone() if seen is None else seen + grad

        copy.register_hook(keep)
        return copy

    @property
    def calls(self) -> dict[str, list[Tensor]]:
        """By site, what each call contributed, in the order of the calls.

        A call that what was differentiated does not depend on is left out.
        """
        found = {n: [g for g in each if g is not None] for n, each in self._calls.items()}
        return {n: found[n] for n in self._plan.names if found.get(n)}

    @property
    def sites(self) -> dict[str, Tensor]:
        """By site, the gradient there: the sum over its calls."""
        return {n: torch.stack(each).sum(0) for n, each in self.calls.items()}

    def pulled(self) -> dict[str, Tensor]:
        """φᵀg by the parameter that holds the free values: equal to its `.grad`."""
        sites = self.sites
        return self._pull(sites, {n for group in self._groups() for n in group}, sites)

    def norms(self) -> dict[str, float]:
        """By site, the Euclidean norm of the gradient there."""
        return {n: float(g.norm()) for n, g in self.sites.items()}

    def cosines(self) -> dict[tuple[str, str], float]:
        """By pair of tied sites, the cosine between what they contribute to θ.

        The gradients are compared where they are added, after each site's own part of φᵀ, so
        that a transpose does not hide that two sites agree. 1: they ask for the same change
        of the shared values; −1: for opposite ones. NaN where one of them is zero.
        """
        sites, found = self.sites, {}
        for group in self._groups():
            names = [n for n in group if n in sites]
            parts = {}
            for n in names:
                by_owner = self._pull({n: sites[n]}, set(group), sites)
                parts[n] = torch.cat([g.reshape(-1) for g in by_owner.values()])
            for i, a in enumerate(names):
                for b in names[i + 1 :]:
                    length = float(parts[a].norm() * parts[b].norm())
                    cosine = float(parts[a] @ parts[b]) / length if length else float("nan")
                    found[a, b] = cosine
        return found

    def _groups(self) -> list[tuple[str, ...]]:
        """The connected groups of which something was seen."""
        calls = self.calls
        return [g for g in self._plan.groups if any(n in calls for n in g)]

    def _pull(
        self, grads: dict[str, Tensor], names: set[str], like: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """φᵀ of `grads` (zero at the other sites), for the owners among `names`."""
        if not like:
            return {}
        zero = next(iter(like.values()))
        whole = {
            n: grads[n] if n in grads else zero.new_zeros(shape)
            for n, shape in self._plan.shapes.items()
        }
        phi = self._plan
        assert isinstance(phi, LinearMap)
        by_owner = phi.split_theta(phi.adjoint(phi.cat(whole)))
        return {n: g for n, g in by_owner.items() if n in names}

    def __str__(self) -> str:
        calls, sites, cosines = self.calls, self.sites, self.cosines()
        if not sites:
            return "trace: no gradient has been seen yet"
        width = max(len(n) for n in sites)
        lines = [f"{'site':<{width}}  calls  |gradient|  cosine with the tie's other sites"]
        for n, g in sites.items():
            others = [c for pair, c in cosines.items() if n in pair]
            shown = " ".join(f"{c:+.2f}" for c in others[:6]) + (
                " …" if len(others) > 6 else ""
            )
            lines.append(f"{n:<{width}}  {len(calls[n]):>5}  {float(g.norm()):>10.4g}  {shown}")
        return "\n".join(line.rstrip() for line in lines)
