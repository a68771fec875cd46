"""Small models to fit, and what dense algebra says of them."""

import torch
from torch import nn

SIGMA = 0.02


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


class Decay(nn.Module):
    """height·exp(−rate·x) + floor; the data as plain attributes, or as buffers."""

    def __init__(self, x, y, *, buffers=False, start=(1.0, 0.5, 0.0)):
        super().__init__()
        if buffers:
            self.register_buffer("x", x)
            self.register_buffer("y", y)
        else:
            self.x, self.y = x, y
        for name, value in zip(("height", "rate", "floor"), start, strict=True):
            setattr(self, name, nn.Parameter(double(value)))

    def residual(self):
        return (self.y - self.height * torch.exp(-self.rate * self.x) - self.floor) / SIGMA


def decays(truths, sizes, seed=0):
    """x and y of decays with (height, rate, floor) each."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for (height, rate, floor), size in zip(truths, sizes, strict=True):
        x = torch.linspace(0, 3, size, dtype=torch.float64)
        noise = SIGMA * torch.randn(size, dtype=torch.float64, generator=g)
        found.append((x, height * torch.exp(-rate * x) + floor + noise))
    return found


def dense(model):
    """J_W (m, sites) and r (m,) of a model at its values, by reverse mode on the whole."""
    from eadem.bind import at_sites, free_vector, resolved

    at = at_sites(model, lambda m: m.residual().reshape(-1))
    values = resolved(model).expand(free_vector(model))
    return torch.func.jacrev(at)(values).detach(), at(values).detach()
