"""A fresh process that opens folders: `python hf_fresh.py ORDER JOBS OUT`.

ORDER is "eadem-first" or "eadem-last": then the jobs without Eadem come first, and Eadem is
imported after transformers. JOBS is a JSON object of two lists, "without" and "with", of
[folder, class]; OUT gets, by list and folder, the logits, the counts and the hash of every
value, or the error. It imports nothing of the tests, which would bring Eadem along.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def opened(folder: str, kind: str) -> dict[str, Any]:
    import torch
    import transformers

    print(f"== {folder}", file=sys.stderr, flush=True)
    try:
        model = getattr(transformers, kind).from_pretrained(folder)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 10, 9]])
    with torch.no_grad():
        logits = model(input_ids=ids, labels=ids).logits
    found = {
        "logits": logits.double().flatten().tolist(),
        "stored": sum(p.numel() for p in model.parameters()),
    }
    state = model.state_dict()
    if "eadem" in sys.modules:
        eadem = sys.modules["eadem"]
        eadem.check(model)
        state = eadem.materialize(model)
        found["ties"] = eadem.record(model)["ties"]
        found["free"] = eadem.counts(model).free
    found["values"] = digests(state)
    return found


def digests(state: dict[str, Any]) -> dict[str, str]:
    """The hash of every tensor's bytes."""
    return {
        name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()
        for name, t in state.items()
    }


def main(order: str, listed: str, out: str) -> None:
    jobs = json.loads(Path(listed).read_text())
    found: dict[str, Any] = {}
    if order == "eadem-first":
        import eadem

        assert "transformers" not in sys.modules
    import transformers

    transformers.logging.disable_progress_bar()
    if order == "eadem-last":
        assert "eadem" not in sys.modules
        found["without"] = {folder: opened(folder, kind) for folder, kind in jobs["without"]}
        assert "transformers.modeling_utils" in sys.modules
        import eadem  # noqa: F401
    found["with"] = {folder: opened(folder, kind) for folder, kind in jobs["with"]}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
