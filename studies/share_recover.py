"""SmolLM2-135M shared at 80 % of its blocks' weights, recovered beside its original.

θ comes from `python studies/share_smollm2.py --work FOLDER`. The shared model is trained (θ
alone) towards the original's outputs and the text on plays of Shakespeare that no other figure
uses, and the original's own block matrices are trained on the same text, for as many seconds
of processor time. Both are judged on other plays and on the documentation strings of Python's
standard library, which neither has seen; the losses before are those of share_smollm2.py.

    python studies/share_recover.py original FOLDER [--seconds 600]
    python studies/share_recover.py shared FOLDER [--seconds 600] [--text 0.5]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def reading(tokenizer: Any, length: int, size: int) -> list[Any]:
    """Batches of plays that no loss is measured on."""
    from share_smollm2 import plays

    from eadem._share import text

    found = "\n".join(p[:60000] for p in plays()[8:20])
    return text.batches(text.windows(text.tokens(found, tokenizer), length), size)


def main() -> None:
    """Train one of the two, and print and write its losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["original", "shared"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--steps", type=int, help="in place of what --seconds allow")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--text", type=float, default=0.5)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tests", type=int, default=6)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    import copy

    from share_smollm2 import judges, opened

    import eadem
    from eadem._share import matrices
    from eadem._share.loss import Loss
    from eadem._share.recover import recover, text_loss, trained

    model, tokenizer = opened()
    _, judged = judges(model, tokenizer, 24, given.tests)
    batches = reading(tokenizer, given.length, given.batch)
    original = copy.deepcopy(model) if given.what == "shared" and given.text < 1 else model
    if given.what == "shared":
        eadem.load(model, given.folder / f"theta-{given.keep:g}.safetensors")
    out: dict[str, Any] = {k: str(v) for k, v in vars(given).items()}

    def run(one: Any, steps: int, said: Any = None) -> list[float]:
        options = {"steps": steps, "rate": given.rate, "said": said}
        if given.what == "shared":
            return recover(one, original, batches, text=given.text, **options)
        sites = [one.get_parameter(m.site) for m in matrices(one)]
        kind = Loss(one, []).kind
        return trained(one, sites, lambda b: text_loss(one, b, kind), batches, **options)

    steps = given.steps
    if steps is None:
        trial = copy.deepcopy(model)
        run(trial, 1)
        start = time.process_time()
        run(trial, 3)
        steps = int(given.seconds / ((time.process_time() - start) / 3))
        del trial
    print("steps", steps, "of batches", len(batches), flush=True)
    start = time.process_time()

    def said(step: int, total: int, loss: float) -> None:
        if step % 10 == 0 or step == total:
            print(step, round(loss, 4), round(time.process_time() - start), flush=True)

    losses = run(model, steps, said)
    out["steps"], out["seconds of processor"] = steps, time.process_time() - start
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
