"""The server's log on standard error: one line a message, as text or as JSON, its own and uvicorn's.

What clients send cannot end a line, and cannot look like one: control characters are escaped, and a traceback is indented.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

LOGGER: Final = logging.getLogger("loadmaster.server")
LOGGER.addHandler(
    logging.NullHandler()
)  # without it Python prints the bare word of each warning where no log is configured

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]+")
"""Values that need no quotes after a name and ``=``: visible ASCII without ``"``, ``=`` and the backslash."""


def configure_logging(format: LogFormat, level: str) -> None:
    """Send the messages of this package and of uvicorn at ``level`` (``INFO`` …) and above to standard error.

    Programs that serve without calling this configure Python's `logging` themselves, or get notices alone.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text())
    for name in ("loadmaster", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    if level != "DEBUG":
        # At the start and the end uvicorn says at INFO what this server says itself.
        logging.getLogger("uvicorn").setLevel(max(logging.getLevelName(level), logging.WARNING))


def notice(message: str, level: int = logging.INFO) -> None:
    """Log what an operator waits for, or must know. If `configure_logging` was not called, print it."""
    if logging.getLogger("loadmaster").handlers:
        LOGGER.log(level, "%s", message)
    else:
        print(f"warning: {message}" if level >= logging.WARNING else message, file=sys.stderr, flush=True)


def escaped(text: str) -> str:
    """Return text without control characters, line ends and surrogates: they are written as escapes.

    >>> escaped("a\\nINFO all is well")
    'a\\\\nINFO all is well'
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def fields_as_text(fields: Mapping[str, Any]) -> str:
    """Return ``name=value`` pairs (logfmt). Values that are None are left out, seconds have microseconds.

    >>> fields_as_text({"id": "a", "route": "/x y", "queue_s": 0.25, "model": None, "finish_reasons": ["stop", "length"]})
    'id=a route="/x y" queue_s=0.250000 finish_reasons=stop,length'
    """
    return " ".join(f"{name}={_value(value)}" for name, value in fields.items() if value not in (None, []))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class _Text(logging.Formatter):
    """``2026-11-28 16:05:24.123 INFO message name=value …``, in UTC."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = getattr(record, "fields", None)
        record.message = escaped(record.message) + (f" {fields_as_text(fields)}" if fields else "")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {escaped(line)}" for line in lines)


class _Json(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``message`` and the fields of the message."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
