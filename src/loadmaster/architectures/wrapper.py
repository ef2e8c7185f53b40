"""Models around a language model that is known by itself: vision or audio in front of a Llama, a Qwen, a DeepSeek.

A `Wrapper` says where such a model has its language model: under which prefix in the files, in which section of the config,
and what else is stored. Everything about the language model itself stays in its own family. `vision_wrappers.py` and
`audio_wrappers.py` have the tables.

Parts outside the language model are left unread, with a reason, or held by the first stage as they are stored
(`loadmaster.plan.towers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeAlias

from loadmaster.architectures.aliases import architecture_of
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import LANGUAGE_ONLY, Family
from loadmaster.architectures.spelling import Spelling, respelled
from loadmaster.errors import ConfigError

Prefixes: TypeAlias = tuple[tuple[str, str], ...]
"""How the names of the language model by itself change: (old beginning, new); the first that matches is applied."""

ABOVE: Final[Prefixes] = (("", "language_model."),)
"""``language_model.model.layers…`` and ``language_model.lm_head``: the whole language model is a module of the wrapper."""

WITHIN: Final[Prefixes] = (("model.language_model.", "model.language_model."), ("model.", "model.language_model."))
"""``model.language_model.layers…`` and ``lm_head`` at the top: the layout of transformers since 4.52."""

BESIDE: Final[Prefixes] = ()
"""The language model's own names; the other parts stand beside it."""

NO_DRAFTS: Final = {"num_nextn_predict_layers": 0}


def outside(*names: str) -> tuple[tuple[str, str], ...]:
    """Return the waiver of modules, or single tensors, with and without ``model.`` before them."""
    return ((rf"(model\.)?({'|'.join(names)})(\..*)?", LANGUAGE_ONLY),)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A model that contains a language model.

    ``language`` is the architecture inside, or a function of the config that returns it; None: the section says it.
    ``section`` is where the config describes the language model, a path such as ``thinker_config.text_config``; a config
    without it describes the language model at its top level. ``prefixes`` are those of all published forms, the usual one
    first. ``outside`` are anchored patterns of the other stored names, each with the reason why they are not read.
    ``stored`` are tensors that are stored in another way than in the language model by itself. ``defaults`` are values that
    a config leaves out, ``fixed`` those that hold whatever it says. ``unchecked`` says what could not be compared with a release.
    """

    architectures: tuple[str, ...]
    language: str | Callable[[Mapping[str, Any]], str | None] | None
    prefixes: tuple[Prefixes, ...]
    outside: tuple[tuple[str, str], ...]
    section: str = "text_config"
    stored: Spelling = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unchecked: str | None = None

    def language_of(self, config: Mapping[str, Any]) -> str:
        """Return the architecture of the language model inside.

        Raises:
            ConfigError: the config does not say it.
        """
        name = self.language(config) if callable(self.language) else self.language
        name = name or architecture_of(self.section_of(config))
        if name is None:
            raise ConfigError(
                f"config.json: {self.section} does not say what the language model is",
                hint=f"{self.section} must have architectures, or a model_type that is known",
            )
        return name

    def section_of(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the section that describes the language model; empty where there is none."""
        section: Any = config
        for key in self.section.split("."):
            section = section.get(key) if isinstance(section, Mapping) else None
        return section if isinstance(section, Mapping) else {}

    def around(self, language: Family, name: str, architecture: str) -> WrappedFamily:
        """Return the family of a whole model, whose language model has the architecture ``name``."""
        changed = [{**spelling, **self.stored} for spelling in language.spellings] if self.stored else []
        spellings = _distinct(respelled(s, *p) for p in self.prefixes for s in (*changed, *language.spellings))
        drafts = _distinct(respelled(s, *p) for p in self.prefixes for s in language.drafts)
        unchecked = self.unchecked or language.unchecked.get(name)
        same = {f.name: getattr(language, f.name) for f in fields(Family)}
        return WrappedFamily(
            **same
            | {
                "name": f"{language.name} inside {architecture}",
                "architectures": (architecture,),
                "spelling": spellings[0],
                "variants": spellings[1:],
                "drafts": drafts,
                "waived": (*language.waived, *self.outside),
                "section": self.section.rpartition(".")[2],
                "runs": False,
                "unchecked": {architecture: unchecked} if unchecked else {},
            },
            language=name,
            wrapper=self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedFamily(Family):
    """The family of a model around a language model: the family of ``language``, under other names."""

    language: str
    wrapper: Wrapper

    def describe(self, config: Mapping[str, Any]) -> Config:
        """Return the config of the language model, whose ``architectures`` is ``language``.

        Raises:
            ConfigError: it is not described.
        """
        inside = dict(config)
        for key in self.wrapper.section.split(".")[:-1]:
            section = inside.get(key)
            inside |= section if isinstance(section, Mapping) else {}
        described = Family.describe(self, inside).values
        given = {**_OF_TYPE.get(str(described.get("model_type")), {}), **self.wrapper.defaults}
        return Config({**given, **described, **self.wrapper.fixed, "architectures": [self.language]})


def _distinct(spellings: Iterable[Spelling]) -> tuple[Spelling, ...]:
    return tuple({tuple(s.items()): s for s in spellings}.values())


_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
}
_OF_TYPE: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8},
}
"""Defaults of the configuration classes in transformers, which sections of published wrappers leave out (LLaVA)."""
