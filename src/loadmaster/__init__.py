"""Loadmaster: put any checkpoint on any parallel layout, proven before launch. Then run it."""

__version__ = "0.1.0"
