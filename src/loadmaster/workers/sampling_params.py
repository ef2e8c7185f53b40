"""How a request is sampled. Plain data: checked in the engine's process, used in the last stage's."""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.arguments import is_huge, shown
from loadmaster.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen, and when it ends. Names, meanings and defaults are vLLM's.

    ``max_tokens`` None means as many as fit. ``temperature`` 0 is greedy. ``top_k`` 0 or -1 keeps all tokens. ``seed``
    None uses a random seed. ``ignore_eos`` continues after the model's end tokens, but not after ``stop_token_ids``.

    Raises:
        RequestError: a value has the wrong type or is out of range; names the parameter.
    """

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "seed"):
            if getattr(self, name) is not None:
                _expect(name, getattr(self, name), int, "an integer")
        _expect("top_k", self.top_k, int, "an integer")
        for name in ("temperature", "top_p"):
            _expect(name, getattr(self, name), (int, float), "a number")
        _expect("ignore_eos", self.ignore_eos, bool, "True or False")
        _expect("stop_token_ids", self.stop_token_ids, (tuple, list), "token ids")
        for token in self.stop_token_ids:
            _expect("stop_token_ids", token, int, "token ids")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, expected at least 1")
        if not 0 <= self.temperature <= 100:  # also refuses NaN
            raise RequestError(f"temperature is {self.temperature}, expected 0 to 100")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < -1:
            raise RequestError(f"top_k is {self.top_k}, expected 1 or more, or 0 or -1 for all tokens")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise RequestError(f"seed is {self.seed}, expected a 64-bit integer")


def _expect(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool) or is_huge(value):
        raise RequestError(f"{name} is {shown(value)}, expected {expected}")
