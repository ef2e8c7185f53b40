"""How a version of vLLM names and holds a family's parameters, derived from the native ones, which have vLLM's names in a block.

The differences in vLLM: blocks and the model's own parameters are under ``model.``, in a model around a language model with a
prefix before it; experts have their own module, a vocabulary is always padded to a multiple of 64, and a plain parameter has the
model's dtype whatever is stored. Some models hold embedding, norm or head on every stage. MTP layers are a separate draft model,
whose layer numbers continue those of the model or begin with 0 (`Target.draft_names`); here they are planned with the model, on
its last stage.

A version is a table of architectures (`vllm_0_32`), the next one a difference to it. A model around a language model has the row
of that one, with its own class and prefix (`Around`). ``tests/integrations/vllm`` compares all of it with what vLLM's own loader
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from loadmaster.architectures.config import Config
from loadmaster.architectures.registry import FAMILIES
from loadmaster.architectures.schema import Family, Param, Placement
from loadmaster.architectures.target import Held, Target
from loadmaster.architectures.wrapper import WrappedFamily
from loadmaster.errors import UnsupportedError

NOT_OF_PLUGINS: Final = (
    ": its family is from another package, and only loadmaster's own families are described, because they are compared with "
    "vLLM's own loaders; prove it for the native target, and stream it through vLLM's own loader"
)
"""Why a family from another package has no vLLM target."""

EMBEDDING, NORM, HEAD = "embed_tokens.weight", "norm.weight", "lm_head.weight"
"""The native names of the parameters that nearly every model has outside its blocks."""

_HEAD: Final = "lm_head."

EXPERTS: Final = ("mlp.experts.", "mlp.experts.routed_experts.")
"""Experts have a module of their own."""

CORRECTION: Final = "mlp.gate.e_score_correction_bias"

F32_ROUTER: Final = (("mlp.gate.weight", "F32"),)
"""Many routers compute in F32 (`Described.keep`)."""

WHOLE_NORMS: Final = {"attn.q_norm": None, "attn.k_norm": None}
"""Norms over all heads, which every rank holds whole (`Described.placements`)."""


FP8_BLOCK: Final[Mapping[str, tuple[Held, ...]]] = {
    "fp8_block": (Held("weight", "F8_E4M3"), Held("weight_scale_inv", "F32")),
}
"""DeepSeek-V3's FP8, which vLLM holds as it is stored."""

TIED: Final = "tie_word_embeddings"
BIAS: Final = "attention_bias"


def without(*flags: str) -> Callable[[Config], str | None]:
    """Return `Described.obstacle` for what vLLM does not have: flags that are true in a config."""

    def obstacle(c: Config) -> str | None:
        return next((f"{flag} is true" for flag in flags if c.flag(flag)), None)

    return obstacle


@dataclass(frozen=True)
class Described:
    """How vLLM implements an architecture.

    ``classes`` are vLLM's classes for it, and ``drafts`` those for its MTP layers; ``drafted`` says whether those of a config
    are described. ``draft_block`` is the module of a draft's layer that is like a decoder layer, and ``draft_names`` are those
    of `Target`. ``modules`` are modules of a block with another name in vLLM, as (native name, vLLM's name); the first that
    matches is renamed. ``top`` are the same outside the blocks. ``on_every_stage`` are the model's own parameters that all
    stages hold, by native name. ``keep`` are parameters of a block with a fixed dtype, by vLLM's name; ``computed`` are those
    that vLLM computes while it loads. ``placements`` are those of logical tensors that vLLM divides otherwise. ``params``,
    with vLLM's names, replace the native ones of the same parts, where vLLM fuses or places others. ``within`` is the prefix
    of the language model in a model around it (the head is outside that if ``head_outside``), ``model`` that of what is not
    the head, and ``layers`` the list of layers. ``head`` begins the head's name; None: the embedding is it. ``ungrouped`` is
    that of `Target`. ``formats`` are the quantised formats that are described, and ``methods`` vLLM's names for methods of
    config.json where they differ. ``sends`` is what a stage passes to the next (``make_empty_intermediate_tensors``).
    ``obstacle`` returns why a config is not described; None if it is.
    """

    classes: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    draft_block: str = ".mtp_block"
    draft_names: tuple[tuple[str, str], ...] = (("embed_tokens.", "model.embed_tokens."),)
    modules: tuple[tuple[str, str], ...] = (EXPERTS,)
    top: tuple[tuple[str, str], ...] = ()
    on_every_stage: tuple[str, ...] = ()
    keep: tuple[tuple[str, str], ...] = ()
    computed: tuple[str, ...] = ()
    placements: Mapping[str, Placement | None] = field(default_factory=dict)
    params: tuple[Param, ...] = ()
    within: str = ""
    model: str = "model."
    layers: str = "layers"
    head_outside: bool = False
    head: str | None = "lm_head."
    ungrouped: bool = False
    formats: Mapping[str, tuple[Held, ...]] = field(default_factory=lambda: FP8_BLOCK)
    methods: Mapping[str, str] = field(default_factory=dict)
    sends: tuple[str, ...] = ("hidden_states", "residual")
    obstacle: Callable[[Config], str | None] = lambda c: None
    drafted: Callable[[Config], bool] = lambda c: True

    def inside(self, name: str, within: str = "language_model.") -> Described:
        """Return how the class ``name`` has this language model: with the prefix ``within``."""
        return replace(self, classes=(name,), within=within)


