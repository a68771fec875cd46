"""What TensorBoard and Lightning are given of a trace, against the trace itself."""

import pytest
import torch
from torch import nn

import eadem
from eadem.integrations import tensorboard

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore::FutureWarning"
)


class Towers(lightning.LightningModule):
    """Two towers of one weight, each fitted to a target of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
        self.logged = []

    def training_step(self, batch, _):
        (x,) = batch
        return (self.a(x) - x[:, :1]).square().mean() + (self.b(x) + x[:, :1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log_dict(self, values, *args, **kwargs):
        self.logged.append((self.trainer.global_step, dict(values)))
        super().log_dict(values, *args, **kwargs)


def fitted(tmp_path, every=1, accumulate=1):
    from eadem.integrations.lightning import conflict_logger

    torch.manual_seed(0)
    model = Towers()
    eadem.tie(model, "*.weight")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(16, 3)), batch_size=4
    )
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        default_root_dir=tmp_path,
        callbacks=[conflict_logger(every)],
    )
    trainer.fit(model, loader)
    return model


@pytest.mark.parametrize(("every", "accumulate", "steps"), [(1, 1, 8), (3, 1, 3), (1, 2, 4)])
def test_lightning_logs_conflict_by_tie(tmp_path, every, accumulate, steps):
    model = fitted(tmp_path, every, accumulate)
    assert [at for at, _ in model.logged] == list(range(0, every * steps, every))[:steps]
    for _, values in model.logged:
        assert set(values) == {
            "eadem/conflict/a.weight",
            "eadem/conflict_of_means/a.weight",
            "eadem/gradient/a.weight",
            "eadem/gradient/b.weight",
        }
    # the towers ask for opposite things: nearly all of it cancels once θ is between them
    assert model.logged[-1][1]["eadem/conflict/a.weight"] > 0.9
    assert type(model.a) is nn.Linear  # an owner has its own class back
    eadem.check(model)


def test_an_error_in_training_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Towers, "training_step", lambda *_: 1 / 0)
    made = []
    before = Towers.__init__

    def init(self):
        before(self)
        made.append(self)

    monkeypatch.setattr(Towers, "__init__", init)
    with pytest.raises(ZeroDivisionError):
        fitted(tmp_path)
    assert type(made[0].a) is nn.Linear


def test_every_must_be_positive():
    from eadem.integrations.lightning import conflict_logger

    with pytest.raises(ValueError, match="every=0"):
        conflict_logger(0)


class Writer:
    """What TensorBoard's writer is asked for."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, name, value, step):
        self.rows.append((name, value, step))


def test_tensorboard_gets_the_trace_s_figures():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    eadem.tie(model, "*.weight")
    writer = Writer()
    with eadem.trace(model) as seen:
        for step in range(3):
            x = torch.randn(4, 3)
            (model["a"](x).square() - model["b"](x).square()).sum().backward()
            conflict, norms = seen.conflict(), seen.norms()
            tensorboard.log(writer, seen, step)
            rows = {name: value for name, value, at in writer.rows if at == step}
            assert rows["eadem/conflict/a.weight"] == conflict["a.weight"]
            assert rows["eadem/gradient/b.weight"] == norms["b.weight"]
    assert seen.steps == 3
