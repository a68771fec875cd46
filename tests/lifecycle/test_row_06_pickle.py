"""Row 6: pickled, `torch.save`d and sent to a spawned worker, a model is tied again."""

import io
import multiprocessing
import pickle

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, assert_tied, values
from torch import nn

import eadem


@pytest.mark.parametrize("protocol", [2, pickle.DEFAULT_PROTOCOL, pickle.HIGHEST_PROTOCOL])
def test_pickle(system: System, protocol: int) -> None:
    model = system.tied()
    found = pickle.loads(pickle.dumps(model, protocol=protocol))
    torch.testing.assert_close(
        values(found, system.sites), values(model, system.sites), rtol=0, atol=0
    )
    assert not {id(p) for p in found.parameters()} & {id(p) for p in model.parameters()}
    assert type(found) is type(model)
    assert_tied(found, system)


def test_torch_save(system: System) -> None:
    model = system.tied()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    found = torch.load(stream, weights_only=False)
    torch.testing.assert_close(found(system.input()), model(system.input()), rtol=0, atol=0)
    assert_tied(found, system)


def test_pickle_of_a_copy_of_a_pickle(system: System) -> None:
    model = system.tied()
    for _ in range(3):
        model = pickle.loads(pickle.dumps(model))
    assert_tied(model, system)


def test_pickle_of_an_outer_model(system: System) -> None:
    outer = nn.Sequential(system.tied(), nn.Identity())
    assert_tied(pickle.loads(pickle.dumps(outer))[0], system)


def test_a_derived_site_alone_is_refused(system: System) -> None:
    model = system.tied()
    for name in system.derived:
        with pytest.raises(eadem.Unsupported, match="tie"):
            pickle.dumps(model.get_submodule(name))
    assert_tied(model, system)


def test_pickled_state_dict_loads(system: System) -> None:
    stream = io.BytesIO()
    torch.save(system.tied(seed=4).state_dict(), stream)
    stream.seek(0)
    model = system.tied()
    model.load_state_dict(torch.load(stream, weights_only=True))
    assert_tied(model, system)


def _work(names: list[str], blob: bytes, answer: "multiprocessing.Queue[object]") -> None:
    """In a fresh process: unpickle, check, train, send back."""
    try:
        torch.set_num_threads(1)
        models = pickle.loads(blob)
        for name, model in zip(names, models, strict=True):
            system = next(s for s in SYSTEMS if s.name == name)
            assert_tied(model, system)
        answer.put(pickle.dumps(models))
    except BaseException as error:
        answer.put(repr(error))


def test_spawned_worker() -> None:
    context = multiprocessing.get_context("spawn")
    models = [s.tied() for s in SYSTEMS]
    queue = context.Queue()
    worker = context.Process(
        target=_work, args=([s.name for s in SYSTEMS], pickle.dumps(models), queue)
    )
    worker.start()
    answer = queue.get(timeout=120)
    worker.join(30)
    assert isinstance(answer, bytes), answer
    for system, model in zip(SYSTEMS, pickle.loads(answer), strict=True):
        assert_tied(model, system)
