"""Rows 37 and 38: trained by transformers' Trainer, by Lightning and by Keras."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from torch import Tensor, nn

import eadem

from . import oracle
from .oracle import event, judge, worst
from .rows import Case, Row, always, first_two, kept, said
from .subjects import FIVE, Subject, head, hugging, read
from .verdict import Outcome, Verdict, short
from .ways import EADEM, NATIVE, Way

__all__ = ["ROWS"]


# 37: trainers


class _Lines(torch.utils.data.Dataset[Any]):
    def __init__(self, subject: Subject, n: int = 8) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.rows = torch.cat([subject.x() for _ in range(n)])[:n]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def _trainer(way: Way, subject: Subject) -> Outcome:
    """Four steps at once, and two steps, a save, and a resumption in a new model."""
    from transformers import Trainer, TrainingArguments

    def train(
        model: nn.Module, folder: str, steps: int, resume: str | None = None
    ) -> nn.Module:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            save_steps=2,
            logging_strategy="no",
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            seed=1,
            disable_tqdm=True,
            learning_rate=0.01,
            lr_scheduler_type="constant",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=_Lines(subject))
        trainer.train(resume_from_checkpoint=resume)
        return model

    with tempfile.TemporaryDirectory() as folder:
        with event():
            whole = train(way.tied(subject), f"{folder}/a", 4)
            train(way.tied(subject), f"{folder}/b", 2)
        with event():
            resumed = way.tied(subject, 3)
            train(resumed, f"{folder}/b", 4, f"{folder}/b/checkpoint-2")
        with event():
            again = type(whole).from_pretrained(f"{folder}/b/checkpoint-4")  # type: ignore
    want = {n: read(whole, n) for n in subject.sites}
    loaded = judge(again, subject, want=want)
    if loaded.verdict is not Verdict.KEPT:
        loaded = said(loaded.verdict, f"loaded from the checkpoint, {loaded.detail}")
    return worst([judge(resumed, subject, want=want), loaded])


def _lightning(way: Way, subject: Subject) -> Outcome:
    """Two epochs at once, and one, a checkpoint, and a resumption in a new model."""
    import lightning

    class Task(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, seed: int = 0) -> None:
            super().__init__()
            self.model = way.tied(subject, seed)

        def training_step(self, batch: Tensor, i: int) -> Tensor:
            return oracle.loss(subject.call(self.model, batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                [subject.input()] * 2,  # type: ignore[arg-type]
                batch_size=None,
            )

    def fit(task: Task, epochs: int, resume: str | None = None) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, ckpt_path=resume)
        return trainer

    with tempfile.TemporaryDirectory() as folder, event():
        path = f"{folder}/half.ckpt"
        whole, half, resumed = Task(), Task(), Task(3)
        fit(whole, 2)
        fit(half, 1).save_checkpoint(path)
        fit(resumed, 2, path)
    want = {n: read(whole.model, n) for n in subject.sites}
    return judge(resumed.model, subject, want=want)


# 38: Keras


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    return keras


def _wrapped(way: Way, subject: Subject) -> Outcome:
    """A torch module in a Keras model: fit, save_weights, load_weights."""
    keras = _keras()
    x = subject.input()

    def build(seed: int) -> tuple[Any, nn.Module]:
        module = way.tied(subject, seed)
        model = keras.Sequential([keras.layers.TorchModuleWrapper(module)])
        model(x)
        return model, module

    (model, module), (other, again) = build(0), build(5)
    with tempfile.TemporaryDirectory() as folder, event():
        model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
        target = torch.zeros_like(model(x)).detach().numpy()
        model.fit(x.numpy(), target, epochs=2, batch_size=len(x), verbose=0)
        model.save_weights(f"{folder}/model.weights.h5")
        other.load_weights(f"{folder}/model.weights.h5")
    want = {n: read(module, n) for n in subject.sites}
    return worst([judge(again, subject, want=want), judge(module, subject)])


def _keras_layers(way: Way, subject: Subject) -> Outcome:
    """A tie of Keras's own layers, by the names that they show as torch modules."""
    keras = _keras()
    layers = [keras.layers.Embedding(7, 4), keras.layers.Dense(7, use_bias=False)]
    model = keras.Sequential(layers)
    model.build((None, 3))
    names = [n for n, _ in model.named_parameters()]
    before = [layer.get_weights()[0].copy() for layer in layers]
    try:
        eadem.tie(model, names[1], to=names[0], via=eadem.Transpose())
    except eadem.EademError as error:
        same = all(
            (layer.get_weights()[0] == b).all() for layer, b in zip(layers, before, strict=True)
        )
        verdict = Verdict.REFUSED if same else Verdict.RAISES
        return said(verdict, short(f"{type(error).__name__}: {error}"))
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    x = FIVE[0].input().numpy()
    model.fit(x, torch.zeros(5, 3, 7).numpy(), epochs=1, verbose=0)
    embed, kernel = (layer.get_weights()[0] for layer in layers)
    if not (kernel == embed.T).all():
        return said(Verdict.UNTIED, "after fit, the layers' weights differ")
    return kept()


ROWS = (
    Row(
        37,
        "trained and resumed by transformers' Trainer and by Lightning",
        (
            Case(
                "Trainer",
                _trainer,
                subjects=hugging,
                needs=("transformers", "accelerate"),
                seconds=180,
            ),
            Case(
                "Lightning", _lightning, subjects=first_two, needs=("lightning",), seconds=180
            ),
            Case(
                "Trainer",
                _trainer,
                subjects=lambda: (head(True),),
                ways=(NATIVE,),
                library="transformers",
                needs=("transformers", "accelerate"),
                seconds=180,
            ),
        ),
    ),
    Row(
        38,
        "a Keras 3 model on the torch backend",
        (
            Case("torch module inside", _wrapped, needs=("keras",), seconds=120),
            Case(
                "its own layers",
                _keras_layers,
                refusable=always,
                needs=("keras",),
                subjects=lambda: FIVE[1:2],
                ways=(EADEM,),
                seconds=120,
            ),
        ),
    ),
)
