"""Text to token ids and back. The tokenizer itself is transformers'; it is loaded when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadmaster.engine.template import ChatTemplate
from loadmaster.errors import CheckpointError, RequestError, RunError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
"""A folder with none of these has no tokenizer."""

REPLACEMENT = "\ufffd"
"""What bytes that are no character, or not yet, are decoded to."""


class Tokenizer:
    """The tokenizer of a checkpoint, if it has one. Without one a model takes and gives token ids only."""

    def __init__(self, model_path: Path) -> None:
        self._path = model_path
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._template: ChatTemplate | None = None
        self._longest: int | None = None
        self._is_closed = False

    @property
    def exists(self) -> bool:
        """Whether the checkpoint has a tokenizer."""
        return any((self._path / name).is_file() for name in FILES)

    def load(self) -> None:
        """Load it now, if it exists.

        Raises:
            CheckpointError: its files cannot be read.
        """
        if self.exists:
            self._get()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of ``text``, with the special tokens that the tokenizer puts around it unless told not to.

        Raises:
            RequestError: the model has no tokenizer, or ``text`` has a lone surrogate.
        """
        tokenizer = self._get()
        try:
            return [int(t) for t in tokenizer.encode(text, add_special_tokens=add_special_tokens)]
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate, U+{ord(text[error.start]):04X}: it is not text"
            ) from error

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the ids of a conversation, by the model's chat template.

        ``template_options`` are variables of the template. It is rendered by processes with limits of time, memory and
        output (`ChatTemplate`); they end with this object or with `close`.

        Raises:
            RequestError: the model has no tokenizer or no chat template; the template has no such variable, refuses the
                messages, or exceeds the limits on them.
            CheckpointError: the template cannot be used at all.
        """
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, variables=template_options)
        return self.encode(text, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation, special tokens included, by the model's chat template.

        Raises:
            RequestError, CheckpointError: as `encode_chat` does.
        """
        template = self._chat_template()
        return template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)

    def start_template(self) -> None:
        """Start what renders the chat template, if there is one, and try the template.

        Raises:
            CheckpointError: the template cannot be used.
        """
        if self.exists and self._get().chat_template:
            self._chat_template().start()

    def close(self) -> None:
        """End what renders the chat template. May be called again."""
        with self._lock:
            self._is_closed = True
            if self._template is not None:
                self._template.close()

    @property
    def longest_token(self) -> int:
        """Characters of the longest token. A text of more than N times as many has more than N tokens.

        That holds of tokenizers that lose no characters, as all do that a model of text has.
        """
        if self._longest is None:
            self._longest = max(map(len, self._get().get_vocab()), default=1)
        return self._longest

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ``token_ids``, without special tokens."""
        return str(self._get().decode(list(token_ids), skip_special_tokens=True))

    def _get(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _chat_template(self) -> ChatTemplate:
        tokenizer = self._get()
        if not tokenizer.chat_template:
            raise RequestError("the model has no chat template", hint="use /v1/completions with a prompt")
        with self._lock:
            if self._is_closed:
                raise RunError("the tokenizer is closed")
            if self._template is None:
                try:
                    text = tokenizer.get_chat_template()
                except ValueError as error:  # several, and none is the default
                    raise CheckpointError(f"the model's chat template cannot be used: {error}") from error
                self._template = ChatTemplate(text, tokenizer.special_tokens_map)
            return self._template

    def _load(self) -> Any:
        if not self.exists:
            raise RequestError(
                f"{self._path} has no tokenizer, so it takes no text", hint="give the prompt as token ids instead"
            )
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(self._path), local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise CheckpointError(f"the tokenizer in {self._path} cannot be loaded: {error}") from error


class Detokenizer:
    """Turns tokens into text as they come. A character whose last byte is still to come is held back.

    What it gives, joined, is the text of all tokens together. The text of a token can depend on those before it, so a
    window is decoded, and what its older part gives is left out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # of the window
        self._given = 0  # tokens whose text was given

    def add(self, token: int) -> str:
        """Take a token and return the text that is now certain, perhaps none."""
        self._tokens.append(token)
        text = self._pending()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._given = self._given, len(self._tokens)
        return text

    def finish(self) -> str:
        """Return what was held back; no more tokens come."""
        text = self._pending()
        self._start = self._given = len(self._tokens)
        return text

    def _pending(self) -> str:
        if self._given == len(self._tokens):
            return ""
        before = self._tokenizer.decode(self._tokens[self._start : self._given])
        return self._tokenizer.decode(self._tokens[self._start :])[len(before) :]
