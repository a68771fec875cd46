"""Letting a site go from its tie by as much as the data ask for, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import own_values, remap, site_map, site_values, ties
from eadem.errors import EademError, TieConflict, Unsupported
from eadem.evidence._spectrum import Spectrum, site_gradients, spectrum
from eadem.evidence.score import EvidenceError
from eadem.maps.base import Map
from eadem.maps.remainder import Factors, Loose, LowRank, Near

__all__ = ["Relaxed", "penalty", "relax", "relaxed"]

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
Loss = Callable[[nn.Module, Any], Tensor]


class Relaxed:
    """A site that departs from its tie: `site`, and `spectrum` where a rank was proposed."""

    def __init__(self, model: nn.Module, site: str, spectrum: Spectrum | None = None) -> None:
        self._model, self.site, self.spectrum = model, site, spectrum

    @property
    def map(self) -> Loose:
        """The site's map in its tie. Raises TieConflict where it departs no more."""
        found = site_map(self._model, self.site)
        if not isinstance(found, Loose):
            raise TieConflict(f"{self.site!r} is held to its tie again: it is {found!r}(θ)")
        return found

    @property
    def remainder(self) -> Tensor:
        """W − φθ at the site, in its shape, differentiable."""
        phi, own = self.map, own_values(self._model, self.site)
        shape = site_values(self._model)[self.site].shape
        return phi.remainder(tuple(shape)).expand(own)

    def penalty(self) -> Tensor:
        """½·λ·‖W − φθ‖², a scalar to be added to the loss; zero where there is no λ."""
        phi, own = self.map, own_values(self._model, self.site)
        return 0.5 * phi.weight * own.square().sum() if isinstance(phi, Near) else own.sum() * 0

    def tie(self, optimizer: Optimizers = None) -> float:
        """Hold the site to its tie again; the shared values stay. Returns how far it was:
        the largest |W − φθ|, NaN on the meta device.
        """
        rest = self.remainder.detach()
        away = math.nan if rest.is_meta else float(rest.abs().max()) if rest.numel() else 0.0
        remap(self._model, self.site, self.map.shared, None, _several(optimizer))
        return away

    def __repr__(self) -> str:
        try:
            said = f"{site_map(self._model, self.site)!r}(θ)"
        except EademError:
            said = "not tied any more"
        return f"Relaxed({self.site} = {said})"


def relaxed(model: nn.Module) -> list[Relaxed]:
    """The sites of a model that depart from their ties, as from a file that was loaded.

    >>> import eadem
    >>> model = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    >>> _ = eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.LowRank(1)})
    >>> relaxed(model)
    [Relaxed(1.weight = LowRank(rank=1)(θ))]
    """
    return [
        Relaxed(model, site)
        for t in ties(model)
        for site, phi in zip(t.sites, t.maps, strict=True)
        if isinstance(phi, Loose)
    ]


def penalty(model: nn.Module) -> Tensor:
    """Σ ½·λ·‖W − φθ‖² over the sites that are kept near to their ties, to be added to a loss.

    Raises TieConflict where there are none.

    >>> import eadem
    >>> model = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    >>> _ = eadem.tie(model, "*.weight")
    >>> _ = relax(model, "1.weight", penalty=0.1)
    >>> penalty(model).item()
    0.0
    """
    near = [r for r in relaxed(model) if isinstance(r.map, Near)]
    if not near:
        raise TieConflict(
            "no site is kept near to its tie; see eadem.relax(model, site, penalty=…)"
        )
    return torch.stack([r.penalty() for r in near]).sum()


