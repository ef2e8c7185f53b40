"""The process that renders chat templates: ``python -m loadmaster.engine.renderer_process FD``, started by `RendererPool`.

FD is a socket over which other sockets arrive. For each of them this process forks a child, a renderer: transformers is
imported once, and a new renderer takes milliseconds. A renderer answers the messages on its socket, in order:

    {"template": TEXT, "special_tokens": {…}, "within_s": SECONDS}
        {"variables": […], "takes_tools": BOOL} or {"broken": WHY}
    {"messages": […], "tools": […] or null, "add_generation_prompt": BOOL, "continue_final_message": BOOL,
     "documents": […] or null, "variables": {…}}
        {"text": TEXT}, {"refused": WHY} or {"exceeded": WHAT}

A renderer that takes longer than ``within_s`` for a message is killed by its own timer. It cannot allocate more memory
than its limit. This process has one thread, imports no torch, and ends when FD is closed.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from loadmaster.engine.child import confine, ignore_signals, receive, send
from loadmaster.engine.template import MAX_CHARACTERS, MEMORY_BYTES


def main(fd: int) -> None:
    """Fork a renderer for every socket that arrives, until ``fd`` is closed."""
    ignore_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel reaps the children
    import transformers.utils.chat_template_utils  # noqa: F401  (here, so that no child has to import it)
    from transformers import PreTrainedTokenizerBase  # noqa: F401

    with socket.socket(fileno=fd) as control:
        while True:
            data, fds, _, _ = socket.recv_fds(control, 16, 1)
            if not data:
                return
            with socket.socket(fileno=fds[0]) as pipe, contextlib.suppress(OSError):  # fork failed: its socket closes
                if os.fork() == 0:
                    try:
                        control.close()
                        confine(MEMORY_BYTES)
                        _work(pipe)
                    finally:
                        os._exit(0)


def _work(pipe: socket.socket) -> None:
    """Answer messages until the socket is closed or the memory limit is reached."""
    first = receive(pipe)
    within_s = first["within_s"]
    signal.setitimer(signal.ITIMER_REAL, within_s)  # SIGALRM ends the process, whatever it is doing
    try:
        template = _Template(first["template"], first["special_tokens"])
        send(pipe, template.describe())
        while True:
            signal.setitimer(signal.ITIMER_REAL, 0)
            message = receive(pipe, lambda: signal.setitimer(signal.ITIMER_REAL, within_s))
            send(pipe, template.render(message))
    except MemoryError:
        send(pipe, {"exceeded": f"it needs more than {MEMORY_BYTES // 2**20} MiB of memory"})


class _Template:
    """A template and the special tokens of its tokenizer. transformers' code renders it."""

    def __init__(self, template: str, special_tokens: dict[str, str]) -> None:
        from transformers import PreTrainedTokenizerBase

        class Tokenizer(PreTrainedTokenizerBase):
            @property
            def special_tokens_map(self) -> dict[str, str]:
                return special_tokens

        self._template = template
        kind: Any = Tokenizer
        self._tokenizer = kind(chat_template=template)
        parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents"}
        special = {*PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES, *special_tokens}
        self._reserved = {*parameters, *special, "messages", "conversations"}

    def describe(self) -> dict[str, Any]:
        """Return the variables that a request may set, or why the template cannot be used."""
        from jinja2.meta import find_undeclared_variables
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            environment = _compile_jinja_template(self._template).environment
            names = find_undeclared_variables(environment.parse(self._template))
        except MemoryError:
            raise
        except Exception as error:  # a compiler can raise anything on hostile text
            return {"broken": f"{type(error).__name__}: {error}"[:1000]}
        return {"variables": sorted(names - self._reserved), "takes_tools": "tools" in names}

    def render(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the conversation as text, or why it cannot be rendered."""
        variables = message["variables"]
        if message["documents"] is not None:  # which is a variable that a request may set, too
            variables = {**variables, "documents": message["documents"]}
        try:
            text = self._tokenizer.apply_chat_template(
                message["messages"],
                tools=message["tools"],
                **variables,
                add_generation_prompt=message["add_generation_prompt"],
                continue_final_message=message["continue_final_message"],
                tokenize=False,
            )
        except MemoryError:
            raise
        except Exception as error:  # a template's code can raise anything
            return {"refused": (str(error) or type(error).__name__)[:1000]}
        if len(text) > MAX_CHARACTERS:
            return {"exceeded": f"it returns more than {MAX_CHARACTERS:,} characters"}
        return {"text": text}


if __name__ == "__main__":
    main(int(sys.argv[1]))
