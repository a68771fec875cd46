"""The matrices of a model by layer and kind: what is kept of each, and which have what in
common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from eadem._share.families import Matrix
from eadem._share.measure import kept_by
from eadem._share.plans import Entry, Plan
from eadem.report.colour import HUES, oklch

__all__ = ["kept", "mosaic"]

_LETTERS = 'font-family="var(--sans)" font-size="11" fill="var(--soft)"'
_SIDE, _GAP, _LEFT, _TOP = 20.0, 3.0, 92.0, 18.0


def kept(e: Entry, group: Sequence[Matrix]) -> float:
    """The share of their numbers that the matrices of a tie keep, at most all."""
    return min(kept_by(e, group) / sum(m.size for m in group), 1.0)


def _colour(hue: float) -> str:
    red, green, blue = (int(v) for v in oklch(0.62, 0.14, hue))
    return f"#{red:02x}{green:02x}{blue:02x}"


def mosaic(found: Sequence[Matrix], plan: Plan, evidence: Mapping[str, float]) -> str:
    """One square for each matrix, layers across and kinds down, filled as far as its numbers
    are kept. Matrices by themselves are filled in ink; those of one tie in one colour.
    """
    by_site = {m.site: m for m in found}
    ties = {s: (i, e) for i, e in enumerate(plan.entries) for s in e.sites}
    rows = list(dict.fromkeys(f"{m.stack} {m.kind}".strip() for m in found))
    layers = sorted({m.layer for m in found})
    together = [i for i, e in enumerate(plan.entries) if len(e.sites) > 1]
    parts = [
        f'<text x="{_LEFT - 8:g}" y="{_y(r) + 14:g}" {_LETTERS} text-anchor="end">'
        f"{escape(name)}</text>"
        for r, name in enumerate(rows)
    ]
    every = max(1, len(layers) // 8)
    parts += [
        f'<text x="{_x(c) + _SIDE / 2:g}" y="12" {_LETTERS} text-anchor="middle">{n}</text>'
        for c, n in enumerate(layers)
        if c % every == 0
    ]
    for m in found:
        i, e = ties.get(m.site, (-1, None))
        share = 1.0 if e is None else kept(e, [by_site[s] for s in e.sites])
        x, y = _x(layers.index(m.layer)), _y(rows.index(f"{m.stack} {m.kind}".strip()))
        ink = "var(--soft)"
        if i in together:
            ink = _colour(HUES[together.index(i) % len(HUES)])
        said = escape(_said(m, e, share, evidence), quote=True)
        high = max(share * _SIDE, 1.0)
        parts.append(
            f'<g tabindex="0" role="img" aria-label="{said}" data-tip="{said}">'
            f'<rect x="{x:g}" y="{y:g}" width="{_SIDE:g}" height="{_SIDE:g}" rx="2" '
            'fill="var(--faint)"/>'
            f'<rect x="{x:g}" y="{y + _SIDE - high:.1f}" width="{_SIDE:g}" '
            f'height="{high:.1f}" rx="2" fill="{ink}"/></g>'
        )
    width, height = _x(len(layers)), _y(len(rows))
    caption = "Layers across, matrices down; filled as far as a matrix keeps its numbers"
    return (
        f'<figure class="heat"><div class="scroll"><svg viewBox="0 0 {width:g} {height:g}" '
        f'style="width:{width:.0f}px;max-width:none" role="group" aria-label="{caption}">'
        f"{''.join(parts)}</svg></div><figcaption>{caption}</figcaption></figure>"
    )


def _x(column: int) -> float:
    return _LEFT + column * (_SIDE + _GAP)


def _y(row: int) -> float:
    return _TOP + row * (_SIDE + _GAP)


def _said(m: Matrix, e: Entry | None, share: float, evidence: Mapping[str, float]) -> str:
    if e is None:
        return f"{m.site}\nas it was"
    others = [s for s in e.sites if s != m.site]
    text = f"{m.site}\n{e.method}, rank {e.rank}: {share:.0%} kept"
    if others:
        text += "\nwith " + "\n".join(others[:4])
    cost = evidence.get(", ".join(e.sites))
    return text if cost is None else f"{text}\ncosts {cost:.5f} of loss"
