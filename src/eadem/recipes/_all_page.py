"""The page of a run of all recipes: every statement with what was expected and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eadem.report import page
from eadem.report.numbers import seconds, value

__all__ = ["render"]

#: Class and sign of each status.
_LOOK = {
    "holds": ("holds", "✓"),
    "does not hold": ("fails", "✗"),
    "holds in part": ("part", "◐"),
    "not run": ("idle", "–"),
}
#: Characters of a measured value; the study has it all.
_LONG = 420


def render(record: Mapping[str, Any]) -> str:
    """The page as HTML text, from what `claims.json` holds."""
    claims, studies = record["claims"], record["recipes"]
    number = {status: sum(c["status"] == status for c in claims) for status in _LOOK}
    whole = sum(s["state"] == "whole" for s in studies)
    took = sum(s["seconds"] or 0.0 for s in studies)
    return page.render(
        page.Page(
            title="What parameter sharing claims, and what came out",
            eyebrow="Eadem · all recipes" + (", quick" if record["quick"] else ""),
            lede="Each statement is measured by the studies named with it. What decides was "
            "fixed in the study before it was run, and what does not hold is shown so.",
            facts=[
                (f"{number['holds']} of {len(claims)}", "statements hold"),
                (str(number["holds in part"]), "hold in part"),
                (str(number["does not hold"]), "do not hold"),
                (str(number["not run"]), "not run"),
                (f"{whole} of {len(studies)}", "studies whole"),
            ],
            sections=[
                page.Section("overview", "At a glance", blocks=[_chips(claims)]),
                page.Section("claims", "Claims", blocks=[_claims(claims)]),
                page.Section("studies", "Studies", blocks=[_studies(studies)]),
            ],
            footer=[
                f"eadem run --all{' --quick' if record['quick'] else ''} · "
                f"seed {record['seed']} · {record['device']} · {seconds(took)} in all"
            ],
        )
    )


def _chips(claims: Sequence[Mapping[str, Any]]) -> str:
    """One small field a statement, leading to it."""
    items = []
    for claim in claims:
        kind, sign = _LOOK[claim["status"]]
        tip = f"{claim['id']}: {claim['status']}\n{claim['statement']}"
        items.append(
            f'<li class="{kind}"><a href="#{claim["id"]}" '
            f'data-tip="{escape(tip, quote=True)}">'
            f"<b>{escape(claim['id'])}</b> <span>{sign}</span>"
            f'<span class="unseen"> {claim["status"]}</span></a></li>'
        )
    return f'<ul class="chips">{"".join(items)}</ul>'


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    items = []
    for claim in claims:
        kind, sign = _LOOK[claim["status"]]
        many = len(claim["results"]) > 1 or claim["status"] == "holds in part"
        items.append(
            f'<li class="{kind}" id="{escape(claim["id"])}"><div class="verdict">'
            f"<b>{escape(claim['id'])}</b><span>{sign} {claim['status']}</span></div>"
            f"<div><p>{escape(claim['statement'])}</p>"
            + ("".join(_result(r, many) for r in claim["results"]) or _nothing())
            + "</div></li>"
        )
    return f'<ol class="claims">{"".join(items)}</ol>'


def _nothing() -> str:
    return "<dl><dt>measured</dt><dd>by no study of this run</dd></dl>"


def _result(result: Mapping[str, Any], many: bool) -> str:
    kind, sign = _LOOK["holds" if result["holds"] else "does not hold"]
    verdict = f' <span class="{kind}">{sign}</span>' if many else ""
    rows = [
        ("study", _link(result["recipe"], result["page"]) + verdict),
        ("said", escape(result["text"])),
        ("asked", escape(result["predicate"])),
        ("expected", escape(_short(value(result["expected"])))),
        ("measured", escape(_short(value(result["measured"])))),
    ]
    return f"<dl>{''.join(f'<dt>{k}</dt><dd>{v}</dd>' for k, v in rows)}</dl>"


def _short(text: str) -> str:
    return (
        text if len(text) <= _LONG else text[:_LONG].rpartition(" ")[0] + " … (see the study)"
    )


def _link(name: str, target: str | None) -> str:
    words = escape(name)
    return f'<a href="{escape(target, quote=True)}">{words}</a>' if target else words


def _studies(studies: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for s in studies:
        state = s["state"] if s["state"] != "whole" else seconds(s["seconds"] or 0.0)
        why = f"<small>{escape(s['reason'])}</small>" if s["reason"] else ""
        kind = {"failed": ' class="fails"', "missing": ' class="part"'}.get(s["state"], "")
        rows.append(
            f"<tr{kind}><td>{_link(s['recipe'], s['page'])}</td>"
            f'<td class="wrap">{escape(s["title"])}{why}</td>'
            f'<td class="n"><span>{escape(state)}</span></td></tr>'
        )
    return (
        '<div class="scroll"><table class="studies"><thead><tr><th>study</th><th>what it shows'
        f'</th><th class="n">time</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
