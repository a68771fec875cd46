"""A pattern as one kernel: its value and derivatives are those of its parts, one by one."""

import pytest
import torch

import eadem
from eadem.powder import Atom, Data, Instrument, Pattern, Phase, free, freeze

SALT = [Atom("Na", "Na", (0, 0, 0), 0.02), Atom("Cl", "Cl", (0.5, 0.5, 0.5), 0.015)]
#: without a centre of symmetry; the first atom may be anisotropic, which changes their order
ZINC = [
    Atom("Zn", "Zn", (1 / 3, 2 / 3, 0.0), 0.01),
    Atom("O", "O", (1 / 3, 2 / 3, 0.3819), 0.012),
]
TURNED = (0.011, 0.011, 0.014, 0.0055, 0.0, 0.0)


def salt():
    return Phase([5.64] * 3 + [90.0] * 3, "F m -3 m", SALT)


def zinc(u=0.01):
    atoms = [Atom("Zn", "Zn", (1 / 3, 2 / 3, 0.0), u), ZINC[1]]
    return Phase([3.25, 3.25, 5.207, 90, 90, 120], "P 63 m c", atoms)


def neutrons(**given):
    return Instrument.neutron(1.6, zero=0.02, displacement=0.03, u=0.1, v=-0.1, w=0.2, y=0.05,
                              **given)  # fmt: skip


def xrays(**given):
    return Instrument.xray(
        zero=0.01, displacement=-0.03, transparency=0.02, w=0.02, x=0.04, y=0.03, **given
    )


def pattern(instrument, phase, **given):
    x = torch.arange(22.0, 80.0, 0.05, dtype=torch.float64)
    y = 100 + 20 * torch.sin(x)
    data = Data(x, y, y.sqrt())
    found = Pattern(data, instrument, phase, background=3, scale=0.4, **given)
    with torch.no_grad():
        found.background.copy_(torch.tensor([30.0, -4.0, 2.0]))
        if len(found.names) > 1:
            found.strain.copy_(torch.tensor([0.0, 0.05]))
            found.size.copy_(torch.tensor([0.02, 0.0]))
    return eadem.twin(found).requires_grad_()


BASE = torch.linspace(5, 9, 1160, dtype=torch.float64)
KINDS = {
    "neutrons": lambda: pattern(neutrons(), zinc()),
    "a doublet, asymmetry, baseline": lambda: pattern(
        xrays(asymmetry=(0.02, 0.01, -0.01, 0.005)), zinc(), baseline=BASE
    ),
    "two phases": lambda: pattern(xrays(), {"one": salt(), "two": zinc()}),
}
OTHER = {
    "anisotropic": lambda: pattern(neutrons(), zinc(TURNED)),
    "oriented": lambda: pattern(neutrons(), zinc(), preferred=(0, 0, 1)),
    "slits": lambda: pattern(neutrons(asymmetry=(0.03, 0.02)), zinc()),
    "one phase twice": lambda: pattern(neutrons(), dict.fromkeys("ab", salt())),
}


def parts(block):
    """The residual by way of the calculated pattern: structure, instrument and peaks apart."""
    return (block.y - block.calculated()) / block.sigma


def gradient(block, residual, u):
    names, values = zip(*block.named_parameters(), strict=True)
    found = torch.autograd.grad(residual(block), values, u, allow_unused=True)
    each = zip(names, values, found, strict=True)
    return {n: torch.zeros_like(v) if g is None else g for n, v, g in each}


@pytest.mark.parametrize("kind", [*KINDS, *OTHER])
def test_value_and_gradient_are_those_of_the_parts(kind):
    block = {**KINDS, **OTHER}[kind]()
    torch.testing.assert_close(block.residual(), parts(block), rtol=1e-11, atol=1e-10)
    u = torch.cos(block.x)
    one, other = gradient(block, Pattern.residual, u), gradient(block, parts, u)
    assert float(sum(g.abs().sum() for g in other.values())) > 0
    for name, wanted in other.items():
        scale = float(wanted.abs().max())
        torch.testing.assert_close(one[name], wanted, rtol=1e-9, atol=1e-10 * scale, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_derivative_is_the_adjoint_of_the_parts_gradient(kind):
    block = KINDS[kind]()
    generator = torch.Generator().manual_seed(3)
    along = {
        n: torch.randn(4, *p.shape, generator=generator, dtype=torch.float64)
        for n, p in block.named_parameters()
    }
    found = block.residual_jvp(along)
    assert found.shape == (4, len(block.x))
    u = torch.cos(3 * block.x)
    back = gradient(block, parts, u)
    wanted = sum((along[n] * g).reshape(4, -1).sum(1) for n, g in back.items())
    torch.testing.assert_close(found @ u, wanted, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("kind", OTHER)
def test_what_is_not_one_kernel_is_left_to_torch(kind):
    block = OTHER[kind]()
    along = {n: torch.zeros(1, *p.shape).double() for n, p in block.named_parameters()}
    assert block.residual_jvp(along) is NotImplemented


def test_a_fit_is_the_same_with_and_without_its_own_derivative(monkeypatch):
    def fit():
        blocks = {"a": pattern(neutrons(), zinc()), "b": pattern(xrays(), zinc())}
        joint = eadem.Joint(blocks)
        for block in blocks.values():
            block.phase.constrain()
        eadem.tie(joint, "*.phase.cell")
        freeze(joint, "**")
        free(
            joint, "*.phase.cell", "*.phase.u_iso", "*.scale", "*.background", "a.instrument.w"
        )
        truth = eadem.twin(joint)
        with torch.no_grad():
            truth["a"].scale.mul_(1.1)
            truth["a"].instrument.w.add_(0.01)
            for name, block in blocks.items():
                block.y.copy_(truth[name].calculated())
        return eadem.least_squares(joint, max_iterations=2, tolerance=0)

    one = fit()
    monkeypatch.delattr(Pattern, "residual_jvp")
    other = fit()
    assert one.history[-1] < 0.1 * one.history[0]
    torch.testing.assert_close(one.theta, other.theta, rtol=1e-8, atol=1e-9)
