"""Eadem: parameter sharing as one linear map from free values to the places they are used."""

from .errors import EademError as EademError
