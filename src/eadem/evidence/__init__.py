"""What the data say of a tie: tests, traces and certificates."""

from ._clusters import ClusterRow as ClusterRow
from ._mean_test import MeanTest as MeanTest
from ._mean_test import mean_test as mean_test
from ._mean_test import site_mean_test as site_mean_test
from ._score_test import ScoreTest as ScoreTest
from ._score_test import score_test as score_test
from ._trace import Trace as Trace
from ._trace import trace as trace
from .certificate import Action as Action
from .certificate import Certificate as Certificate
from .certificate import Shifts as Shifts
from .certificate import certify as certify
from .nested import Comparison as Comparison
from .nested import LikelihoodRatio as LikelihoodRatio
from .nested import Wald as Wald
from .nested import compare as compare
from .nested import likelihood_ratio_test as likelihood_ratio_test
from .nested import wald_test as wald_test
from .score import ChiSquare as ChiSquare
from .score import EvidenceError as EvidenceError
from .score import ScoreResult as ScoreResult
from .score import score_statistic as score_statistic
