"""Families as computation: a stage of layers, built from a plan's parameters. Declares no shapes, loads nothing."""

from loadmaster.models.build import build_stage
from loadmaster.models.stage import Stage

__all__ = ["Stage", "build_stage"]
