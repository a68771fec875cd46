"""Row 37: trained, saved and resumed by transformers' Trainer and by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_systems import HF_SYSTEMS, assert_holds, logits
from lifecycle_systems import SYSTEMS, System, assert_tied, values
from torch import Tensor, nn

import eadem

pytestmark = [
    # Lightning and Trainer on machines with few cores, and torch on what they call
    pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:DeprecationWarning"),
]
BY_NAME = {s.name: s for s in HF_SYSTEMS}


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Twelve sequences of token ids."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = (torch.arange(5) * (i + 2) + i) % 11
        return {"input_ids": ids, "labels": ids}


def trainer(model: nn.Module, folder: Path, steps: int) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=steps,
        save_steps=2,
        logging_steps=100,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    return Trainer(model=model, args=arguments, train_dataset=Rows())


@pytest.mark.parametrize(
    "name",
    ["gpt2-equality", "llama-transpose", "gpt2-kernels", "t5-part", "albert-palindrome"],
)
def test_trainer_resumes(name: str, tmp_path: Path) -> None:
    hf = BY_NAME[name]
    whole = hf.tied()
    trainer(whole, tmp_path / "whole", 4).train()
    assert_holds(whole, hf)
    assert not torch.equal(logits(whole), logits(hf.tied()))

    trainer(hf.tied(), tmp_path / "parts", 2).train()
    checkpoint = tmp_path / "parts" / "checkpoint-2"
    resumed = hf.tied(seed=8)  # other values: all must come from the checkpoint
    second = trainer(resumed, tmp_path / "parts", 4)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert_holds(resumed, hf)
    for key, want in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], want), key
    optimizer = second.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    assert len(optimizer.state) == len(list(resumed.parameters()))
    assert sum(s["exp_avg"].numel() for s in optimizer.state.values()) == hf.free
    eadem.check_optimizers(resumed, optimizer)

    opened = type(whole).from_pretrained(tmp_path / "parts" / "checkpoint-4")
    assert_holds(opened, hf)
    assert torch.equal(logits(opened), logits(whole))


def lit(system: System, seed: int = 0) -> Any:
    """A LightningModule around a system's model, tied inside it."""
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = system.stock(seed)
            system.tie(self, at="net.")

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.net(system.input(self.net)).float().square().mean() + 0 * batch.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.02)

    return Lit()


def fit(module: Any, folder: Path, steps: int, resume: Path | None = None) -> Any:
    import lightning

    found = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = torch.utils.data.DataLoader(torch.zeros(3, 1), batch_size=1)
    found.fit(module, data, ckpt_path=None if resume is None else str(resume))
    return found


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_lightning_resumes(system: System, tmp_path: Path) -> None:
    whole = lit(system)
    fit(whole, tmp_path, 6)

    path = tmp_path / "half.ckpt"
    fit(lit(system), tmp_path, 3).save_checkpoint(path)
    # nothing in the file needs unpickling
    held = torch.load(path, weights_only=True)["state_dict"]
    assert sum(t.numel() for n, t in held.items() if "norm" not in n) <= system.free

    resumed = lit(system, seed=8)
    again = fit(resumed, tmp_path, 6, path)
    for key, want in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], want), key
    for name, want in values(whole.net, system.sites).items():
        assert torch.equal(values(resumed.net, system.sites)[name], want)
    (optimizer,) = again.optimizers
    assert len(optimizer.state) == len(list(resumed.parameters()))
    eadem.check_optimizers(resumed, optimizer)
    assert_tied(resumed.net, system)
