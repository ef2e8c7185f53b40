"""The three tables of a family: schema, spelling, target. Values only; `registry.py` finds them by architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from loadmaster.architectures.config import Config
from loadmaster.dtypes import PLAIN


@dataclass(frozen=True, slots=True)
class Placement:
    """``dim`` is divided over the tensor-parallel ranks in whole ``unit``s; ``repeat``: units may be held several times."""

    dim: int
    unit: int = 1
    repeat: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """One logical tensor: what the architecture says exists, before any file is seen.

    ``shape`` comes from the config. ``placement`` None means replicated over tensor-parallel ranks. ``quantised``: may be
    stored in the checkpoint's quantised format. ``dtypes`` are the plain formats it may be stored in. ``keep`` is a format
    that the running parameter has whatever was stored (router biases stay F32). ``usual`` are formats that need no
    remark although they are not the model's. ``experts`` > 0: one such tensor an expert. ``optional`` names a group
    of which a layer stores all or none.
    """

    name: str
    shape: tuple[int, ...]
    placement: Placement | None = None
    quantised: bool = False
    dtypes: tuple[str, ...] = PLAIN
    keep: str | None = None
    usual: tuple[str, ...] = ()
    experts: int = 0
    optional: str | None = None


def linear(
    name: str,
    rows: int,
    columns: int,
    placement: Placement | None = None,
    *,
    experts: int = 0,
) -> Tensor:
    """Return a weight ``[rows, columns]`` (out, in) of a linear layer, which a checkpoint may hold quantised."""
    return Tensor(name, (rows, columns), placement, quantised=True, experts=experts)


def by_rows(unit: int = 1, *, repeat: bool = False) -> Placement:
    """Column parallel: the out dim is divided."""
    return Placement(0, unit, repeat)


def by_columns(unit: int = 1) -> Placement:
    """Row parallel: the in dim is divided."""
    return Placement(1, unit)


@dataclass(frozen=True, slots=True)
class Schema:
    """A model's logical tensors.

    ``kinds`` are the kinds of layers, each with the tensors that such a layer has. ``layers`` gives the kind of each
    decoder layer, ``drafts`` those of the MTP layers stored after them. ``top`` are the tensors of the model itself,
    held by the ``first`` or the ``last`` stage. ``carries`` says for each layer what must be handed to a stage that
    begins there, beside the hidden states. ``tied``: the head is the embedding.
    """

    top: tuple[Tensor, ...]
    kinds: Mapping[str, tuple[Tensor, ...]]
    layers: tuple[str, ...]
    drafts: tuple[str, ...] = ()
    carries: tuple[tuple[str, ...], ...] = ()
    tied: bool = False
    waived: tuple[tuple[str, str], ...] = ()

    def carried_into(self, layer: int) -> tuple[str, ...]:
        """Return what a stage that begins at ``layer`` must be handed."""
        if layer == 0:
            return ()
        return ("hidden_states", *(self.carries[layer] if self.carries else ()))


Form = Literal["stored", "decoded"]


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the running model: ``parts`` one after another along their first (out) dim.

    ``name`` begins with ``{block}``, which becomes ``layers.7`` or ``mtp.0``, or with none for the model's own. ``form``:
    ``stored`` keeps what the headers say (FP8 with its scales, BF16 …), ``decoded`` is always in the model's dtype.
    ``otherwise`` is a parameter of the model itself that takes the place where the parts do not exist: the same memory
    where the rank holds it, a copy of its own where it doesn't. ``stage`` places the model's own parameters.
    """

    name: str
    parts: tuple[str, ...]
    form: Form = "stored"
    otherwise: str | None = None
    stage: Literal["first", "last"] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. ``spelling`` gives for each logical tensor its stored name, with ``{layer}`` and ``{expert}``.

    ``native`` is the target of this package's own runtime. ``waived`` are anchored patterns of stored names that are
    left unread, with the reason.
    """

    name: str
    architectures: tuple[str, ...]
    schema: Callable[[Config], Schema]
    spelling: Mapping[str, str]
    native: tuple[Param, ...]
    waived: tuple[tuple[str, str], ...] = field(default=())
