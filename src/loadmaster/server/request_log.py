"""What the log says about requests: a line for each, and on demand what they ask and what is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from loadmaster.server.log import LOGGER
from loadmaster.server.records import Record
from loadmaster.server.settings import Settings
from loadmaster.workers import SamplingParams

_LEVELS: Final = {"failed": logging.ERROR, "timed out": logging.WARNING, "shut down": logging.WARNING}


class RequestLog:
    """Logs requests as ``settings`` say. Nothing of a prompt or an answer is logged unless they say so.

    As in vLLM: with ``log_requests`` the parameters of each request are logged at INFO and its prompt at DEBUG; with
    ``log_outputs`` its answers at INFO; at most ``max_log_len`` characters, or token ids, of each.
    """

    def __init__(self, settings: Settings) -> None:
        self._quiet = frozenset(settings.quiet_endpoints)
        self._requests, self._outputs, self._most = settings.log_requests, settings.log_outputs, settings.max_log_len

    def ended(self, record: Record) -> None:
        """Log a request that is over: at DEBUG if its endpoint is one of ``quiet_endpoints``."""
        level = _LEVELS.get(record.outcome or "", logging.INFO)
        if (record.route or record.path) in self._quiet:
            level = logging.DEBUG
        if LOGGER.isEnabledFor(level):
            fields = {k: v for k, v in record.as_json().items() if k != "received"}
            LOGGER.log(level, "request", extra={"fields": fields})

    def received(self, record: Record, prompts: Iterable[tuple[Sequence[int], SamplingParams]]) -> None:
        """Log what a request asks for."""
        if not self._requests:
            return
        for token_ids, params in prompts:
            LOGGER.info("parameters", extra={"fields": {"id": record.id, "params": repr(params)}})
            if LOGGER.isEnabledFor(logging.DEBUG):
                prompt = list(token_ids[: self._most])
                LOGGER.debug("prompt", extra={"fields": {"id": record.id, "prompt_token_ids": json.dumps(prompt)}})

    def answered(self, record: Record, answers: Iterable[tuple[str, str | None]]) -> None:
        """Log the texts of the answers so far, each with its finish reason."""
        if not self._outputs:
            return
        for index, (text, reason) in enumerate(answers):
            fields = {"id": record.id, "index": index, "finish_reason": reason, "text": text[: self._most]}
            LOGGER.info("answer", extra={"fields": fields})
