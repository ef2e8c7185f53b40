"""The three tables of a family: schema, spelling, target. Only values; `registry.py` finds them by architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any, Final, Literal

from loadmaster.architectures.aliases import architecture_of
from loadmaster.architectures.config import Config
from loadmaster.architectures.spelling import Spelling
from loadmaster.dtypes import PLAIN, num_bytes
from loadmaster.errors import ConfigError
from loadmaster.formats import Format

Memory = Literal["host", "device"]
"""The memory that a parameter is in: the host's, or that of the rank's device."""


@dataclass(frozen=True, slots=True)
class Placement:
    """``dim`` is divided over the tensor-parallel ranks in whole ``unit``s; ``repeat``: several ranks may have the same unit.

    ``pad``: where the dim does not divide, zeros are added at its end until it is a multiple of ``pad`` and each rank has
    equally many whole units (vocabularies; experts cut in quantisation blocks). ``always``: it is padded to a multiple of
    ``pad`` even if it divides, and the padded size must divide. ``feeds`` names the row-parallel tensor that consumes the
    output of this one: where padding moves the cuts, both must be cut at the same positions, so this one is also cut in
    whole words of that one's format. ``sections`` are units of different sizes, in order, which are held whole.
    """

    dim: int
    unit: int = 1
    repeat: bool = False
    pad: int | None = None
    always: bool = False
    feeds: str | None = None
    sections: tuple[int, ...] = ()

    def padding(self, size: int, count: int, unit: int = 1) -> int:
        """Return how many elements are added to a dim of ``size`` before ``count`` ranks get equally many ``unit``s each.

        >>> [Placement(0, pad=64).padding(330, count) for count in (2, 4)], Placement(0, pad=64, always=True).padding(330, 2)
        ([0, 54], 54)

        90 blocks of 32 over 4 ranks are 23 for each; the last two of the last rank are zeros:

        >>> Placement(1, pad=1).padding(2880, 4, unit=32)
        64
        """
        if self.pad is None or (size % (count * unit) == 0 and not self.always):
            return 0
        return -size % (self.pad if self.always else lcm(self.pad, count * unit))


@dataclass(frozen=True, slots=True)
class Tensor:
    """One logical tensor that the architecture has, whatever the files contain.

    ``shape`` comes from the config. ``placement`` None means replicated over tensor-parallel ranks. ``quantised``: may be
    stored in the checkpoint's quantised format; ``rarely``: usually it is not, which needs no remark. ``dtypes`` are the
    plain formats it may be stored in. ``keep`` is the format of the running parameter, whatever is stored (router biases
    stay F32). ``usual`` are formats that need no remark although they are not the model's. ``experts`` > 0: one such
    tensor for each expert. ``optional`` names a group of tensors: a layer stores all of them or none. ``spare`` rows of zeros
    follow it in its stored tensor, beyond those that the model has; they are left unread. ``groups``: how many equal groups of
    rows it has where it is packed with others by group (`Packed`). ``slices`` > 0: its rows are in so many stored tensors, one
    after another, each with equally many. ``head`` > 0: the rows of one head, whose order a spelling or an engine may change
    (`Packed.pairs`, `Param.rotary`).

    ``table``: of its rows each token reads a few, so it may be in the memory of the host; the value says where it usually is.
    ``formats`` are the quantised formats that it may be stored in, where they are not those that the config gives to the rest.
    """

    name: str
    shape: tuple[int, ...]
    placement: Placement | None = None
    quantised: bool = False
    rarely: bool = False
    dtypes: tuple[str, ...] = PLAIN
    keep: str | None = None
    usual: tuple[str, ...] = ()
    experts: int = 0
    optional: str | None = None
    spare: int = 0
    groups: int = 1
    slices: int = 0
    head: int = 0
    table: Memory | None = None
    formats: tuple[Format, ...] | None = None


def linear(
    name: str,
    rows: int,
    columns: int,
    placement: Placement | None = None,
    *,
    experts: int = 0,
) -> Tensor:
    """Return a weight ``[rows, columns]`` (out, in) of a linear layer, which a checkpoint may store quantised."""
    return Tensor(name, (rows, columns), placement, quantised=True, experts=experts)


def by_rows(unit: int = 1, *, repeat: bool = False, pad: int | None = None, feeds: str | None = None) -> Placement:
    """Column parallel: the out dim is divided."""
    return Placement(0, unit, repeat, pad, feeds=feeds)


def by_columns(unit: int = 1, *, pad: int | None = None) -> Placement:
    """Row parallel: the in dim is divided."""
    return Placement(1, unit, pad=pad)


def by_vocabulary() -> Placement:
    """Rows of an embedding or a head: padded to a multiple of 64 and of the ranks where they do not divide."""
    return Placement(0, pad=64)


def embedding(
    c: Config, *, tied: bool = False, hidden: int | None = None, vocab: int | None = None
) -> tuple[Tensor, ...]:
    """Return the tensors ``embed``, ``norm`` and, unless it is tied, ``head``: what nearly every model has.

    The keywords are the family's defaults for ``tie_word_embeddings`` and the sizes.
    """
    hidden, vocab = c.size("hidden_size", hidden), c.size("vocab_size", vocab)
    top = [Tensor("embed", (vocab, hidden), by_vocabulary()), Tensor("norm", (hidden,))]
    if not c.flag("tie_word_embeddings", tied):
        top.append(Tensor("head", (vocab, hidden), by_vocabulary(), quantised=True, rarely=True))
    return tuple(top)


TIED_HEAD = ((r"(.*\.)?lm_head\.weight", "tied to the embedding"),)
"""Waives a head that is stored although it is tied."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that a stage passes to the next: ``shape`` for each token, in ``dtype`` (None: what the model computes in).

    ``source`` is the layer that makes it, where one does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    source: int | None = None

    def token_bytes(self, dtype: str) -> int:
        """Return its bytes for one token of a model that computes in ``dtype``.

        >>> Carried("hidden_states", (4, 6144)).token_bytes("BF16"), Carried("pre_mix", (4,), "F32").token_bytes("BF16")
        (49152, 16)
        """
        return num_bytes(self.dtype or dtype, prod(self.shape))


