"""Sites, declarations, and the plan that all declarations of a model resolve to."""

from .arrays import PlanArrays as PlanArrays
from .classify import BoundMaps as BoundMaps
from .classify import bind_maps as bind_maps
from .classify import same_map as same_map
from .plan import Expression as Expression
from .plan import LinearPlan as LinearPlan
from .plan import Owner as Owner
from .plan import Plan as Plan
from .plan import make_plan as make_plan
from .resolve import Group as Group
from .resolve import connected as connected
from .resolve import resolve as resolve
from .resolve import resolve_group as resolve_group
from .site import Declaration as Declaration
from .site import Entry as Entry
from .site import Site as Site
from .site import canonical as canonical
from .site import parse as parse
from .start import Known as Known
from .start import first as first
from .start import mean as mean
from .start import plan_of as plan_of
from .start import residuals as residuals
