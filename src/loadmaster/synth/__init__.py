"""Writes checkpoints: tiny ones with random weights in the real layout, and full-size ones as sparse files.

For tests, demonstrations and rehearsals. `loadmaster synth` writes them; they are read like any other checkpoint.
"""

from loadmaster.synth.described import read_config_file, write_described
from loadmaster.synth.models import PRESETS
from loadmaster.synth.presets import Preset
from loadmaster.synth.write import write_full_size, write_tiny

__all__ = ["PRESETS", "Preset", "read_config_file", "write_described", "write_full_size", "write_tiny"]
