"""Converts text to token ids and back, with transformers' tokenizer, which is loaded on first use."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadmaster.engine import tokenizer_class
from loadmaster.engine.renderer_pool import RendererPool
from loadmaster.engine.template import ChatTemplate
from loadmaster.errors import CheckpointError, RequestError, RunError, clip
from loadmaster.workers.messages import Vocabulary

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
"""A folder without any of these files has no tokenizer."""

REPLACEMENT = "\ufffd"
"""What an invalid or incomplete character is decoded to."""


class Tokenizer:
    """The tokenizer of a checkpoint, if it has one. Without a tokenizer, prompts and answers are token ids only.

    ``renderers`` may be shared by several tokenizers; then the caller closes them.
    """

    def __init__(self, model_path: Path, *, renderers: RendererPool | None = None) -> None:
        self._path = model_path
        self._renderers = renderers
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._template: ChatTemplate | None = None
        self._longest: int | None = None
        self._special: dict[int, str] | None = None
        self._texts: dict[int, str] = {}  # of single tokens; at most the vocabulary
        self._alone: dict[int, str] = {}  # the same, as the text of an answer: without special tokens
        self._is_closed = False

    @property
    def exists(self) -> bool:
        """Whether the checkpoint has a tokenizer."""
        return any((self._path / name).is_file() for name in FILES)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer is loaded and has a chat template. Loads nothing, so it is cheap."""
        return self._loaded is not None and bool(self._loaded.chat_template)

    def load(self) -> None:
        """Load the tokenizer now, if it exists.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        if self.exists:
            self._get()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``, with the special tokens that the tokenizer adds if ``add_special_tokens``.

        Raises:
            RequestError: the model has no tokenizer, or ``text`` has a lone surrogate.
        """
        tokenizer = self._get()
        try:
            return [int(t) for t in tokenizer.encode(text, add_special_tokens=add_special_tokens)]
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text is not valid: it has a lone surrogate, U+{ord(text[error.start]):04X}"
            ) from error

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        template_options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation, rendered with the model's chat template.

        ``template_options`` are variables of the template. Processes with limits on time, memory and output render it
        (`ChatTemplate`); they end with this object or with `close`.

        Raises:
            RequestError: the model has no tokenizer or no chat template; or the template has no such variable, rejects the
                messages, or exceeds the limits on them.
            CheckpointError: the template cannot be used.
        """
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, variables=template_options)
        return self.encode(text, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text of a conversation, with special tokens, rendered with the model's chat template.

        ``continue_final_message`` ends it within the last message. ``documents`` are what the model may refer to; a template that
        has no place for them leaves them out.

        Raises:
            RequestError, CheckpointError: as `encode_chat` raises them.
        """
        template = self._chat_template()
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            documents=documents,
            variables=variables,
            tools=tools,
        )

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template; None if there is none, or none that can be used."""
        try:
            return str(self._get().get_chat_template()) if self.exists else None
        except ValueError:  # there is none, or several and no default
            return None

    def takes_tools(self) -> bool:
        """Return whether the chat template uses a variable ``tools``.

        Raises:
            RequestError, CheckpointError: as `encode_chat` raises them.
        """
        return self._chat_template().takes_tools()

    def template_variables(self) -> frozenset[str]:
        """Return the names of the variables of the chat template that a request may set.

        Raises:
            RequestError, CheckpointError: as `encode_chat` raises them.
        """
        return self._chat_template().variables()

    def start_template(self) -> None:
        """Start the process that renders the chat template, if there is one, and render a sample.

        Raises:
            CheckpointError: the template cannot be used.
        """
        if self.exists and self._get().chat_template:
            self._chat_template().start()

    def close(self) -> None:
        """End the process that renders the chat template. May be called again."""
        with self._lock:
            self._is_closed = True
            if self._template is not None:
                self._template.close()

    @property
    def longest_token(self) -> int:
        """Characters of the longest token. A text of more than N times this many characters has more than N tokens.

        This is true of tokenizers that keep every character, as those of text models do.
        """
        if self._longest is None:
            self._longest = max(map(len, self._get().get_vocab()), default=1)
        return self._longest

    def vocabulary(self) -> Vocabulary:
        """Return the texts of the tokens, as structured outputs need them.

        Raises:
            RequestError: the model has no tokenizer, or one that is not written in Rust.
        """
        tokenizer = self._get()
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
            raise RequestError(f"structured_outputs are not supported with the model's {type(tokenizer).__name__}")
        num_tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
        return Vocabulary(zlib.compress(backend.to_str().encode(), 1), num_tokens)

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> str:
        """Return the text of ``token_ids``, by default without special tokens, except those in ``keep``."""
        if keep and skip_special_tokens:
            special = self._special_tokens().keys() - keep
            token_ids, skip_special_tokens = [t for t in token_ids if t not in special], False
        if len(token_ids) != 1 or not skip_special_tokens:
            return str(self._get().decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        token_id = token_ids[0]  # `Detokenizer` needs it for every token of an answer, and it takes 10 µs
        if (text := self._alone.get(token_id)) is None:
            text = self._alone[token_id] = str(self._get().decode([token_id], skip_special_tokens=True))
        return text

    def special_ids(self, texts: Sequence[str]) -> frozenset[int]:
        """Return the ids of the special tokens that are one of ``texts``; none if the model has no tokenizer."""
        return (
            frozenset(i for i, text in self._special_tokens().items() if text in texts) if self.exists else frozenset()
        )

    def token_id(self, text: str) -> int | None:
        """Return the id of the token that is written ``text``, None if no single token is."""
        tokenizer = self._get()
        found = tokenizer.convert_tokens_to_ids(text)
        return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == text else None

    def _special_tokens(self) -> dict[int, str]:
        if self._special is None:
            added = self._get().added_tokens_decoder
            self._special = {int(i): str(t.content) for i, t in added.items() if t.special}
        return self._special

    def word_token_ids(self, words: Sequence[str]) -> list[list[int]]:
        """Return the token sequences that ``words`` are written with: at the beginning of a text, and after a space.

        The second is left out where it begins with the same token, or has another length: then its first token is the space
        alone, or the word is divided in another way. vLLM's rule (``update_from_tokenizer`` in ``vllm/sampling_params.py``).

        Raises:
            RequestError: the model has no tokenizer, or a word has no tokens.
        """
        sequences = []
        for word in words:
            plain = self.encode(word.lstrip(), add_special_tokens=False)
            if not plain:
                raise RequestError(f"bad_words has {clip(repr(word))}, expected words with at least one token")
            sequences.append(plain)
            after_space = self.encode(f" {word.lstrip()}", add_special_tokens=False)
            if after_space and after_space[0] != plain[0] and len(after_space) == len(plain):
                sequences.append(after_space)
        return sequences

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """Return the names of tokens in the tokenizer's vocabulary; an id that it does not have is the empty string."""
        return [name or "" for name in self._get().convert_ids_to_tokens(list(token_ids))]

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special tokens and the space before a word included.

        For a token that is a part of a character this is U+FFFD.
        """
        if (text := self._texts.get(token_id)) is None:
            tokenizer = self._get()
            text = str(tokenizer.decode([token_id], skip_special_tokens=False))
            name = tokenizer.convert_ids_to_tokens(token_id)
            if isinstance(name, str) and name.startswith("\u2581") and text[:1] != " ":
                text = f" {text}"  # SentencePiece writes the space as U+2581, and decodes it to nothing
            self._texts[token_id] = text
        return text

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
                except ValueError as error:  # there are several templates and no default
                    raise CheckpointError(f"cannot use the model's chat template: {error}") from error
                self._template = ChatTemplate(text, tokenizer.special_tokens_map, renderers=self._renderers)
            return self._template

    def _load(self) -> Any:
        if not self.exists:
            raise RequestError(
                f"{self._path} has no tokenizer, so a prompt cannot be text",
                hint="give the prompt as token ids instead",
            )
        try:
            return tokenizer_class.load(self._path)
        except Exception as error:  # transformers raises many types
            raise CheckpointError(f"cannot load the tokenizer in {self._path}: {error}") from error


class Detokenizer:
    """Turns tokens into text one by one. Holds back a character until its last byte has arrived.

    The returned texts, joined, are the text of all tokens. A token's text can depend on the tokens before it, so a
    window of tokens is decoded, and the text of its older part is cut off. The options are those of `Tokenizer.decode`.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer, self._keep = tokenizer, keep
        self._skip_special_tokens = skip_special_tokens
        self._tokens: list[int] = []
        self._start = 0  # first token of the window
        self._num_returned = 0  # tokens whose text was returned

    def add(self, token: int) -> str:
        """Add a token, and return the text that is now final; it may be empty."""
        self._tokens.append(token)
        text = self._pending()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._num_returned = self._num_returned, len(self._tokens)
        return text

    def finish(self) -> str:
        """Return the text that was held back. Call it after the last `add`."""
        text = self._pending()
        self._start = self._num_returned = len(self._tokens)
        return text

    def _pending(self) -> str:
        if self._num_returned == len(self._tokens):
            return ""
        before = self._decode(self._tokens[self._start : self._num_returned])
        return self._decode(self._tokens[self._start :])[len(before) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens, keep=self._keep)
