"""Where a shared parameter's gradient comes from: by site, and by each call of a site.

The gradient of a free value is the sum of its sites' gradients, φᵀg, and a site that is read
several times in a forward pass sums over its calls. Autograd leaves only the sum; a trace
keeps the summands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eadem._plan import Plan, make_plan
from eadem.bind import free_vector, match, observe, resolved
from eadem.errors import NoSuchSite, nearest
from eadem.evidence.score import EvidenceError
from eadem.maps.base import LinearMap, numel

__all__ = ["Trace", "trace"]

#: Of conjugate gradients; the number of distinct eigenvalues of φᵀφ is enough, in exact sums.
_ITERATIONS = 200


@contextmanager
def trace(model: nn.Module, *reused: str) -> Iterator[Trace]:
    """Within the block, keep every tied site's gradient, summed and call by call.

    A site is a parameter that a tie has a say in; a call is one reading of it in a forward
    pass. `reused` names parameters (or patterns) that are sites too though nothing is tied to
    them: those of a module that is called several times. The forward and the backward pass
    both belong in the block; several of them add up, as they do in `.grad`. Non-linear maps
    are linearized at the values on entry. Raises EvidenceError where the model has no ties
    and nothing is named, NoSuchSite for a name of no parameter.

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
    named = _named(plan, reused)
    if not plan.groups and not named:
        raise EvidenceError(
            f"{type(model).__name__} has no ties, so there is nothing to trace; declare them "
            "with eadem.tie, or name the parameters of a module that is called several times"
        )
    linear = plan if isinstance(plan, LinearMap) else plan.linearize(free_vector(model))
    assert isinstance(linear, Plan)
    seen = Trace(_tied(linear, named))
    with observe(model, seen._read, named):
        yield seen


