"""Row 33: evaluated from several threads, values are right."""

from concurrent.futures import ThreadPoolExecutor

import torch
from lifecycle_systems import System


def test_two_models_and_many_threads(system: System) -> None:
    models = [system.tied(seed=s).eval() for s in (1, 2)]
    x = system.input()
    with torch.no_grad():
        want = [m(x) for m in models]

    def work(i: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(models[i % 2](x), want[i % 2]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


def test_gradients_from_threads(system: System) -> None:
    model = system.tied().double().eval()
    x = system.input(model)
    parameters = list(model.parameters())
    want = torch.autograd.grad(model(x).square().sum(), parameters)

    def work(_: int) -> bool:
        found = torch.autograd.grad(model(x).square().sum(), parameters)
        return all(torch.equal(a, b) for a, b in zip(found, want, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))
