"""Powder diffraction: structures, instruments and patterns that share parameters.

A `Pattern` is a block for `eadem.Joint`; its symmetry is declared as ties, and what several
patterns have in common is tied by the user.

>>> import eadem
>>> from eadem.powder import Atom, Data, Instrument, Pattern, Phase
>>> import torch
>>> atoms = [Atom("Na", "Na", (0, 0, 0)), Atom("Cl", "Cl", (0.5, 0.5, 0.5))]
>>> x = torch.arange(20, 120, 0.1).double()
>>> def pattern(instrument):
...     salt = Phase([5.64, 5.64, 5.64, 90, 90, 90], "F m -3 m", atoms)
...     return Pattern(Data(x, torch.full_like(x, 50.0)), instrument, salt, background=3)
>>> joint = eadem.Joint({
...     "neutron": pattern(Instrument.neutron(1.9, zero=0.0, w=0.1)),
...     "xray": pattern(Instrument.xray(displacement=0.0, y=0.1)),
... })
>>> for name in ("cell", "xyz", "u_iso"):
...     _ = eadem.tie(joint, f"*.phase.{name}", start="mean")
>>> sum(p.numel() for p in joint.parameters() if p.requires_grad)  # a, 2 U, 2·(2 + 1 + 3)
15
"""

try:
    import numba as _numba
except ImportError as _error:
    from eadem.errors import MissingPackage as _MissingPackage

    raise _MissingPackage(
        "eadem.powder needs the package 'numba', which is not installed: "
        'pip install "eadem[powder]"'
    ) from _error

from .data import Data as Data
from .data import read_counters as read_counters
from .data import read_csv as read_csv
from .data import read_steps as read_steps
from .data import read_xye as read_xye
from .instrument import Instrument as Instrument
from .instrument import free as free
from .instrument import freeze as freeze
from .pattern import Pattern as Pattern
from .pattern import Reflections as Reflections
from .phase import Atom as Atom
from .phase import Phase as Phase
from .profile import peaks as peaks
from .reflections import reflections as reflections
from .symmetry import SpaceGroup as SpaceGroup

del _numba
