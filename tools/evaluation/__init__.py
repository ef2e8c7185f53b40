"""An evaluation by lm-eval through the server and by transformers, to compare: ``python -m tools.evaluation``."""