@dataclass(frozen=True)
class Around:
    """How vLLM has a model around any language model that is described: its class, and the prefix of the language model.

    ``is_bare``: that has no head, which is beside it, and no module ``model``. Drafts are not described.
    """

    name: str
    within: str = "language_model."
    is_bare: bool = False


@dataclass(frozen=True)
class Version:
    """A version of vLLM: the name of its target, and how it implements each architecture that is described.

    ``around`` are models around a language model that have nothing of their own in it.
    """

    name: str
    described: Mapping[str, Described]
    around: Mapping[str, Around] = field(default_factory=dict)

    def find(self, family: Family, architecture: str) -> Described | None:
        """Return how an architecture of a family is implemented; None if it is not described."""
        known, around = self.described.get(architecture), self.around.get(architecture)
        if known is None and around is not None and isinstance(family, WrappedFamily):
            language = self.described.get(family.language)
            known = language and replace(language.inside(around.name, around.within), drafts=())
            if known and around.is_bare:
                known = replace(known, model=known.model.removeprefix("model."), head_outside=True)
        return known

    def target(self, family: Family, config: Config) -> Target:
        """Return the parameters of this version's model.

        Raises:
            UnsupportedError: the architecture, or this config of it, is not described.
        """
        is_inside = isinstance(family, WrappedFamily)
        architecture = family.architectures[0] if is_inside else config.values["architectures"][0]
        known = self.find(family, architecture)
        if known is None:
            raise UnsupportedError(
                f"{architecture} is not described for {self.name}{self._why(family, architecture)}",
                hint="docs/guides/vllm.md lists those that are; vLLM's own loader loads the others, which --engine native proves",
            )
        if obstacle := known.obstacle(config):
            raise UnsupportedError(f"{architecture} is not described for {self.name}: {obstacle}")
        has_drafts = bool(known.drafts) and known.drafted(config)
        replaced = {part for p in known.params for part in p.parts}
        left = (p for p in family.native if known.head or not p.name.startswith(_HEAD))
        native = (_renamed(p, known) for p in left if not replaced.issuperset(p.parts))
        return Target(
            self.name,
            tuple(p for p in (*native, *known.params) if has_drafts or not _is_of_draft(p)),
            layer=f"{known.within}{known.model}{known.layers}.{{layer}}",
            draft=f"{known.within}{known.model}{known.layers}.{{layer}}{known.draft_block}" if has_drafts else None,
            draft_names=known.draft_names if has_drafts else (),
            formats=known.formats,
            fixed=True,
            dtypes={"F32": "BF16"},  # unless F32 is requested
            sends=known.sends,
            within=known.within,
            computed=tuple(f"{{block}}.{name}" for name in known.computed),
            placements=known.placements,
            ungrouped=known.ungrouped,
        )

    def _why(self, family: Family, architecture: str) -> str:
        if isinstance(family, WrappedFamily):
            return f": {family.language} is not" if architecture in self.around else ""
        return "" if family in FAMILIES else NOT_OF_PLUGINS


def _renamed(param: Param, known: Described) -> Param:
    otherwise = param.otherwise and _of_model(param.otherwise, known)
    if param.stage is not None:
        stage = "every" if param.name in known.on_every_stage else param.stage
        return replace(param, name=_of_model(param.name, known), otherwise=otherwise, stage=stage)
    name = _moved(param.name.removeprefix("{block}."), known.modules)
    if _is_of_draft(param):
        return replace(param, name=f"{{draft}}.{name}", otherwise=otherwise)
    return replace(param, name=f"{{block}}.{name}", keep=dict(known.keep).get(name))


def _is_of_draft(param: Param) -> bool:
    return param.parts[0].startswith("mtp.")


def _of_model(name: str, known: Described) -> str:
    if name.startswith(_HEAD):
        own = f"{known.head}{name.removeprefix(_HEAD)}"
        return own if known.head_outside else known.within + own
    return known.within + known.model + _moved(name, known.top)


def _moved(name: str, modules: Iterable[tuple[str, str]]) -> str:
    old, new = next((pair for pair in modules if name.startswith(pair[0])), ("", ""))
    return new + name.removeprefix(old)
