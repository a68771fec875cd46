"""Ties on an nn.Module. The only room that opens one."""

from .look import Counts as Counts
from .look import Reader as Reader
from .look import check as check
from .look import computed_sites as computed_sites
from .look import counts as counts
from .look import declarations as declarations
from .look import explain as explain
from .look import free_vector as free_vector
from .look import readers as readers
from .look import resolved as resolved
from .look import set_free_vector as set_free_vector
from .look import site_values as site_values
from .look import ties as ties
from .names import match as match
from .observe import observe as observe
from .optimizers import check_optimizers as check_optimizers
from .split import refuse_split as refuse_split
from .ties import Tie as Tie
from .ties import declare as declare
from .ties import plan as plan
from .ties import tie as tie
from .ties import tie_modules as tie_modules
from .untie import twin as twin
from .untie import untie as untie
