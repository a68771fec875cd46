"""Fits that share: least squares of a model, and what its result can be asked."""

from .callables import Callables as Callables
from .callables import callables as callables
from .fit import Fit as Fit
from .fit import RankWarning as RankWarning
from .least_squares import least_squares as least_squares
from .profile import Interval as Interval
