"""Powder diffraction patterns as blocks of a fit."""

from eadem.powder.profile import peaks as peaks

__all__ = ["peaks"]
