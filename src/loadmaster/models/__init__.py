"""Families as computation: a stage of layers, built from a plan's parameters. Declares no shapes, loads nothing."""

from loadmaster.models.stage import Stage, build_stage

__all__ = ["Stage", "build_stage"]
