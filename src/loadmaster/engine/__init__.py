"""Runs a model: the engine, its checks, and text to tokens and back. Imports no torch; the workers do.

with Engine(plan) as engine:
    for token in engine.generate(prompt_token_ids, SamplingParams(max_tokens=16)):
        ...
"""

from loadmaster.engine.answer import AnswerText, Piece, TextOptions, complete, params_of_choices
from loadmaster.engine.capacity import Capacity
from loadmaster.engine.engine import Engine, Statistics
from loadmaster.engine.launched import run_rank
from loadmaster.engine.limits import Limits, read_limits
from loadmaster.engine.loading import Loading, RankProgress
from loadmaster.engine.request import Output, Stream
from loadmaster.engine.support import refuse_model, refuse_options, refuse_plan, require_run_extra, speculative_tokens
from loadmaster.engine.tokenizer import Detokenizer, Tokenizer

__all__ = [
    "AnswerText",
    "Capacity",
    "Detokenizer",
    "Engine",
    "Limits",
    "Loading",
    "Output",
    "Piece",
    "RankProgress",
    "Statistics",
    "Stream",
    "TextOptions",
    "Tokenizer",
    "complete",
    "params_of_choices",
    "read_limits",
    "refuse_model",
    "refuse_options",
    "refuse_plan",
    "require_run_extra",
    "run_rank",
    "speculative_tokens",
]
