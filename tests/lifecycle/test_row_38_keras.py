"""Row 38: a Keras 3 model on the torch backend keeps its ties, or refuses with the way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lifecycle_systems import System, assert_holds, assert_tied, close, values
from torch import Tensor, nn

import eadem

os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is first imported
keras = pytest.importorskip("keras")
from keras import layers, ops  # noqa: E402

if keras.backend.backend() != "torch":
    raise RuntimeError("Keras was imported with another backend; set KERAS_BACKEND=torch")

# keras itself asks numpy and torch for things that they mean to change
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*")


class Wrapped(keras.Model):
    """A Keras model around a torch module."""

    def __init__(self, module: nn.Module, extra: bool = False) -> None:
        super().__init__()
        self.inner = layers.TorchModuleWrapper(module)
        self.extra = layers.Dense(2, name="extra") if extra else None

    def call(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if self.extra is None else self.extra(ops.reshape(y, (len(x), -1)))


def _built(system: System, seed: int = 0, extra: bool = False) -> Any:
    model = Wrapped(system.tied(seed), extra)
    model(system.input())
    return model


def _fit(model: Any, x: Tensor, optimizer: Any, epochs: int = 3) -> list[float]:
    model.compile(optimizer=optimizer, loss="mse")
    target = torch.zeros_like(model(x)).numpy()
    history = model.fit(
        x.numpy(), target, epochs=epochs, batch_size=len(x), shuffle=False, verbose=0
    )
    found: list[float] = history.history["loss"]
    return found


def test_fit_keeps_the_tie_and_counts_each_free_value_once(system: System) -> None:
    model = _built(system)
    assert model.count_params() == system.free
    assert len(model.trainable_variables) == len(list(model.inner.module.parameters()))
    losses = _fit(model, system.input(), keras.optimizers.Adam(0.01))
    assert losses[-1] < losses[0]
    assert_holds(model.inner.module, system)
    eadem.check(model)
    assert len(eadem.ties(model)) == 1
    assert_tied(model.inner.module, system)


def test_fit_is_what_torch_does(system: System) -> None:
    """The oracle: the same steps, by torch's own optimizer, outside Keras."""
    model, x = _built(system), system.input()
    _fit(model, x, keras.optimizers.SGD(0.05))
    plain = system.tied()
    plain(x)  # building the Keras model, and asking for the shape of its output, run it too
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    plain(x)
    for _ in range(3):
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        optimizer.step()
    for name, wanted in values(plain, system.sites).items():
        found = values(model.inner.module, (name,))[name]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_save_weights_and_load_weights(system: System, tmp_path: Path) -> None:
    model, x = _built(system, extra=True), system.input()
    _fit(model, x, keras.optimizers.Adam(0.01))
    model.save_weights(tmp_path / "model.weights.h5")
    again = _built(system, seed=5, extra=True)
    assert not torch.equal(again(x), model(x))
    again.load_weights(tmp_path / "model.weights.h5")
    assert torch.equal(again(x), model(x))
    assert_holds(again.inner.module, system)
    _fit(again, x, keras.optimizers.Adam(0.01), epochs=1)
    assert_tied(again.inner.module, system)


def test_weights_of_an_untied_model_that_agree_load(system: System, tmp_path: Path) -> None:
    tied, x = _built(system), system.input()
    untied = Wrapped(eadem.twin(tied.inner.module))
    untied(x)
    untied.save_weights(tmp_path / "model.weights.h5")
    again = _built(system, seed=5)
    again.load_weights(tmp_path / "model.weights.h5")
    close(again(x), tied(x), system)
    assert_holds(again.inner.module, system)


def test_weights_of_an_untied_model_that_differ_raise(system: System, tmp_path: Path) -> None:
    x = system.input()
    untied = Wrapped(system.stock(seed=3))
    untied(x)
    with torch.no_grad():
        p = untied.inner.module.get_parameter(system.sites[-1])
        p.sub_(torch.arange(p.numel()).reshape(p.shape).square())
    untied.save_weights(tmp_path / "model.weights.h5")
    model = _built(system)
    before = values(model.inner.module, system.sites)
    with pytest.raises(
        ValueError, match="could not be loaded"
    ):  # Keras's own, in place of ours
        model.load_weights(tmp_path / "model.weights.h5")
    for name, old in before.items():
        assert torch.equal(values(model.inner.module, (name,))[name], old)


