"""What the data say of a tie: tests, traces and certificates."""

from .certificate import Certificate as Certificate
from .certificate import Shifts as Shifts
from .certificate import certify as certify
from .score import ChiSquare as ChiSquare
from .score import EvidenceError as EvidenceError
from .score import ScoreResult as ScoreResult
from .score import score_statistic as score_statistic
