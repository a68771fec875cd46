"""The page and the table of the study `transformer-kv`, from its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes._page import claims, footer, mean, measured, write
from eadem.report import bars, numbers, page, terminal

__all__ = ["report", "table"]

NAMES = {
    "none": "none",
    "embedding": "embeddings and classifier",
    "adjacent": "K, V of adjacent layers",
    "all": "K, V of all layers",
    "k=v": "K = V",
    "encoder-decoder": "K, V of encoder and decoder",
    "blocks": "whole blocks",
}
AFTER = {
    "tied": "tied still",
    "most": "the most blamed relaxed",
    "least": "the least blamed relaxed",
}
COLUMNS = [
    "shared", "free values", "cache, bytes", "loss", "spread", "accuracy", "whole", "alignment",
    "letters a second",
]  # fmt: skip
STRICT = 0.01


def _of(runs: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    return [float(r[what]) for r in runs]


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    found = []
    speed = metrics["tokens_per_second"]
    for key, name in NAMES.items():
        runs = metrics["patterns"][key]
        loss = _of(runs, "loss")
        found.append(
            [
                name,
                numbers.count(runs[0]["free"]),
                numbers.count(runs[0]["bytes"]),
                f"{mean(loss):.3f}",
                f"{min(loss):.3f}–{max(loss):.3f}",
                *(numbers.percent(mean(_of(runs, w))) for w in ("accuracy", "whole")),
                numbers.percent(mean(_of(runs, "alignment"))),
                f"{speed[key] / speed['none']:.2f}×",
            ]
        )
    return found


def table(folder: Path) -> Any:
    """The grid as a terminal table."""
    return terminal.grid("Sequences not learned from", COLUMNS, _rows(measured(folder)))


def _tasks(metrics: Mapping[str, Any]) -> str:
    groups = []
    for task, title in enumerate(("Copying", "Reversing", "Sorting")):
        rows = []
        for key, name in NAMES.items():
            runs = [r["by_task"][task] for r in metrics["patterns"][key]]
            short = name.replace("embeddings and classifier", "embeddings")
            rows.append(
                bars.Bar(
                    short.replace("K, V of ", "").replace("encoder and decoder", "enc–dec"),
                    [mean(runs)],
                    numbers.percent(mean(runs)),
                    min(runs),
                    max(runs),
                    2 if key == "none" else 1,
                )
            )
        groups.append(bars.Group(title, rows))
    return bars.bars(bars.Bars("Accuracy by task", "share of letters", groups))


def _verdicts(metrics: Mapping[str, Any]) -> list[list[str]]:
    found = []
    for key, name in NAMES.items():
        each = [r["evidence"] for r in metrics["patterns"][key] if r["evidence"]]
        if not each:
            continue
        rejected = [sum(s["holm"] < STRICT for s in e["sites"].values()) for e in each]
        worst = max(each[0]["sites"].items(), key=lambda s: float(s[1]["statistic"]))
        found.append(
            [
                name,
                f"{mean([float(e['joint']['statistic']) for e in each]):.1f}",
                numbers.significant(float(each[0]["joint"]["pvalue"])),
                f"{', '.join(map(str, rejected))} of {len(each[0]['sites'])}",
                f"{worst[0]} (z = {float(worst[1]['statistic']):.1f})",
            ]
        )
    return found


def _after(metrics: Mapping[str, Any]) -> list[list[str]]:
    runs = metrics["patterns"]["all"]
    base = [r["after_tied"]["loss"] for r in runs]
    found = []
    for key, name in AFTER.items():
        each = [r[f"after_{key}"] for r in runs]
        away = [e["loss"] - b for e, b in zip(each, base, strict=True)]
        change = f"{mean(away):+.4f} ({min(away):+.4f} to {max(away):+.4f})".replace("-", "−")
        found.append(
            [
                name,
                f"{mean(_of(each, 'loss')):.4f}",
                "" if key == "tied" else change,
                numbers.percent(mean(_of(each, "accuracy"))),
                numbers.percent(mean(_of(each, "alignment"))),
            ]
        )
    return found


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    grid = metrics["patterns"]
    relaxed = grid["all"][0]["relaxed"]
    loose = [[AFTER[k], ", ".join(relaxed[k])] for k in ("most", "least")]
    whole = page.Page(
        title="What a transformer can share",
        eyebrow="eadem run transformer-kv",
        lede="Seven patterns of sharing on one encoder–decoder, each a few ties: what they "
        "save, what they cost, and which of them the data would undo.",
        facts=[
            (numbers.count(grid["none"][0]["free"]), "free values, nothing shared"),
            (numbers.count(grid["blocks"][0]["free"]), "whole blocks shared"),
            (
                f"{grid['k=v'][0]['bytes'] / grid['none'][0]['bytes']:.0%}",
                "of the cache, with K = V",
            ),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "grid",
                "The grid",
                f"After {metrics['steps']} steps of Adam on the same sequences from the same "
                "start; means over the repeats, and the spread of the loss. The cache is that "
                "of one sequence, distinct tensors counted; a projection shared by layers "
                "with different inputs saves none of it. Speed is relative to nothing shared.",
                [
                    page.table(COLUMNS, _rows(metrics), numeric=tuple(range(1, 9))),
                    _tasks(metrics),
                ],
            ),
            page.Section(
                "evidence",
                "The evidence that each tie gives for and against itself",
                "Mean tests on fresh sequences at each tied fit: all sites together, and the "
                "sites that are rejected at 1 % after Holm's correction, by repeat.",
                [
                    page.table(
                        ["shared", "z, mean", "p", "sites rejected", "blamed most"],
                        _verdicts(metrics),
                        numeric=(1, 2, 3),
                    )
                ],
            ),
            page.Section(
                "relax",
                "What relaxing gives back",
                "Where all layers share keys and values, four sites are let go by a matrix of "
                f"rank 4 each, and all three networks are trained on for {metrics['more']} "
                "steps of the same sequences.",
                [
                    page.table(
                        ["network", "loss", "against tied", "accuracy", "alignment"],
                        _after(metrics),
                        numeric=(1, 2, 3, 4),
                    ),
                    page.foldout(
                        "Sites relaxed in the first repeat", page.table(["", "sites"], loose)
                    ),
                ],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)
