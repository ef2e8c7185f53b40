"""Runs a loaded model: one process a pipeline stage, an engine over them, sampling, text in and out.

    with Engine(plan) as engine:
        for token in engine.generate(prompt_token_ids, SamplingParams(max_tokens=16)):
            ...

The process that holds the engine imports no torch; the workers do.
"""

from loadmaster.runtime.completion import Piece, complete
from loadmaster.runtime.engine import Engine, refuse_model, refuse_options, refuse_plan
from loadmaster.runtime.extra import require_run_extra
from loadmaster.runtime.limits import Limits, read_limits
from loadmaster.runtime.params import SamplingParams
from loadmaster.runtime.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "Detokenizer",
    "Engine",
    "Limits",
    "Piece",
    "SamplingParams",
    "Tokenizer",
    "complete",
    "read_limits",
    "refuse_model",
    "refuse_options",
    "refuse_plan",
    "require_run_extra",
]
