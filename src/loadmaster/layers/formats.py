"""Which formats of weights the layers compute with. Apart from the layers, so that it can be asked without torch."""

RUNNABLE_FORMATS = (None, "fp8_block")
"""None is plain; the rest are names of `loadmaster.formats`."""
