"""Coordinates for training a shared model in which a step is as large as one of its weights.

The factors of W = C·B are ill-conditioned: the same step of Adam, so much for every entry,
moves W by more than it would move W's own entries, and by more along some directions than
along others. With the singular value decomposition W = U·S·Vᵀ of the start these values are
trained instead:

    W = P·S⁻¹·Q,    P = U·S and Q = S·Vᵀ at first,    dW = dP·Vᵀ + U·dQ there.

U and V have orthonormal columns, so that dP and dQ move W by what they are themselves, along
the tangent space of the matrices of this rank. (What scaled gradient descent, Tong, Ma & Chi
2021, reaches by preconditioning, to first order, and at no cost in a step.) A linear layer
that takes all of W, or its transpose, multiplies by Q and P, or W is multiplied out once a step
for all tokens of the batch, whichever takes fewer operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eadem._share.families import transposed
from eadem.bind import ties, twin
from eadem.maps.base import Composed, Map
from eadem.maps.factored import Factored
from eadem.maps.view import Transpose

__all__ = ["Coordinates", "balanced", "lowered"]

#: Least singular value that steps are scaled by, as a share of the greatest.
LEAST = 1e-3


def balanced(phi: Factored, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P (rows, r), S (r,) and Q (r, columns) of the matrix P·S⁻¹·Q that a bound map makes."""
    at = theta.detach()
    c, t = phi.split(at.to(torch.promote_types(at.dtype, torch.float32)))
    eye = torch.eye(phi.rank).to(c)
    if phi.side == "rows":
        q, p, s = _balanced(c.mT, phi._assembled(eye, t).mT)
        p, q = p.mT, q.mT
    else:
        p, q, s = _balanced(c, phi._assembled(eye, t))
    return p.to(at).contiguous(), s.to(at), q.to(at).contiguous()


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q and S of left·right, (rows, r) by (r, columns)."""
    v, triangle = torch.linalg.qr(right.mT)
    turned = left @ triangle.mT
    squares, w = torch.linalg.eigh(turned.mT @ turned)
    s = squares.clamp(min=0).sqrt()
    s = s.clamp(min=float(s.max()) * LEAST or 1.0)
    return turned @ w, s[:, None] * (v @ w).mT, s


@dataclass(frozen=True)
class _Product:
    """A matrix of a tie: P·S⁻¹·Q, and what each site takes of it."""

    theta: nn.Parameter
    phi: Factored
    p: nn.Parameter
    s: Tensor
    q: nn.Parameter
    sites: tuple[tuple[str, tuple[Map, ...]], ...]

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Each site's name and value."""
        whole = self.p @ (self.q / self.s[:, None])
        for site, outer in self.sites:
            value = whole
            for phi in outer:
                value = phi.expand(value)
            yield site, value

    def whole_at(self, model: nn.Module) -> bool:
        """Whether every site is a linear layer's weight, all of the matrix or its transpose."""
        return all(
            _turned(outer) is not None
            and site.endswith(".weight")
            and _bare(model.get_submodule(site.removesuffix(".weight")))
            for site, outer in self.sites
        )

    def write(self) -> None:
        """θ of the matrix as it is now."""
        p, q, s = self.p.double(), self.q.double(), self.s.double()[:, None]
        pair = (p, q / s) if self.phi.side == "columns" else (p / s.mT, q)
        self.theta.copy_(self.phi.factors(*pair).to(self.theta))


class _Layer(nn.Linear):
    """The class that a linear layer gets whose weight is a product; see `become`."""

    _one: _Product
    _turned: bool

    @staticmethod
    def become(layer: nn.Module, one: _Product, turned: bool) -> None:
        """The layer itself, wherever it stands in a model, multiplies by P and Q; by their
        transposes where it is `turned`.
        """
        del layer._parameters["weight"]
        layer.__dict__.update(_one=one, _turned=turned)
        layer.__class__ = _Layer

    def _factors(self) -> tuple[Tensor, Tensor]:
        """(rows, r) and (r, columns) of the weight, with S⁻¹ left out between them."""
        p, q = self._one.p, self._one.q
        return (q.mT, p.mT) if self._turned else (p, q)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        left, right = self._factors()
        return left @ (right / self._one.s[:, None])

    def forward(self, x: Tensor) -> Tensor:
        left, right = self._factors()
        rows, rank = left.shape
        columns = right.shape[1]
        tokens = x.numel() // columns
        if tokens * rank * (rows + columns) > (tokens + rank) * rows * columns:
            return F.linear(x, self.weight, self.bias)
        inner = F.linear(x, right)
        return F.linear(inner / self._one.s.to(inner.dtype), left, self.bias)


