"""SmolLM2-135M shared at 80 % of its blocks' weights, recovered beside its original.

θ comes from `python studies/share_smollm2.py --work FOLDER`. The shared model is trained on
plays of Shakespeare that no other figure uses, towards their text, and a part of the steps on
text that the original wrote itself, towards the original's outputs.
The original's own block matrices are trained on the same text, at the same rate, for about as
many seconds of processor time (for the shared model the writing of its samples counts).

Both are judged, before and after, on windows of other plays and of the calibration's plays that
neither statistics nor training have read, on Jane Austen's novels and on the documentation
strings of Python's standard library. The gap is the shared model's loss less the original's:
before, with neither trained; after, with both trained as long. Won back is 1 − after / before;
asked are a half on the text's own kind and a third on what recovery never saw. Windows are
drawn with repetition (bootstrap) for the error of each. It takes an hour of one core for each
of the two.

    python studies/share_recover.py original FOLDER --steps 1280
    python studies/share_recover.py shared FOLDER --steps 940 --samples 256
    python studies/share_recover.py gaps FOLDER

The first two write `original.json` and `shared.json` into FOLDER, which the third reads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from share_smollm2 import NOVELS, docstrings, novels, opened, other_docstrings, plays

#: Letters from the beginning of a play of the calibration that statistics and judges may read.
BEGUN = 37000


def reading(tokenizer: Any, length: int, size: int, mixed: bool = False) -> list[Any]:
    """Batches of plays that no loss is measured on.

    Twelve plays, and what follows in the eight whose beginnings gave the statistics. Where
    `mixed`, with the documentation strings of modules that no loss is measured on.
    """
    import torch

    from eadem._share import text

    many = plays()
    found = "\n".join([*many[8:20], *(p[BEGUN + 3000 :] for p in many[:8])])
    ids = text.windows(text.tokens(found, tokenizer), length)
    if mixed:
        strings = "\n\n".join(other_docstrings())
        ids = torch.cat([ids, text.windows(text.tokens(strings, tokenizer), length)])
        ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    return text.batches(ids, size)


def judged(tokenizer: Any, most: int, austen: Path) -> dict[str, Any]:
    """Windows of 256 tokens that nothing was trained on, by text, each a batch."""
    import torch

    from eadem._share import text

    def cut(found: list[str]) -> Any:
        return text.windows(text.tokens("\n".join(found), tokenizer), 256)

    begun = cut([p[:BEGUN] for p in plays()[:8]])
    read = text.read(begun, None, length=256, most=(24, 8, 8), size=1)
    taken = torch.cat([b.ids for b in [*read.fit, *read.choose]])
    found = {
        "next part": begun[~(begun[:, None] == taken).all(-1).any(-1)],
        "other plays": cut([p[:9000] for p in plays()[20:]]),
        "novels": cut([n[3000:20000] for n in novels(austen)]),
        "docstrings": cut([docstrings()]),
    }
    return {name: text.batches(text._spread(each, most), 1) for name, each in found.items()}


def losses(model: Any, texts: dict[str, Any]) -> dict[str, list[float]]:
    """Of each window, by text: nats a token."""
    from eadem._share.loss import Loss

    return {name: [Loss(model, [b])(model) for b in found] for name, found in texts.items()}


def gaps(folder: Path) -> None:
    """Print what the two runs give: gaps before and after, and what was won back."""
    import numpy as np

    shared, original = (
        json.loads((folder / f"{what}.json").read_text()) for what in ("shared", "original")
    )
    draw = np.random.default_rng(0)
    print("| text | original | shared | gap before | gap after | won back | 95 % |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    names = list(shared["after"])
    for title, read in [*((n, [n]) for n in names), ("plays", names[:2])]:
        ends = [np.concatenate([one["after"][n] for n in read]) for one in (original, shared)]
        starts = [
            np.concatenate([one["before"][n] for n in read]) for one in (original, shared)
        ]
        before, after = starts[1] - starts[0], ends[1] - ends[0]
        drawn = draw.integers(len(after), size=(10000, len(after)))
        back = 1 - after[drawn].mean(1) / before[drawn].mean(1)
        low, high = np.quantile(back, [0.025, 0.975])
        print(
            f"| {title} | {ends[0].mean():.3f} | {ends[1].mean():.3f} | {before.mean():+.3f} | "
            f"{after.mean():+.3f} | {1 - after.mean() / before.mean():.0%} | "
            f"{low:.0%} to {high:.0%} |"
        )


def main() -> None:
    """Train one of the two, and print and write its losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["original", "shared", "gaps"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--text", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=0, help="windows of its own text")
    parser.add_argument("--part", type=float, default=0.15, help="of the steps: on these")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tests", type=int, default=48, help="windows of each text")
    parser.add_argument("--mixed", action="store_true", help="docstrings beside the plays")
    parser.add_argument("--novels", type=Path, default=NOVELS, help="folder of janeaustenr")
    parser.add_argument("--name", help="of what is written, in place of the first word")
    parser.add_argument("--state", type=Path, help="file to go on from after a break")
    given = parser.parse_args()
    if given.what == "gaps":
        gaps(given.folder)
        return

    import copy

    import eadem
    from eadem._share import matrices
    from eadem._share.loss import Loss
    from eadem._share.recover import plain_attention, recover, text_loss, trained
    from eadem._share.samples import own_samples

    model, tokenizer = opened()
    texts = judged(tokenizer, given.tests, given.novels)
    batches = reading(tokenizer, given.length, given.batch, given.mixed)
    original = copy.deepcopy(model) if given.what == "shared" else model
    if given.what == "shared":
        eadem.load(model, given.folder / f"theta-{given.keep:g}.safetensors")
    out: dict[str, Any] = {k: str(v) for k, v in vars(given).items()}
    out["before"] = losses(model, texts)

    def run(one: Any, said: Any) -> list[float]:
        options = {"steps": given.steps, "rate": given.rate, "said": said}
        options |= {"state": given.state, "every": 250}
        if given.what == "shared":
            more = {"text": given.text, "samples": samples, "part": given.part}
            return recover(one, original, batches, **more, **options)
        sites = [one.get_parameter(m.site) for m in matrices(one)]
        kind = Loss(one, []).kind
        with plain_attention(one):
            return trained(one, sites, lambda b: text_loss(one, b, kind), batches, **options)

    start = time.process_time()
    samples: list[Any] = []
    if given.what == "shared" and given.samples:
        samples = own_samples(original, given.samples, length=given.length, size=given.batch)
        out["seconds of samples"] = time.process_time() - start
        print("samples", out["seconds of samples"], flush=True)

    def said(step: int, total: int, loss: float) -> None:
        if step % 10 == 0 or step == total:
            print(step, round(loss, 4), round(time.process_time() - start), flush=True)

    found = run(model, said)
    out["seconds of processor"] = time.process_time() - start
    out["training losses"] = found
    out["after"] = losses(model, texts)
    print({name: sum(each) / len(each) for name, each in out["after"].items()}, flush=True)
    name = given.name or given.what
    eadem.save(model, given.folder / f"{name}.safetensors")
    (given.folder / f"{name}.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