def joined(sources: Sequence[int], what: str) -> tuple[str, ...]:
    """Return for each layer why no stage can begin there, for `Schema.joined`: no cut may separate a layer from its source.

    ``sources`` gives for each layer the layer whose ``what`` it reads: itself, or an earlier one.

    >>> joined([0, 1, 0, 3], "the KV cache")
    ('', 'layer 2 reads the KV cache of layer 0', 'layer 2 reads the KV cache of layer 0', '')
    """
    reasons, reader = [], len(sources) - 1
    for layer in reversed(range(len(sources))):
        if sources[layer] <= sources[reader]:
            reader = layer
        apart = sources[reader] < layer
        reasons.append(f"layer {reader} reads {what} of layer {sources[reader]}" if apart else "")
    return tuple(reversed(reasons))


@dataclass(frozen=True, slots=True)
class Schema:
    """A model's logical tensors, and what crosses a cut between stages.

    ``kinds`` are the kinds of layers, each with the tensors that such a layer has. ``layers`` gives the kind of each
    decoder layer, ``drafts`` those of the MTP layers stored after them; ``blocks_a_draft`` of these make one draft, and
    are asked for, counted and loaded together. ``top`` are the tensors of the model itself, on the ``first`` or the
    ``last`` stage.

    ``carries`` gives for each layer what a stage that begins there needs from the stage before, in addition to the hidden
    states, which are ``[hidden_size]`` for each token; a field named ``hidden_states`` replaces these. ``joined`` gives
    for each layer why no stage can begin there; empty where one can. Without them all cuts are alike, and possible.

    ``unread`` are anchored patterns of stored names that this config makes unnecessary, with the reason. ``passes`` gives for
    each layer how many times it runs, each with its own keys and values; empty: all run once.
    """

    top: tuple[Tensor, ...]
    kinds: Mapping[str, tuple[Tensor, ...]]
    layers: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    carries: tuple[tuple[Carried, ...], ...] = ()
    joined: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    blocks_a_draft: int = 1
    passes: tuple[int, ...] = ()

    @property
    def num_drafts(self) -> int:
        """How many drafts the model has."""
        return len(self.drafts) // self.blocks_a_draft

    def drafted(self, num_drafts: int) -> tuple[str, ...]:
        """Return the kinds of the blocks of the first ``num_drafts`` drafts.

        >>> Schema((), {}, (), drafts=("attention", "experts"), blocks_a_draft=2).drafted(1)
        ('attention', 'experts')
        """
        return self.drafts[: num_drafts * self.blocks_a_draft]

    def blocks(self, num_drafts: int) -> tuple[str, ...]:
        """Return the kinds of all blocks by stored number: those of the decoder layers, then those of ``num_drafts`` drafts."""
        return (*self.layers, *self.drafted(num_drafts))

    def num_passes(self, layer: int) -> int:
        """Return how many times a block runs, by stored number: those of drafts once.

        >>> looped = Schema((), {}, ("mlp",) * 2, drafts=("mtp",), passes=(1, 4))
        >>> [looped.num_passes(layer) for layer in range(3)]
        [1, 4, 1]
        """
        return self.passes[layer] if layer < len(self.passes) else 1

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding: there is no ``head`` among the model's own tensors."""
        return all(t.name != "head" for t in self.top)

    @property
    def waived(self) -> tuple[tuple[str, str], ...]:
        """Patterns of stored names that this config makes unnecessary, with the reason."""
        return (*self.unread, *(TIED_HEAD if self.tied else ()))

    @property
    def hidden_size(self) -> int:
        """The elements of a token's hidden state: a row of the embedding."""
        return next(t.shape[-1] for t in self.top if t.name == "embed")

    def carried_into(self, layer: int) -> tuple[Carried, ...]:
        """Return what a stage that begins at ``layer`` needs from the stage before."""
        if layer == 0:
            return ()
        more = self.carries[layer] if self.carries else ()
        if any(f.name == "hidden_states" for f in more):
            return more
        return (Carried("hidden_states", (self.hidden_size,)), *more)