def relax(
    model: nn.Module,
    site: str,
    rank: int | None = None,
    penalty: float | None = None,
    *,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    optimizer: Optimizers = None,
    seed: int = 0,
) -> Relaxed:
    """Let a site go from its tie by a remainder of its own, W = φθ + R, which starts at zero.

    The model's function does not change, nor do the parameters that hold the shared values;
    the remainder is one more parameter, under the site's name: a matrix of low rank (`LowRank`)
    or, with `penalty` λ, any values, and ½·λ·‖R‖² to be added to the loss (`Near`): soft
    sharing, by `eadem.penalty(model)`. A site that departs already may be given a higher rank.

    Args:
        model: a tied model.
        site: a whole parameter in one tie.
        rank: of the remainder. None: as many directions as the gradients there pull away in,
            beyond noise (`eadem.evidence.spectrum`), from `loss` and `batches`.
        penalty: λ, instead of a rank.
        loss: `loss(model, batch)` is a scalar, the mean or sum over a micro-batch.
        batches: at least eight micro-batches of one size.
        optimizer: one or several that step the model's parameters. They keep their state, and
            step the new parameter beside the shared ones.
        seed: of the drawn factor. UᵀV starts with U = 0 and V with orthonormal rows, so that
            gradients flow, and V is uniform over its directions.

    Where the site holds the shared values, these move to the next site of the tie, as does
    their parameter. Where no site is left to hold them, the site's parameter holds both, flat.

    Returns the relaxed site, with `.penalty()` and `.tie()`, which takes the remainder back.

    Raises:
        NoSuchSite: the site is not tied.
        TieConflict: more than one tie has a say in it, or it departs in another way already.
        EvidenceError: no rank, no penalty and nothing to find one from; or noise is all there.
        ShapeError: no matrix of that rank fits the site.
        Unsupported: an optimizer's state cannot be carried over. The model is as it was.

    >>> import eadem
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    >>> _ = eadem.tie(model, "*.weight")
    >>> x = torch.randn(2, 4)
    >>> before = model(x)
    >>> found = relax(model, "2.weight", rank=1)
    >>> bool((model(x) == before).all()), [name for name, _ in model.named_parameters()]
    (True, ['0.weight', '0.bias', '2.weight', '2.bias'])
    """
    phi = site_map(model, site)
    if rank is not None and penalty is not None:
        raise EvidenceError("relax takes a rank or a penalty, not both; choose one")
    had = phi if isinstance(phi, Loose) else None
    found = None
    if rank is None and penalty is None:
        if loss is None or batches is None:
            raise EvidenceError(
                "relax needs a rank, a penalty, or loss= and batches= to find a rank from"
            )
        found = spectrum(site_gradients(model, site, loss, batches), seed=seed)
        rank = found.rank + (had.rank if isinstance(had, LowRank) else 0)
        if not found.rank:
            raise EvidenceError(
                f"the gradients at {site!r} pull away from its tie no more than noise "
                f"(p = {found.pvalues[0]:.3g}); give a rank or a penalty to relax it "
                "all the same"
            )
    shape = tuple(site_values(model)[site].shape)
    new, own = _wider(model, site, phi, rank, penalty, shape, seed)
    remap(model, site, new, own, _several(optimizer))
    return Relaxed(model, site, found)


def _wider(
    model: nn.Module,
    site: str,
    phi: Map,
    rank: int | None,
    penalty: float | None,
    shape: tuple[int, ...],
    seed: int,
) -> tuple[Loose, Tensor]:
    """The new map of a site, and the values of its remainder."""
    shared = phi.shared if isinstance(phi, Loose) else phi
    new: Loose
    if penalty is not None:
        new = Near(penalty, shared=shared)
    else:
        assert rank is not None
        new = LowRank(rank, shared=shared)
    rest = new.remainder(shape)
    drawn = torch.zeros(rest.in_shape, dtype=torch.float64)
    if isinstance(rest, Factors):
        drawn = rest.start(torch.Generator().manual_seed(seed))
    if not isinstance(phi, Loose):
        return new, drawn
    held = own_values(model, site).detach()
    if isinstance(phi, LowRank) and isinstance(new, LowRank) and new.rank > phi.rank:
        return new, torch.cat([held, drawn[phi.rank :].to(held)])
    if isinstance(phi, Near) and isinstance(new, Near):
        return new, held
    raise TieConflict(
        f"{site!r} departs from its tie already, by {phi!r}; a higher rank or another penalty "
        "can be asked for, and anything else after Relaxed.tie() or eadem.tie"
    )


def _several(optimizer: Optimizers) -> Sequence[torch.optim.Optimizer]:
    if optimizer is None:
        return ()
    found = optimizer if isinstance(optimizer, Sequence) else (optimizer,)
    if not all(isinstance(o, torch.optim.Optimizer) for o in found):
        raise Unsupported(
            f"optimizer={optimizer!r:.80}; give the optimizer (of torch.optim) that steps the "
            "model's parameters, or a list of several"
        )
    return found
