"""Solvers: they know maps, tensors and callables, and nothing of modules."""

from .em import em as em
from .em import m_step as m_step
from .least_squares import least_squares as least_squares
from .solution import Solution as Solution
from .solution import SolverError as SolverError