class Coordinates:
    """What recovery trains of a tied model, and a twin without ties that runs with it.

    `parameters`: P and Q of each matrix of low rank, and θ of any other tie. Embeddings are
    left alone: no sharing has changed them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.twin: nn.Module = twin(model)
        self.twin.requires_grad_(False)
        kept = {id(getattr(m, "weight", None)) for m in _embeddings(model)}
        self._products: list[_Product] = []
        self._others: list[nn.Parameter] = []
        self._sites: dict[str, None] = {}
        for theta, sites in _by_theta(model).items():
            if id(theta) in kept:
                continue
            found = _product(model, theta, sites)
            if found is None:
                self._others.append(theta)
                self._sites.update(dict.fromkeys(site for site, _ in sites))
            else:
                self._products.append(found)
        self._placed: list[_Product] = []
        for one in self._products:
            if one.whole_at(self.twin):
                for site, outer in one.sites:
                    layer = self.twin.get_submodule(site.removesuffix(".weight"))
                    _Layer.become(layer, one, bool(_turned(outer)))
            else:
                self._placed.append(one)
        with torch.no_grad():
            self.place()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Each once, in the order of the model."""
        pairs = [p for one in self._products for p in (one.p, one.q)]
        return pairs + self._others

    @property
    def scales(self) -> list[Tensor]:
        """S of each matrix, which training leaves as it is."""
        return [one.s for one in self._products]

    def place(self) -> nn.Module:
        """The twin with the sites' present values, which gradients go back from."""
        for one in self._placed:
            for site, value in one.values():
                _put(self.twin, site, value)
        for site in self._sites:
            module, _, attr = site.rpartition(".")
            _put(self.twin, site, getattr(self.model.get_submodule(module), attr))
        return self.twin

    @torch.no_grad()
    def write(self) -> None:
        """The values as the model's θ."""
        for one in self._products:
            one.write()


def _embeddings(model: nn.Module) -> list[nn.Module]:
    asked = ("get_input_embeddings", "get_output_embeddings")
    found = [getattr(model, name)() for name in asked if hasattr(model, name)]
    return [m for m in found if m is not None]


def _by_theta(model: nn.Module) -> dict[nn.Parameter, list[tuple[str, Map]]]:
    """The sites, without indices, that take values from each parameter of a tie."""
    found: dict[nn.Parameter, dict[str, Map]] = {}
    for t in ties(model):
        for theta in t.thetas:
            named = zip(t.sites, t.maps, strict=True)
            found.setdefault(theta, {}).update({s.partition("[")[0]: m for s, m in named})
    return {theta: list(sites.items()) for theta, sites in found.items()}


def _product(
    model: nn.Module, theta: nn.Parameter, sites: list[tuple[str, Map]]
) -> _Product | None:
    """A parameter that is θ of one matrix of low rank; None for any other."""
    parts, sources = [], []
    for site, phi in sites:
        module, _, attr = site.rpartition(".")
        value = getattr(model.get_submodule(module), attr)
        inner, outer = phi.bind(tuple(value.shape)), []
        while isinstance(inner, Composed):
            outer.append(inner.outer)
            inner = inner.inner
        if not isinstance(inner, Factored):
            return None
        sources.append(inner)
        parts.append((site, tuple(reversed(outer))))
    first = sources[0]
    if any((s.out_shape, s.rank, s.side) != _kind(first) for s in sources):
        return None
    if tuple(theta.shape) != first.in_shape:
        return None
    p, s, q = balanced(first, theta)
    exact, s = s, s.to(torch.bfloat16).to(s)  # a scale to divide by in any format
    q = q * (s / exact)[:, None]
    return _Product(theta, first, nn.Parameter(p), s, nn.Parameter(q), tuple(parts))


def _turned(outer: tuple[Map, ...]) -> bool | None:
    """Whether maps after a product leave it (False) or transpose it (True); None: neither."""
    if all(
        isinstance(phi, Transpose) and {phi.dim0 % 2, phi.dim1 % 2} == {0, 1} for phi in outer
    ):
        return len(outer) % 2 == 1
    return None


def _bare(module: nn.Module) -> bool:
    """Whether this is a linear layer and nothing more: no hooks, no forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return type(module) is nn.Linear and not any(hooks) and "forward" not in vars(module)


def _kind(phi: Factored) -> tuple[tuple[int, ...], int, str]:
    return phi.out_shape, phi.rank, phi.side


def _put(model: nn.Module, site: str, value: Tensor) -> None:
    """A plain tensor in place of a parameter of a model that nobody else has."""
    name, _, attr = site.rpartition(".")
    module = model.get_submodule(name)
    module._parameters.pop(attr, None)
    module.__dict__[attr] = value


@contextmanager
def lowered(model: nn.Module, wanted: bool) -> Iterator[None]:
    """The weights of a model's layers in bfloat16 for a while, where `wanted`: a product in
    mixed precision would cast them anew each time. Other parameters stay as they are.
    """
    held: list[tuple[nn.Module, nn.Parameter]] = []
    try:
        for module in model.modules() if wanted else ():
            p = module._parameters.get("weight")
            if transposed(module) is None or p is None or p.dtype == torch.bfloat16:
                continue
            held.append((module, p))
            low = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
            module._parameters["weight"] = low
        yield
    finally:
        for module, p in held:
            module._parameters["weight"] = p