Storage = Literal["stored", "plain", "decoded"]


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the running model: ``parts`` one after another along their first (out) dim.

    ``name`` begins with ``{block}``, which becomes ``layers.7`` or ``mtp.0`` (or ``{draft}``, see `Target`), or with
    none for parameters of the model itself. ``form``: ``stored`` keeps the format of the headers (FP8 with its scales,
    BF16 …), ``plain`` decodes what is quantised and keeps the rest, ``decoded`` is always in the model's dtype.
    ``otherwise`` is a parameter of the model itself that is used where the parts do not exist: the same memory where the
    rank has it, a copy where it doesn't. ``unless`` is a logical tensor: layers that have it do not have the parameter.
    ``stage`` places the parameters of the model itself. ``keep`` is the parameter's format, whatever is stored. ``sizes``: on
    each rank, its first dim is filled up with ``filler`` to the next of these, or to a multiple of the last. ``ones``:
    how many dims of one element it has before and after its others (None: those of its part). ``rotary`` is the order in which
    an engine holds the rows of each head (`Tensor.head`) where the family has the other one: ``pairs``, as rotary embeddings
    turn them, or ``halves``, the first rows of all pairs before the second ones. ``laid`` is how an engine holds what is in one
    tensor: rows that alternate ``apart``, those of gate before those of up, or the matrices of a stack ``beside`` one another.
    """

    name: str
    parts: tuple[str, ...]
    form: Storage = "stored"
    otherwise: str | None = None
    unless: str | None = None
    stage: Literal["first", "last", "every"] | None = None
    keep: str | None = None
    sizes: tuple[int, ...] = ()
    filler: float = 0.0
    ones: tuple[int, int] | None = None
    rotary: Literal["pairs", "halves"] | None = None
    laid: Literal["apart", "beside"] | None = None

    def is_on(self, stage: int, num_stages: int) -> bool:
        """Return whether a parameter of the model itself is on a stage."""
        return self.stage == "every" or stage == (0 if self.stage == "first" else num_stages - 1)


OF_VLLM: Final = "transformers has no class of it; its names are those of vLLM's loader"
"""Why the names of a class are `unchecked` in a `Family`, where vLLM alone has the class."""

LANGUAGE_ONLY: Final = "only the language model is loaded"
"""Why vision, audio and projectors are left unread, unless `ParallelLayout.multimodal` wants them."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. ``spelling`` gives for each logical tensor its stored name.

    ``variants`` are other spellings that checkpoints of the family are published in: the one that names most of the
    stored tensors is used. ``drafts`` are the spellings of MTP layers that are stored under names of their own, counted from 0,
    and chosen in the same way; without them, MTP layers are spelled as the others. ``native`` is the target of this package's
    own runtime. ``waived`` are anchored patterns of stored names that are left unread, with the reason. ``section`` is the key
    of the config under which the language model is described, where the config describes more (``text_config``). ``runs``: this
    package's runtime computes it (`loadmaster.models` has its layers); other families are planned, proven and loaded.
    ``unchecked`` gives for an architecture what could not be compared with a release; every plan of it has this as a warning.
    """

    name: str
    architectures: tuple[str, ...]
    schema: Callable[[Config], Schema]
    spelling: Spelling
    native: tuple[Param, ...]
    waived: tuple[tuple[str, str], ...] = field(default=())
    variants: tuple[Spelling, ...] = field(default=())
    section: str | None = None
    runs: bool = False
    unchecked: Mapping[str, str] = field(default_factory=dict)
    drafts: tuple[Spelling, ...] = field(default=())

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        """All spellings, the usual one first."""
        return (self.spelling, *self.variants)

    @property
    def outside(self) -> tuple[str, ...]:
        """Anchored patterns of stored names outside the language model: what is waived because only that is loaded."""
        return tuple(pattern for pattern, reason in self.waived if reason == LANGUAGE_ONLY)

    def draft_spelling(self, number: int = 0) -> Spelling | None:
        """Return the spelling of MTP layers beside that of ``number``; None where they have none of their own."""
        return self.drafts[min(number, len(self.drafts) - 1)] if self.drafts else None

    def describe(self, config: Mapping[str, Any]) -> Config:
        """Return the config of the language model: the family's section, and the keys that hold for the whole model.

        ``architectures`` has one name, the one that the family knows.

        Raises:
            ConfigError: there is no such section.
        """
        if (name := architecture_of(config)) is not None:
            config = {**config, "architectures": [name]}
        if self.section is None or self.section not in config:
            if self.section is not None and "hidden_size" not in config:
                raise ConfigError(f"config.json has no {self.section!r}", hint="the language model is described there")
            return Config(dict(config))
        section = config[self.section]
        if not isinstance(section, Mapping):
            raise ConfigError(f"config.json: {self.section} is not an object")
        fallback = {key: config[key] for key in _WITHOUT_SECTION if key in config}
        whole = {key: config[key] for key in _OF_THE_WHOLE if key in config}
        return Config({**fallback, **{k: v for k, v in section.items() if v is not None}, **whole})


_OF_THE_WHOLE = ("architectures", "quantization", "quantization_config", "tie_word_embeddings", "dtype", "torch_dtype")
"""Keys of a config that hold for the whole model, wherever its language model is described."""

_WITHOUT_SECTION = ("eos_token_id", "mtp_config", "num_nextn_predict_layers")
"""Keys that are read outside the section where the section leaves them out."""
