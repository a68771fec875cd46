"""What the data say of a tie: tests, traces and certificates."""

from .score import ChiSquare as ChiSquare
from .score import EvidenceError as EvidenceError
from .score import ScoreResult as ScoreResult
from .score import score_statistic as score_statistic
