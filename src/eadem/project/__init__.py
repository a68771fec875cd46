"""Fits for those who do not program: a project file in, a folder with a report out."""

from .build import build as build
from .errors import ProjectError as ProjectError
from .expression import Expression as Expression
from .fit import Outcome as Outcome
from .fit import fit_project as fit_project
from .fit import solve as solve
from .models import MODELS as MODELS
from .spec import Project as Project
from .spec import load as load
