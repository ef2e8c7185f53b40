"""The formats of weights that the layers compute with: a separate file, so that it can be imported without torch."""

RUNNABLE_FORMATS = (None, "fp8_block")
"""None is plain; the rest are names of `loadmaster.formats`."""
