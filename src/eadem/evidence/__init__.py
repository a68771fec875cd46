"""What the data say of a tie: tests, traces and certificates."""

from ._trace import Trace as Trace
from ._trace import trace as trace
from .certificate import Action as Action
from .certificate import Certificate as Certificate
from .certificate import Shifts as Shifts
from .certificate import certify as certify
from .score import ChiSquare as ChiSquare
from .score import EvidenceError as EvidenceError
from .score import ScoreResult as ScoreResult
from .score import score_statistic as score_statistic
