"""Where a fit lies at the edge of what its maps allow, and χ² is not the null's law."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eadem.bind import kept_sites, resolved, site_values, ties
from eadem.maps import Bounded, Positive, SumToOne
from eadem.maps.base import LinearMap, Map

__all__ = ["boundary_notes"]

#: Probabilities below this are at zero.
ZERO = 1e-6


def boundary_notes(model: nn.Module, null: LinearMap, information: Tensor) -> tuple[str, ...]:
    """A note for each tie whose fit is near a bound (Self & Liang 1987)."""
    notes: list[str] = []
    errors: dict[str, Tensor] | None = None
    for t in ties(model):
        if any(_is(m, (Positive, Bounded)) for m in t.maps):
            if errors is None:
                errors = _standard_errors(model, null, information)
            bounded = any(_is(m, (Bounded,)) for m in t.maps)
            for name, p in model.named_parameters():
                held = name in errors and any(p is q for q in t.thetas)
                if held and bool(_near(p, errors[name], bounded).any()):
                    notes.append(_note(name, "within about two standard errors of"))
        for site, phi in zip(t.sites, t.maps, strict=True):
            if _is(phi, (SumToOne,)) and bool((t.value(site) < ZERO).any()):
                notes.append(_note(site, "at"))
    for name in (n for n, kind in kept_sites(model).items() if kind in ("rows", "whole")):
        where = resolved(model).slices[name]
        moves = null.dense()[where].abs().sum(1) > 1e-10
        if bool((site_values(model)[name].reshape(-1)[moves] < ZERO).any()):
            notes.append(_note(name, "at"))
    return tuple(dict.fromkeys(notes))


def _note(where: str, how: str) -> str:
    return (
        f"{where} is {how} a boundary of its map: there the statistic is not χ² but a mixture "
        "(Self & Liang 1987), and the p-value is too large or too small"
    )


def _near(theta: Tensor, error: Tensor, bounded: bool) -> Tensor:
    """Whether two standard errors of the value, σ'(θ)·error, reach a bound."""
    wide = theta.detach().to("cpu", torch.float64).reshape(-1)
    share = torch.sigmoid(wide)
    if bounded:
        return 2 * torch.maximum(share, 1 - share) * error > 1
    return 2 * share * error > -torch.nn.functional.logsigmoid(-wide)


def _is(phi: Map, kinds: tuple[type[Map], ...]) -> bool:
    inner = [v for v in phi.arguments().values() if isinstance(v, Map)]
    return isinstance(phi, kinds) or any(_is(m, kinds) for m in inner)


def _standard_errors(
    model: nn.Module, null: LinearMap, information: Tensor
) -> dict[str, Tensor]:
    """Of every trained free value, by parameter; infinite where nothing identifies it."""
    columns = null.dense()
    inner = columns.T @ information @ columns
    unit = inner.diagonal().clamp(min=0).sqrt()
    scaled = torch.where(unit > 0, unit, 1.0)
    inverse = torch.linalg.pinv(inner / scaled / scaled.unsqueeze(1), hermitian=True)
    errors = inverse.diagonal().clamp(min=0).sqrt() / scaled
    errors = torch.where(unit > 0, errors, torch.inf)
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    parts = torch.split(errors, list(trained.values()))
    return dict(zip(trained, parts, strict=True))
