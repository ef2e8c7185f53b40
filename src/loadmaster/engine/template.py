"""Renders conversations with a checkpoint's chat template, in processes with limits (`engine.renderer_process`).

A template is a program from the checkpoint that runs on a client's input. Jinja's sandbox protects files and Python's
internals; it limits neither time nor memory. The kernel enforces those limits. The result is text: `Tokenizer` turns it
into tokens.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadmaster.engine.child import packed, receive
from loadmaster.engine.renderer_pool import START_WITHIN_S, RendererPool
from loadmaster.errors import CheckpointError, RequestError, clip

RENDER_WITHIN_S = 2.0
"""How long rendering one conversation may take."""

MEMORY_BYTES = 256 * 2**20
"""How much memory rendering may allocate, in addition to what its process has at the start."""

MAX_CHARACTERS = 16 * 2**20
"""The longest text that a template may return."""

NUM_RENDERERS = 2
"""Conversations rendered at once, so that a slow one does not delay the others."""

LATE_S = 3.0
"""A renderer's own timer kills it. If that does not happen (a stopped process), it is abandoned this much later."""

SAMPLE: Final[Mapping[str, Any]] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "add_generation_prompt": True,
    "continue_final_message": False,
    "documents": None,
    "tools": None,
    "variables": {},
}
"""If a template exceeds the limits on this, the template is wrong and not the request."""


class ChatTemplate:
    """Renders conversations as transformers does. Its process starts on first use, or by `start`.

    ``special_tokens`` are the tokenizer's, by their names in templates. ``renderers`` may be shared; then the caller closes
    them. Usable from any thread.
    """

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        *,
        renderers: RendererPool | None = None,
        within_s: float = RENDER_WITHIN_S,
    ) -> None:
        self._renderers, self._is_shared = renderers or RendererPool(), renderers is not None
        self._template = {"template": template, "special_tokens": dict(special_tokens), "within_s": within_s}
        self._within_s = within_s
        self._variables: frozenset[str] | None = None  # None until the template is compiled
        self._takes_tools = False
        self._defect: CheckpointError | None = None
        self._checking = threading.Lock()  # guards the three above
        self._idle: list[socket.socket] = []
        self._is_closed = False
        self._lock = threading.Lock()  # guards the two above
        self._slots = threading.BoundedSemaphore(NUM_RENDERERS)

    def start(self) -> None:
        """Start the process, compile the template and render a sample. Blocks.

        Raises:
            CheckpointError: the template does not compile, or exceeds the limits on the simplest conversation.
            RunError: the process cannot be started, or the template was closed.
        """
        with contextlib.suppress(CheckpointError):
            self._check()
        if self._defect is not None:
            raise self._defect

    def takes_tools(self) -> bool:
        """Return whether the template uses its variable ``tools``.

        Raises:
            CheckpointError, RunError: as `start` raises them.
        """
        self._check()
        return self._takes_tools

    def variables(self) -> frozenset[str]:
        """Return the names of the variables that a request may set.

        Raises:
            CheckpointError, RunError: as `start` raises them.
        """
        return self._check()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a conversation. ``variables`` are additional variables of the template.

        The others are those of transformers' ``apply_chat_template``.

        Raises:
            RequestError: the template has no such variable, rejects the messages, or exceeds the limits on them.
            CheckpointError: the template does not compile, or exceeds the limits on any conversation.
            RunError: the process cannot be started, or the template was closed.
        """
        allowed = self._check()
        variables = variables or {}
        if (unknown := next((name for name in variables if name not in allowed), None)) is not None:
            raise RequestError(
                f"chat_template_kwargs: {clip(repr(unknown))} is not a variable of the model's chat template that a "
                f"request may set; allowed: {', '.join(sorted(allowed)) or 'none'}"
            )
        request = {
            "messages": [dict(m) for m in messages],
            "tools": None if tools is None else [dict(t) for t in tools],
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "documents": None if documents is None else [dict(d) for d in documents],
            "variables": dict(variables),
        }
        try:
            reply = self._exchange(request)
        except _ExceededError as error:
            if self._defect is not None:
                raise self._defect from error
            raise RequestError(
                f"the chat template exceeded a limit on these messages: {error}",
                hint="send fewer or shorter messages, or change chat_template_kwargs",
            ) from error
        if "refused" in reply:
            raise RequestError(f"the chat template rejects the messages: {clip(reply['refused'])}")
        return str(reply["text"])

    def close(self) -> None:
        """End the renderers. May be called again, from any thread."""
        with self._lock:
            self._is_closed = True
            for pipe in self._idle:
                pipe.close()
            self._idle.clear()
        if not self._is_shared:
            self._renderers.close()

    def _check(self) -> frozenset[str]:
        """Return the variables that a request may set. The first call compiles the template and renders a sample."""
        with self._checking:
            if self._variables is None and self._defect is None:
                try:
                    self._exchange(SAMPLE)
                except _ExceededError as error:
                    self._defect = CheckpointError(
                        f"cannot use the model's chat template: even on one short message {error}",
                        hint="use /v1/completions with a prompt, or fix the chat template of the checkpoint",
                    )
                except CheckpointError as error:
                    self._defect = error
            if self._variables is None:
                assert self._defect is not None
                raise self._defect
            return self._variables

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to a renderer and return its reply. An idle renderer that has ended is replaced."""
        data = packed(request)
        with self._slots:
            with self._lock:
                pipe = self._idle.pop() if self._idle else None
            if pipe is not None and not _is_alive(pipe):
                pipe.close()
                pipe = None
            pipe = pipe or self._new_renderer()
            reply = self._ask(pipe, data, self._within_s)
            with self._lock:
                if self._is_closed:
                    pipe.close()
                else:
                    self._idle.append(pipe)
            return reply

    def _new_renderer(self) -> socket.socket:
        """Return the socket of a renderer that has compiled the template."""
        pipe = self._renderers.new()
        reply = self._ask(pipe, packed(self._template), START_WITHIN_S)
        if "broken" in reply:
            pipe.close()
            raise CheckpointError(
                f"cannot use the model's chat template: {clip(reply['broken'])}",
                hint="use /v1/completions with a prompt, or fix the chat template of the checkpoint",
            )
        self._variables, self._takes_tools = frozenset(reply["variables"]), reply["takes_tools"]
        return pipe

    def _ask(self, pipe: socket.socket, data: bytes, within_s: float) -> dict[str, Any]:
        """Send a message and return the reply. Close ``pipe`` if there is none, or if a limit was exceeded."""
        begin = time.monotonic()
        pipe.settimeout(within_s + LATE_S)
        try:
            pipe.sendall(data)
            reply: dict[str, Any] = receive(pipe)
            if "exceeded" not in reply:
                return reply
            error = _ExceededError(reply["exceeded"])
        except OSError:
            is_late = time.monotonic() - begin >= 0.9 * self._within_s
            error = _ExceededError(f"it takes more than {self._within_s:g} s" if is_late else "its process was killed")
        except BaseException:
            pipe.close()
            raise
        pipe.close()
        self._renderers.check()
        raise error


class _ExceededError(Exception):
    """A limit ended a renderer; the message names it."""


def _is_alive(pipe: socket.socket) -> bool:
    """Return whether an idle renderer still has its end of the socket open."""
    pipe.setblocking(False)
    try:
        return bool(pipe.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
