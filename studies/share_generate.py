"""Text that a shared SmolLM2-135M writes: with its cache, without, and in a batch.

θ comes from `python studies/share_smollm2.py --work FOLDER`. Each beginning is continued
greedily by itself with the cache of keys and values, by itself without it, in one batch with
the others (padded on the left), and in that batch by the dense weights that the factors make
(`eadem.expanded`). All must be the same tokens.

    python studies/share_generate.py FOLDER [--keep 0.8] [--tokens 24]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from share_smollm2 import opened

BEGUN = (
    "Enter the King. Good morrow, my lords;",
    "The children went down to the river and",
    "In the year 1805",
)


def main() -> None:
    """Print what is written; exit with 1 where the tokens differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()

    import torch
    from torch import Tensor

    import eadem

    model, tokenizer = opened()
    eadem.load(model, given.folder / f"theta-{given.keep:g}.safetensors")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def written(texts: list[str], cache: bool = True) -> list[Tensor]:
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        found = model.generate(
            **inputs,
            max_new_tokens=given.tokens,
            min_new_tokens=given.tokens,
            do_sample=False,
            use_cache=cache,
            pad_token_id=tokenizer.pad_token_id,
        )
        return list(found[:, inputs["input_ids"].shape[1] :])

    texts = list(BEGUN)
    alone = [written([t])[0] for t in texts]
    with eadem.expanded(model):
        dense = written(texts)
    ways = {
        "without the cache": [written([t], cache=False)[0] for t in texts],
        "in a batch": written(texts),
        "in a batch, dense": dense,
    }
    for text, tokens in zip(texts, alone, strict=True):
        print(repr(text + tokenizer.decode(tokens)))
    same = True
    for name, found in ways.items():
        equal = [torch.equal(a, b) for a, b in zip(alone, found, strict=True)]
        print(f"{name}: {sum(equal)} of {len(equal)} the same")
        same &= all(equal)
    sys.exit(not same)


if __name__ == "__main__":
    main()
