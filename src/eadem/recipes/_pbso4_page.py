"""The page of the recipe pbso4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, measured, write
from eadem.report import numbers, page, pattern, terminal

__all__ = ["report", "table"]

_FITS = {
    "tied": "cell tied, λ = 1.909 Å",
    "wavelength": "cell tied, λ free",
    "cells": "a cell for each, λ = 1.909 Å",
    "rival": "cell tied, X-ray zero free",
}
_COLUMNS = [
    "refinement",
    "free",
    "χ²",
    "Rwp neutrons",
    "Rwp X-rays",
    "λ (Å)",
    "a, neutrons (Å)",
]
_LABELS = {"neutron": "Neutrons, D1A", "xray": "X-rays, Cu Kα"}
_UNITS = {"cell": " (Å)", "xyz": "", "u_iso": " (Å²)"}


def _signed(x: float, digits: int) -> str:
    return f"{x:+.{digits}f}".replace("-", "−")


def _fits(fits: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            str(fits[key]["free"]),
            numbers.count(round(fits[key]["chi2"])),
            numbers.percent(fits[key]["rwp"]["neutron"], 2),
            numbers.percent(fits[key]["rwp"]["xray"], 2),
            numbers.with_error(*fits[key]["wavelength"]),
            numbers.with_error(*fits[key]["cell"]["neutron"][0]),
        ]
        for key, name in _FITS.items()
        if key in fits
    ]


def table(fits: Mapping[str, Any]) -> Any:
    """The refinements as a terminal table."""
    return terminal.grid("One crystal, two instruments", _COLUMNS, _fits(fits))


def _suspects(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for t in found:
        changes = ", ".join(_signed(v, 4) for v in t["expected_change"].values())
        rows.append(
            [
                t["name"],
                str(t["df"]),
                f"{t['robust']['statistic']:.1f}",
                numbers.significant(t["robust"]["pvalue"], 2),
                changes,
                f"{t['raw']['statistic']:,.0f}",
                numbers.significant(t["raw"]["pvalue"], 2),
            ]
        )
    columns = ["let go", "df", "χ² by blocks", "p by blocks", "expected change"]
    columns += ["raw χ²", "raw p (not to be trusted)"]
    return page.table(columns, rows, numeric=(1, 2, 3, 4, 5, 6))


def _structure(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for r in found:
        if r["kind"] == "xyz" and not r["stderr"]:
            continue
        off = r["value"] - r["reference"]
        rows.append(
            [
                r["name"] + _UNITS[r["kind"]],
                numbers.with_error(r["value"], r["stderr"]),
                numbers.with_error(r["reference"], r["reference_stderr"]),
                _signed(off, 5),
            ]
        )
    return page.table(["", "Eadem", "GSAS-II", "difference"], rows, numeric=(1, 2, 3))


def _stages(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            s["name"],
            str(s["free"]),
            numbers.count(round(s["chi2"])),
            numbers.percent(s["rwp"]["neutron"], 2),
            numbers.percent(s["rwp"]["xray"], 2),
            str(s["iterations"]),
            numbers.seconds(s["seconds"]),
        ]
        for s in found
    ]
    columns = ["stage", "free", "χ²", "Rwp neutrons", "Rwp X-rays", "iterations", "time"]
    return page.table(columns, rows, numeric=range(1, 7))


def _instrument(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [[r["name"], numbers.with_error(r["value"], r["stderr"])] for r in found]
    return page.table(["", "value"], rows, numeric=(1,))


def _pattern(name: str, drawn: Mapping[str, Any], rwp: float) -> str:
    label = f"{_LABELS[name]}: Rwp {numbers.percent(rwp, 2)}, {len(drawn['x']):,} points."
    return pattern.pattern(
        pattern.Pattern(
            label,
            drawn["x"],
            drawn["observed"],
            drawn["calculated"],
            [(x, f"({hkl})") for x, hkl in drawn["marks"]],
        )
    )


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    fits, tests = metrics["fits"], metrics["suspects"]
    best = fits["wavelength"]
    (claim,) = metrics["claims"]
    came = claim["measured"]
    pairs = [[a, b, _signed(r, 3)] for a, b, r in metrics["correlations"]]
    serial = " and ".join(f"{v:.2f}" for v in metrics["serial"].values())
    rival = ""
    if "rival" in fits:
        zero, error = fits["rival"]["zero"]
        rival = (
            " The X-ray zero is a rival rather than a suspect: let go in place of λ it moves "
            f"to {numbers.with_error(zero, error)}° against the sample's displacement, and "
            f"takes the cell to a = {fits['rival']['cell']['neutron'][0][0]:.4f} Å, where the "
            "published one is 8.480. These data alone do not exclude it."
        )
    whole = page.Page(
        title="One crystal, two instruments",
        eyebrow="eadem run pbso4",
        lede="Lead sulphate, measured with neutrons and with X-rays. The structure is tied, "
        "the instruments are free, and the data are asked whether they agree.",
        facts=[
            (numbers.percent(best["rwp"]["neutron"], 2), "Rwp, neutrons"),
            (numbers.percent(best["rwp"]["xray"], 2), "Rwp, X-rays"),
            (_signed(came["predicted"], 5) + " Å", "change of λ that the test expects"),
            (_signed(came["refitted"], 5) + " Å", "change of λ on refitting"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "patterns",
                "The patterns",
                "With the wavelength free.",
                [_pattern(k, d, best["rwp"][k]) for k, d in metrics["patterns"].items()],
            ),
            page.Section(
                "verdict",
                "Is it one cell?",
                "The score test at the fit with the cell tied and the nominal wavelength, "
                "of each suspect by itself; nothing is fitted again. Neighbouring residuals "
                f"are alike (correlations {serial}), so the p-values to read are those by "
                "blocks of 40 points." + rival,
                [_suspects(tests), page.table(_COLUMNS, _fits(fits), numeric=range(1, 7))],
            ),
            page.Section(
                "structure",
                "The structure",
                "Standard errors are those of least squares, in units of the last digits; with "
                "residuals that are alike they are too small, here and in the reference, an "
                "independent joint refinement by GSAS-II with λ = 1.909 Å.",
                [_structure(metrics["structure"])],
            ),
            page.Section(
                "course",
                "The refinement",
                "Each stage lets go what it names, beside what those before it did.",
                [
                    _stages(metrics["stages"]),
                    page.foldout("Instruments", _instrument(metrics["instrument"])),
                    page.foldout(
                        "Strongest correlations",
                        page.table(["", "", "correlation"], pairs, numeric=(2,)),
                    ),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
