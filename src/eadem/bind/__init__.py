"""Ties on an nn.Module. The only room that opens one."""

from .fill import fill as fill
from .fill import loads_by_itself as loads_by_itself
from .fill import undone_on_error as undone_on_error
from .look import Counts as Counts
from .look import check as check
from .look import counts as counts
from .look import declarations as declarations
from .look import explain as explain
from .look import free_vector as free_vector
from .look import resolved as resolved
from .look import set_free_vector as set_free_vector
from .look import site_values as site_values
from .look import ties as ties
from .observe import observe as observe
from .optimizers import check_optimizers as check_optimizers
from .ties import Start as Start
from .ties import Tie as Tie
from .ties import declare as declare
from .ties import plan as plan
from .ties import tie as tie
from .ties import tie_modules as tie_modules
from .untie import twin as twin
from .untie import untie as untie