def _named(plan: Plan, patterns: Sequence[str]) -> list[str]:
    """The parameters of these names that no tie has a say in."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = match(pattern, plan.names)
        if not names:
            raise NoSuchSite(
                f"no parameter is called {pattern!r}; {nearest(pattern, plan.names)}"
            )
        found.update(dict.fromkeys(names))
    tied = {n for group in plan.groups for n in group}
    return [n for n in found if n not in tied]


def _tied(plan: Plan, named: Sequence[str]) -> Plan:
    """A plan without the parameters that no tie has a say in, but for those named."""
    groups = (*plan.groups, *((n,) for n in named))
    names = {n for group in groups for n in group}
    return make_plan(
        {n: s for n, s in plan.shapes.items() if n in names},
        {n: o for n, o in plan.owners.items() if n in names},
        {n: e for n, e in plan.expressions.items() if n in names},
        groups,
    )


def _picks(plan: Plan) -> bool:
    """Whether every coordinate of a site is one free value, scaled."""
    outers = [e.outer for e in plan.expressions.values()]
    return all(o.source is None for o in plan.owners.values()) and all(
        isinstance(o, LinearMap) and (o.view() is not None or o.index() is not None)
        for o in outers
    )


class Trace:
    """The gradients that `trace` saw: by site and by call. Empty before a backward pass.

    `step()` ends a training step: what was seen goes into the running means, and the next
    pass starts anew.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._calls: dict[str, list[Tensor | None]] = {}
        self._sums: dict[str, Tensor] = {}
        self._picks = _picks(plan)
        #: the sites that had gradients, and 1/φᵀφ over them
        self._inverse: tuple[frozenset[str], Tensor] | None = None
        #: steps that `step()` ended
        self.steps = 0

    def step(self) -> dict[str, float]:
        """End a step: add its site gradients to the running means, forget them, and give the
        step's `conflict()`.
        """
        sites = {n: g.to(torch.float64) for n, g in self.sites.items()}
        found = self.conflict(sites)
        for name, wide in sites.items():
            if name in self._sums:
                self._sums[name] += wide
            else:
                self._sums[name] = wide.clone()
        self.steps += 1
        self._calls.clear()
        return found

    def carry(self, earlier: Trace) -> None:
        """Go on with the running means of an earlier trace of this model."""
        self._sums = {n: s.clone() for n, s in earlier._sums.items()}
        self.steps = earlier.steps

    @property
    def means(self) -> dict[str, Tensor]:
        """By site, the mean of the gradients there over the steps that `step()` ended."""
        return {n: s / self.steps for n, s in self._sums.items()}

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
        return {
            n: each[0] if len(each) == 1 else torch.stack(each).sum(0)
            for n, each in self.calls.items()
        }

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

    def conflict(self, gradients: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """By tie (the first of its sites), the share of the sites' gradient energy that
        cancels: ‖g − Pg‖²/‖g‖², where P projects on the range of φ at the sites that have a
        gradient. What is left, Pg, is all that φᵀg sees of g.

        0: the sites ask for one change; 1: they undo each other. m equal sites whose
        gradients are independent and of one size come to 1 − 1/m. `gradients` by site may
        stand in for those of this pass: `seen.conflict(seen.means)` tells a lasting
        disagreement from the noise of single steps, whose mean cancels. float64. Raises
        EvidenceError for gradients of other sites.
        """
        given = self.sites if gradients is None else dict(gradients)
        odd = {
            n: tuple(g.shape) for n, g in given.items() if self._plan.shapes.get(n) != g.shape
        }
        if odd:
            raise EvidenceError(
                f"{odd} are not gradients of tied sites of this model, by name and shape; the "
                "sites are those of `.sites` and `.means`"
            )
        wide = {n: g.to(torch.float64) for n, g in given.items()}
        if not wide:
            return {}
        pulled = self._adjoint(wide)
        # ‖Pg‖² = (φᵀg)·t where φᵀφ t = φᵀg
        kept = self._plan.split_theta(pulled * self._solved(pulled, wide))
        found = {}
        for group in self._plan.groups:
            names = [n for n in group if n in wide]
            if names:
                energy = sum(float(wide[n].square().sum()) for n in names)
                share = sum(float(kept[n].sum()) for n in group if n in kept)
                found[group[0]] = max(0.0, 1 - share / energy) if energy else float("nan")
        return found

    def cancelled(self) -> dict[str, Tensor]:
        """By site, the part of the gradient there that the tie cancels: g − Pg, with P as in
        `conflict`. It is what the site would do beyond what all sites do together. float64.
        """
        wide = {n: g.to(torch.float64) for n, g in self.sites.items()}
        if not wide:
            return {}
        kept = self._plan.split(self._phi.forward(self._solved(self._adjoint(wide), wide)))
        return {n: g - kept[n] for n, g in wide.items()}

    @property
    def _phi(self) -> LinearMap:
        assert isinstance(self._plan, LinearMap)
        return self._plan

    def _adjoint(self, values: Mapping[str, Tensor]) -> Tensor:
        """φᵀ of values at some sites, zero at the others, in float64."""
        phi = self._plan
        assert isinstance(phi, LinearMap)
        like = next(iter(values.values()))
        return phi.adjoint(
            torch.cat(
                [
                    values[n].reshape(-1) if n in values else like.new_zeros(numel(shape))
                    for n, shape in phi.shapes.items()
                ]
            )
        )

    def _solved(self, pulled: Tensor, sites: Mapping[str, Tensor]) -> Tensor:
        """t of least squares, φᵀφ t = `pulled`, over some sites only. Where every coordinate of
        a site is one free value, φᵀφ is diagonal; else by conjugate gradients.
        """
        phi = self._plan
        assert isinstance(phi, LinearMap)
        if self._picks:
            names = frozenset(sites)
            if self._inverse is None or self._inverse[0] != names:
                used = phi.split(phi.forward(torch.ones_like(pulled)))
                diagonal = self._adjoint({n: used[n] for n in sites})
                self._inverse = names, torch.where(diagonal > 0, 1 / diagonal, 0.0)
            return pulled * self._inverse[1]
        theta, rest, way = torch.zeros_like(pulled), pulled, pulled
        size = least = float(rest @ rest)
        for _ in range(_ITERATIONS):
            if size <= 1e-24 * least:
                break
            values = phi.split(phi.forward(way))
            curved = self._adjoint({n: values[n] for n in sites})
            step = size / float(way @ curved)
            theta, rest = theta + step * way, rest - step * curved
            now = float(rest @ rest)
            way, size = rest + (now / size) * way, now
        return theta

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
