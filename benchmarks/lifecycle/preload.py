"""Imported once by the process that the probes are forked from, so that each begins at once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings

from . import run, table

__all__: list[str] = []

logging.disable(logging.WARNING)  # torchao tells of libraries that a CPU has no use for
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in (
        "torch._dynamo.testing",
        "torch.distributed.fsdp",
        "torch.nn.parallel",
        "eadem.store",
        "accelerate",
        "peft",
        "torchao.quantization",
        "transformers.models.llama.modeling_llama",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # one probe brings in what torch and Eadem leave until they are used
    run.probe(run.Job(table.rows()[0].number, 0, "eadem", 0))
