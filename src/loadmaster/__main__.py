"""``python -m loadmaster``."""

from loadmaster.cli.main import entry

entry()