def _functional() -> Any:
    x = keras.Input((6,))
    hidden = layers.Dense(3, activation="tanh", name="encoder")(x)
    return keras.Model(x, layers.Dense(6, name="decoder")(hidden))


def _sequential() -> Any:
    model = keras.Sequential(
        [layers.Embedding(7, 4, name="embed"), layers.Dense(7, use_bias=False, name="head")]
    )
    model.build((None, 3))
    return model


class Subclass(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layers.Dense(6), layers.Dense(6)

    def call(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def _subclass() -> Any:
    model = Subclass()
    model(torch.zeros(1, 6))
    return model


def _inside() -> Any:
    """A Keras layer inside a torch model."""
    return nn.ModuleDict({"keras": _subclass(), "plain": nn.Linear(6, 6)})


@pytest.mark.parametrize("make", [_functional, _sequential, _subclass, _inside])
def test_layers_of_keras_are_refused_with_the_way(make: Callable[[], Any]) -> None:
    model = make()
    names = [n for n, p in model.named_parameters() if p.ndim == 2 and "plain" not in n]
    types = {n: type(m) for n, m in model.named_modules()}
    before = dict(model.named_parameters())
    a, b = sorted(names, key=lambda n: tuple(before[n].shape))[:2]
    via = eadem.Same() if before[a].shape == before[b].shape else eadem.Transpose()
    for declare in (
        lambda: eadem.tie(model, b, to=a, via=via),
        lambda: eadem.tie(model, "**", via=eadem.Palindrome(dim=-1)),
        lambda: eadem.tie(model, f"{a}[0]", f"{a}[1]"),
    ):
        with pytest.raises(eadem.Unsupported) as refusal:
            declare()
        said = str(refusal.value)
        assert "Keras" in said
        assert "TorchModuleWrapper" in said
        assert "keras.ops.transpose(encoder.kernel)" in said
        assert "Nothing was changed" in said
    assert {n: type(m) for n, m in model.named_modules()} == types
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[n] is p for n, p in before.items())


def test_a_layer_of_keras_beside_a_tie_is_no_obstacle() -> None:
    model = nn.ModuleDict({"keras": _subclass(), "a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    eadem.tie(model, "a.weight", "b.weight")
    eadem.check(model)
    assert len(eadem.ties(model)) == 1


class Tied(layers.Layer):
    """The way that the refusal names: a layer that computes with another's variable."""

    def __init__(self, source: Any, name: str, transpose: bool, **options: Any) -> None:
        super().__init__(**options)
        self.source, self.variable, self.transpose = source, name, transpose

    def call(self, x: Tensor) -> Tensor:
        kernel = getattr(self.source, self.variable)
        return ops.matmul(x, ops.transpose(kernel) if self.transpose else kernel)


class Shared(keras.Model):
    """Embedding and output layer, or two dense layers, on one variable."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first = layers.Embedding(7, 4) if embedding else layers.Dense(6)
        self.last = Tied(self.first, "embeddings" if embedding else "kernel", embedding)

    def call(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


@pytest.mark.parametrize("embedding", [True, False], ids=["transpose", "equality"])
def test_the_way_with_layers_of_keras(embedding: bool, tmp_path: Path) -> None:
    x = torch.arange(6).reshape(2, 3) if embedding else torch.linspace(-1, 1, 12).reshape(2, 6)
    model, again = Shared(embedding), Shared(embedding)
    model(x), again(x)
    assert model.count_params() == (28 if embedding else 42)
    losses = _fit(model, x, keras.optimizers.Adam(0.01))
    assert losses[-1] < losses[0]
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    assert torch.equal(again(x), model(x))
    assert len(again.trainable_variables) == (1 if embedding else 2)
