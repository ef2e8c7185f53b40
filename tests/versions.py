"""Versions of packages that tests compare with, for what older ones cannot show."""

from __future__ import annotations

from importlib.metadata import version

TRANSFORMERS = tuple(int(part) for part in version("transformers").split(".")[:2])
"""Major and minor version of transformers."""
