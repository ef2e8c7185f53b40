"""Messages as bytes, and back. Decoding creates nothing but messages, plain values and errors of this package.

A pickle can name any function and have it called; here it can name the classes of `KNOWN` alone. A sender of messages can send
wrong ones, but cannot run code: docs/decisions/0006-several-hosts.md.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from loadmaster import errors, findings
from loadmaster.workers import batch, messages, sampling_params, structured_outputs

KNOWN = {
    (module.__name__, name): value
    for module in (batch, messages, sampling_params, structured_outputs, errors, findings)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__
}
"""The classes that a message can consist of, by module and name."""


def dumps(message: object) -> bytes:
    """Return a message as bytes."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def loads(data: bytes) -> Any:
    """Return the message that `dumps` encoded.

    Raises:
        ValueError: the bytes are not a message.
    """
    try:
        return _Decoder(io.BytesIO(data)).load()
    except Exception as error:
        raise ValueError(f"not a message: {type(error).__name__}: {error}") from error


class _Decoder(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return a class of `KNOWN`."""
        if (module_name, global_name) not in KNOWN:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not part of any message")
        return KNOWN[module_name, global_name]
