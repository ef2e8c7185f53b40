"""The demo: run it with ``make demo``."""
