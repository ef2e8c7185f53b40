"""How a request is sampled. Plain data: checked in the engine's process, used in the last stage's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loadmaster.arguments import is_huge, shown
from loadmaster.errors import RequestError
from loadmaster.workers.structured_outputs import Grammar, StructuredOutputs

GREEDY_BELOW = 1e-5
"""Below this temperature sampling is greedy, as in vLLM."""

MAX_BAD_WORDS = 128
"""The most token sequences of ``bad_words_token_ids``, vLLM's limit. Each is compared with the answer after every token."""

MAX_LOGPROBS = 20
"""The most top tokens whose log probabilities a request can ask for, vLLM's default (``--max-logprobs``)."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "seed": (-(2**63), 2**63 - 1),
}
"""Parameters with a least and a largest value, both allowed."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen, and when it ends. Names, meanings and defaults are vLLM's.

    ``max_tokens`` None means as many as fit. The end tokens and ``stop_token_ids`` are not generated before ``min_tokens``
    tokens. ``temperature`` 0 is greedy. ``top_k`` 0 or -1 keeps all tokens. ``top_p`` keeps the fewest of the likeliest
    tokens that have this probability together; ``min_p`` those with at least this part of the likeliest token's probability.

    ``repetition_penalty`` divides positive logits, and multiplies negative ones, of tokens in the prompt or the answer.
    ``presence_penalty`` is subtracted from the logits of tokens in the answer, ``frequency_penalty`` once for each time a
    token is in it. ``logit_bias`` is added to the logits of tokens: a mapping or pairs; kept as pairs in order of token ids.

    ``allowed_token_ids`` are the only tokens that may be generated; kept in order, each once. ``bad_words_token_ids`` are token
    sequences that the answer never contains: the last token of each is not generated after the others.

    ``seed`` None uses a random seed. ``ignore_eos`` continues after the model's end tokens, but not after
    ``stop_token_ids``. ``logprobs`` asks for the log probability of each generated token and of this many of the likeliest
    tokens at its position, ``prompt_logprobs`` for those of the prompt's tokens; both before penalties and temperature.

    ``structured_outputs`` says what the answer has to look like; log probabilities are then those among the tokens that may
    come. The engine turns it into a `Grammar`.

    Raises:
        RequestError: a value has the wrong type or is out of range; names the parameter.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | Grammar | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "seed", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _expect(name, getattr(self, name), int, "an integer")
        for name in ("min_tokens", "top_k"):
            _expect(name, getattr(self, name), int, "an integer")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            _expect(name, getattr(self, name), (int, float), "a number")
        _expect("ignore_eos", self.ignore_eos, bool, "True or False")
        if self.structured_outputs is not None:
            kinds = (StructuredOutputs, Grammar)
            _expect("structured_outputs", self.structured_outputs, kinds, "StructuredOutputs")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # also refuses NaN
                raise RequestError(f"{name} is {value}, expected {least} to {most}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if self.min_tokens < 0:
            raise RequestError(f"min_tokens is {self.min_tokens}, expected at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, expected at most max_tokens, {self.max_tokens}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < -1:
            raise RequestError(f"top_k is {self.top_k}, expected 1 or more, or 0 or -1 for all tokens")
        if not 0 < self.repetition_penalty < math.inf:
            raise RequestError(f"repetition_penalty is {self.repetition_penalty}, expected a number above 0")
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            allowed = tuple(sorted(set(_token_ids("allowed_token_ids", self.allowed_token_ids))))
            if not allowed:
                raise RequestError("allowed_token_ids is empty, expected at least one token id")
            object.__setattr__(self, "allowed_token_ids", allowed)
        object.__setattr__(self, "bad_words_token_ids", _sequences(self.bad_words_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as pairs of a token id and what is added to its logit, in order of token ids."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Check that the tokens which ``params`` names exist.

    Raises:
        RequestError: a token id is not in the model's vocabulary; names the parameter.
    """
    for name, token_ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", [token for token, _ in params.biases]),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("bad_words_token_ids", [token for word in params.bad_words_token_ids for token in word]),
        ("structured_outputs", params.structured_outputs.after if params.structured_outputs is not None else ()),
    ):
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise RequestError(f"{name} has token id {unknown}, expected 0 to {vocab_size - 1}, the model's vocabulary")


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    _expect(name, value, (tuple, list), "token ids")
    assert isinstance(value, (tuple, list))
    for token in value:
        _expect(name, token, int, "token ids")
    return tuple(value)


def _sequences(value: object) -> tuple[tuple[int, ...], ...]:
    name = "bad_words_token_ids"
    _expect(name, value, (tuple, list), "lists of token ids")
    assert isinstance(value, (tuple, list))
    sequences = tuple(_token_ids(name, one) for one in value)
    if len(sequences) > MAX_BAD_WORDS:
        raise RequestError(f"{name} has {len(sequences):,} entries, expected at most {MAX_BAD_WORDS}")
    if () in sequences:
        raise RequestError(f"{name} has an entry without tokens")
    return sequences


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    expected = "token ids with numbers from -100 to 100"
    _expect("logit_bias", value, (Mapping, tuple, list), expected)
    assert isinstance(value, (Mapping, tuple, list))
    pairs = list(value.items()) if isinstance(value, Mapping) else list(value)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise RequestError(f"logit_bias has {shown(pair)}, expected {expected}")
        token, bias = pair
        _expect("logit_bias", token, int, expected)
        _expect("logit_bias", bias, (int, float), expected)
        if not -100 <= bias <= 100:
            raise RequestError(f"logit_bias has {bias} for token id {token}, expected -100 to 100")
    biases = {token: float(bias) for token, bias in pairs}
    if len(biases) < len(pairs):
        raise RequestError("logit_bias has a token id twice")
    return tuple(sorted(biases.items()))


def _expect(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool) or is_huge(value):
        raise RequestError(f"{name} is {shown(value)}, expected {expected}")
