"""The runs of every plan, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import eadem
from eadem.recipes import Context
from eadem.recipes._digits import Digits, stratified
from eadem.recipes._mnist_nets import (
    cnn,
    network,
)
from eadem.recipes._training import (
    Advance,
    Trained,
    concurrently,
    fit,
    seeded,
)

__all__ = [
    "BATCH",
    "Job",
    "Plans",
    "Runs",
    "Sizes",
    "built",
    "checkpoint",
    "numbers",
    "train_all",
]

BATCH = 32

Plans = Mapping[str, Callable[[nn.Module], None]]
Runs = Mapping[int, Sequence[Trained]]


@dataclass(frozen=True)
class Sizes:
    """How much is trained: epochs by number of images, seeds, and the CNN's epochs."""

    epochs: Mapping[int, int]
    seeds: int
    cnn_epochs: int
    cnn_accuracy: float


def built(name: str) -> nn.Module:
    """The stock model that a checkpoint belongs to."""
    return cnn() if name == "reference_cnn" else network()


def checkpoint(name: str) -> str:
    return f"{name}.safetensors"


@dataclass(frozen=True)
class Job:
    """One model to train: `images` of the training set, drawn by `seed`, as its weights are."""

    name: str
    images: int
    seed: int
    epochs: int
    keep: bool

    @property
    def steps(self) -> int:
        """How many optimizer steps it takes."""
        return self.epochs * -(-self.images // BATCH)


def _jobs(seed: int, sizes: Sizes, plans: Plans, images: int) -> list[Job]:
    """The longest first, so that none is waited for alone at the end."""
    jobs = [Job("reference_cnn", images, seed, sizes.cnn_epochs, True)]
    for n, epochs in sorted(sizes.epochs.items(), reverse=True):
        for repeat in range(sizes.seeds):
            keep = repeat == 0 and n == max(sizes.epochs)
            jobs += [Job(name, n, 1000 * seed + repeat, epochs, keep) for name in plans]
    return jobs


def train_all(
    context: Context, sizes: Sizes, plans: Plans, train: Digits, test: Digits
) -> tuple[dict[str, nn.Module], dict[str, Runs]]:
    """(a) and (b): the CNN, and every plan at every number of images over the seeds."""

    def trained(job: Job, advance: Advance) -> tuple[nn.Module | None, Trained]:
        generator = torch.Generator().manual_seed(job.seed)
        rows = stratified(train.labels.cpu(), job.images, generator)
        with seeded(job.seed):
            model = built(job.name).to(context.device)
            if job.name in plans:
                plans[job.name](model)
        done = fit(
            model,
            train[rows],
            test,
            epochs=job.epochs,
            seed=job.seed,
            batch=BATCH,
            test_every=1 if job.keep else job.epochs,
            advance=advance,
        )
        return model if job.keep else None, done

    jobs = _jobs(context.seed, sizes, plans, len(train))
    with context.stage("training", sum(job.steps for job in jobs)) as advance:
        results = concurrently([partial(trained, job) for job in jobs], advance)
    models: dict[str, nn.Module] = {}
    runs: dict[str, dict[int, list[Trained]]] = {name: {} for name in (*plans, jobs[0].name)}
    for job, (model, done) in zip(jobs, results, strict=True):
        runs[job.name].setdefault(job.images, []).append(done)
        if model is not None:
            models[job.name] = model
    return {n: models[n] for n in runs}, {n: dict(sorted(r.items())) for n, r in runs.items()}


def numbers(model: nn.Module, runs: Runs) -> dict[str, Any]:
    """A model's entry in metrics.json, which docs/metrics.md describes."""
    counts, largest = eadem.counts(model), max(runs)
    last = runs[largest]
    return {
        "free": counts.free,
        "stored": counts.stored,
        "expanded": counts.expanded,
        "accuracy": sum(r.accuracy for r in last) / len(last),
        "loss": sum(r.loss for r in last) / len(last),
        "seconds": sum(r.seconds for r in last) / len(last),
        "images": largest,
        "sizes": [
            {
                "images": n,
                "steps": done[0].steps,
                "accuracy": [r.accuracy for r in done],
                "loss": [r.loss for r in done],
                "seconds": [r.seconds for r in done],
            }
            for n, done in runs.items()
        ],
        "curve": [asdict(e) for e in last[0].curve],
    }
