"""What an instrument makes of reflections, against the formulas in plain torch."""

import pytest
import torch

from eadem.powder import Instrument

NEUTRON = {"zero": -0.14, "displacement": 0.05, "transparency": -0.02}
WIDTHS = {"u": 0.14, "v": -0.41, "w": 0.39, "x": 0.02, "y": 0.09}


def instrument(kind):
    if kind == "neutron":
        return Instrument.neutron(1.909, **NEUTRON, **WIDTHS)
    return Instrument.xray(polarisation=0.7, **NEUTRON, **WIDTHS)


def plain(made, q):
    """Position, both widths and strength, as the manual writes them."""
    sine = 0.5 * made.wavelength.unsqueeze(1) * q.sqrt()
    theta = torch.asin(sine)
    shifted = torch.cos(theta if made.radiation == "xray" else 2 * theta)
    position = torch.rad2deg(2 * theta) + made.zero + made.displacement * shifted
    position = position + made.transparency * torch.sin(2 * theta)
    tangent, cosine = torch.tan(theta), torch.cos(theta)
    gauss = torch.sqrt((made.u * tangent + made.v) * tangent + made.w)
    lorentz = made.x * tangent + made.y / cosine
    strength = made.ratios.unsqueeze(1) / (2 * sine**2 * cosine)
    if made.radiation == "xray":
        strength = strength * (1 + made.polarisation * torch.cos(2 * theta) ** 2)
    return torch.stack([position, gauss, lorentz, strength])


def seen(made, q):
    found = made.peaks(q)
    return torch.stack([found.position, found.gauss, found.lorentz, found.strength])


@pytest.mark.parametrize("kind", ["neutron", "xray"])
def test_peaks_and_their_derivatives_are_those_of_the_formulas(kind):
    made = instrument(kind)
    names = [n for n, _ in made.named_parameters()]
    q = torch.linspace(0.02, 0.95, 7, dtype=torch.float64)
    torch.testing.assert_close(seen(made, q), plain(made, q))

    def along(function):
        def of(q, *values):
            given = dict(zip(names, values, strict=True))
            call = torch.func.functional_call
            return call(Calls(made, function), {f"made.{n}": v for n, v in given.items()}, (q,))

        given = (q, *(p.detach() for p in made.parameters()))
        directions = tuple(torch.cos(torch.arange(3.0 * a.numel()) + 1) for a in given)
        each = [d.double().reshape(3, *a.shape) for d, a in zip(directions, given, strict=True)]
        forward = torch.func.vmap(lambda *v: torch.func.jvp(of, given, v)[1])(*each)
        backward = torch.func.vjp(of, *given)[1](forward[0])
        return (forward, *backward)

    for ours, theirs in zip(along(seen), along(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


class Calls(torch.nn.Module):
    def __init__(self, made, function):
        super().__init__()
        self.made, self.function = made, function

    def forward(self, q):
        return self.function(self.made, q)


def test_beyond_the_wavelengths_reach_there_is_no_strength():
    made = instrument("neutron")
    q = torch.tensor([0.5, 4 / 1.909**2 * 1.01], dtype=torch.float64)
    found = made.peaks(q)
    assert found.strength[0, 0] > 0
    assert found.strength[0, 1] == 0
    assert bool(torch.isfinite(found.position).all())


def test_a_lorentzian_width_below_zero_is_zero_and_stays_so():
    made = Instrument.xray((1.54,), x=0.3, y=-0.1, w=0.01)
    q = torch.tensor([0.01, 1.5], dtype=torch.float64)
    found = made.peaks(q).lorentz
    assert found[0, 0] == 0
    assert found[0, 1] > 0
    (slope,) = torch.autograd.grad(found[0, 0], made.x)
    assert slope == 0
