"""Puts into the page of a system the picture that says most of its recipe's full run.

    python docs/_figures.py FOLDER …

The folders are those of `_runs.py`. Each run's report is opened in headless Chromium
(playwright; Pillow for the colours), one picture of it goes to `systems/figures/NAME.png`, and
the page shows it between two marks before the run's claims; all else is left alone.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- figure -->", "<!-- end of figure -->"
MARKED = re.compile(f"{BEGIN}.*?{END}\n\n", re.DOTALL)
RUN = "<!-- run -->"
#: The section of a recipe's report that has the picture, which of its pictures, how wide.
PICTURES: dict[str, tuple[str, int, int]] = {
    "autoencoder": ("gap", 0, 430),
    "bias-variance": ("split", 0, 430),
    "capacity": ("fitted", 0, 430),
    "cost": ("ratios", 0, 860),
    "depth": ("limit", 0, 430),
    "dna-motif": ("filter", 0, 640),
    "earthquakes": ("series", 0, 430),
    "gene-hmm": ("amount", 0, 430),
    "global-fit": ("theoph", 1, 860),
    "gnn-hops": ("accuracy", 0, 860),
    "heartbeat": ("found", 0, 430),
    "init": ("output", 0, 430),
    "landscape": ("spectrum", 0, 430),
    "market": ("found", 0, 430),
    "mnist": ("learning", 0, 430),
    "one-declaration": ("solvers", 0, 430),
    "pair-hmm": ("tests", 0, 430),
    "palindrome": ("gain", 0, 430),
    "pbso4": ("patterns", 0, 860),
    "pinn-periodic": ("convection", 0, 430),
    "recurrent": ("text", 0, 430),
    "rotation": ("accuracy", 0, 430),
    "sample-size": ("curve", 0, 430),
    "siamese": ("roc", 0, 430),
    "spoken": ("found", 0, 430),
    "spoken-digits": ("accuracy", 0, 430),
    "subspace": ("errors", 0, 860),
    "tied-hmm": ("error", 0, 430),
    "transformer-embedding": ("text", 0, 430),
    "transformer-kv": ("grid", 0, 860),
    "unet": ("dice", -1, 430),
    "verdict": ("size", 0, 430),
}
KINDS = ".chart, figure, .panels"


def runs(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of full runs, and what they measured."""
    for folder in folders:
        for path in [folder / "metrics.json", *sorted(folder.glob("*/metrics.json"))]:
            if not path.is_file() or ".partial" in path.parent.name:
                continue
            metrics = json.loads(path.read_text(encoding="utf-8"))
            if metrics["quick"]:
                raise SystemExit(
                    f"the run of {metrics['recipe']} is a quick one; run it in full"
                )
            yield path.parent, metrics


def shown(text: str, name: str, said: str) -> str:
    """The page with the picture, in its place or before the claims of the run."""
    made = f"{BEGIN}\n![{said}](figures/{name}.png){{ width=520 }}\n{END}\n\n"
    if MARKED.search(text):
        return MARKED.sub(lambda _: made, text)
    return text.replace(RUN, made + RUN)


def taken(browser: Any, folder: Path, name: str) -> str:
    """Write the picture of a run; what it says of itself."""
    from PIL import Image

    section, index, width = PICTURES[name]
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        device_scale_factor=2 if width < 600 else 1,
        color_scheme="light",
    )
    page.goto((folder / "report.html").resolve().as_uri())
    every = [e for e in page.query_selector_all(f"#{section} :is({KINDS})") if e.is_visible()]
    if not every:
        raise SystemExit(f"{folder / 'report.html'} has no picture in its section {section!r}")
    target = HERE / "systems" / "figures" / f"{name}.png"
    target.parent.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(every[index].screenshot())).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)
    said = every[index].evaluate(
        "e => { const named = e.matches('[aria-label]') ? e : e.querySelector('[aria-label]');"
        " return named ? named.getAttribute('aria-label') : '' }"
    )
    heading = page.query_selector(f"#{section} h2").inner_text().strip()
    page.close()
    words = f"{heading} {said.splitlines()[0] if said else ''}"
    return re.sub(r"[\[\]\s]+", " ", words).strip()


def main(folders: Sequence[str]) -> None:
    """Take the pictures of the runs in `folders`, and renew their pages."""
    if not folders:
        raise SystemExit("which runs? python docs/_figures.py FOLDER …")
    found = list(runs([Path(folder) for folder in folders]))
    if not found:
        raise SystemExit("there is no metrics.json of a finished run")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = shutil.which("chromium")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for folder, metrics in found:
            name = metrics["recipe"]
            page = HERE / "systems" / f"{name}.md"
            text = shown(page.read_text(encoding="utf-8"), name, taken(browser, folder, name))
            page.write_text(text, encoding="utf-8")
            print(name)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
