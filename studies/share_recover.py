"""SmolLM2-135M shared at 80 % of its blocks' weights, recovered beside its original.

θ comes from `python studies/share_smollm2.py --work FOLDER`. The shared model is trained on
plays of Shakespeare that no other figure uses, towards their text, and a part of the steps on
text that the original wrote itself, towards the original's outputs. The original's own block
matrices are trained on the same plays, at the same rate, for as many seconds of processor time
(for the shared model the writing of its samples and all else counts). Both are judged on other
plays, on Jane Austen's novels and on the documentation strings of Python's standard library,
which neither has seen.

The gap is the shared model's loss less the original's: before, with neither trained (the
losses of share_smollm2.py); after, with both trained as long. Won back is 1 − after / before;
asked are a half on the plays and a third on the documentation strings. Rate, parts and lengths
were fixed before the run, which takes an hour of one core for each of the two.

    python studies/share_recover.py original FOLDER --steps 1900
    python studies/share_recover.py shared FOLDER --steps 1250 --samples 256 --part 0.2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from share_smollm2 import NOVELS, judges, opened, plays


def reading(tokenizer: Any, length: int, size: int, letters: int) -> list[Any]:
    """Batches of plays that no loss is measured on, at most so many letters of each."""
    from eadem._share import text

    found = "\n".join(p[:letters] for p in plays()[8:20])
    return text.batches(text.windows(text.tokens(found, tokenizer), length), size)


def main() -> None:
    """Train one of the two, and print and write its losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["original", "shared"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--text", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=0, help="windows of its own text")
    parser.add_argument("--part", type=float, default=1 / 3, help="of the steps: on these")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--letters", type=int, default=1000000, help="of each play, at most")
    parser.add_argument("--tests", type=int, default=6)
    parser.add_argument("--novels", type=Path, default=NOVELS, help="folder of janeaustenr")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--state", type=Path, help="file to go on from after a break")
    given = parser.parse_args()

    import copy

    import eadem
    from eadem._share import matrices
    from eadem._share.loss import Loss
    from eadem._share.recover import plain_attention, recover, text_loss, trained
    from eadem._share.samples import own_samples

    model, tokenizer = opened()
    _, judged = judges(model, tokenizer, 24, given.tests, given.novels)
    batches = reading(tokenizer, given.length, given.batch, given.letters)
    original = copy.deepcopy(model) if given.what == "shared" else model
    if given.what == "shared":
        eadem.load(model, given.folder / f"theta-{given.keep:g}.safetensors")
    out: dict[str, Any] = {k: str(v) for k, v in vars(given).items()}

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

    losses = run(model, said)
    out["seconds of processor"] = time.process_time() - start
    out["training losses"] = losses
    out["after"] = {}
    for name, judge in judged.items():
        out["after"][name] = judge(model)
        print(name, out["after"][name], flush=True)
    print(json.dumps({k: v for k, v in out.items() if k != "training losses"}, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
