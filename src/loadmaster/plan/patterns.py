"""Patterns of module names in a config, matched in time that depends only on the name's length.

Configs are not trusted, and Python's ``re`` takes exponential time on some patterns (``(.*)*x``). Globs are matched by
searching for their pieces in turn. Regular expressions (compressed-tensors' ``re:…``) are matched by RE2, which has neither
look-around nor back-references; a config that needs them is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Protocol

from loadmaster.errors import ConfigError, UnsupportedError

_END = re.compile(r"(?<!\\)((?:\\\\)*)\\Z")
"""Python's notation for the end of a text; RE2's is ``\\z``."""


class Pattern(Protocol):
    """A pattern of module names."""

    def matches(self, module: str) -> bool:
        """Return whether the pattern matches a module, or one above it."""


def read_pattern(text: str) -> Pattern:
    """Return the pattern that a config writes as ``re:`` and a regular expression, or as a name with ``*``.

    >>> read_pattern("model.layers.0.*_proj").matches("model.layers.0.mlp.up_proj")
    True

    Raises:
        ConfigError: the regular expression is broken.
        UnsupportedError: it has look-around or back-references.
    """
    return Expression(text.removeprefix("re:")) if text.startswith("re:") else Glob(text)


class Glob:
    """A name with ``*`` for any run of characters, of a module or of one above it.

    >>> [Glob("lm_*.a").matches(name) for name in ("lm_head.a", "lm_head.a.b", "lm_head.ab")]
    [True, True, False]
    """

    def __init__(self, text: str) -> None:
        self.first, *middle, self.last = text.split("*")
        self.middle = [piece for piece in middle if piece]

    def matches(self, module: str) -> bool:
        """Return whether the pattern matches a module, or one above it."""
        if not module.startswith(self.first):
            return False
        at = len(self.first)
        for piece in self.middle:  # the earliest match leaves the most text for the next piece
            at = module.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return not self.last or module.endswith(self.last, at) or module.find(self.last + ".", at) >= 0


class Expression:
    """A regular expression, matched at the beginning of a module's name as compressed-tensors does."""

    def __init__(self, text: str) -> None:
        import re2  # half a megabyte that few configs need

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        try:
            self._match = re2.compile(_END.sub(r"\1\\z", text), options).match
        except re2.error as error:
            raise _refused(text, error) from error
        self._known = lru_cache(2**12)(lambda module: self._match(module) is not None)

    def matches(self, module: str) -> bool:
        """Return whether the pattern matches a module."""
        return self._known(module)


def _refused(text: str, error: Exception) -> ConfigError | UnsupportedError:
    reason = str(error.args[0] if error.args else error)
    reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
    where = f"config.json: quantization_config leaves modules out by the pattern {text[:80]!r}"
    if "(?" in text or "\\" in text:
        hint = "look-around and back-references are not supported; name the modules instead"
        return UnsupportedError(f"{where}, which cannot be matched: {reason}", hint=hint)
    return ConfigError(f"{where}, which is broken: {reason}")
