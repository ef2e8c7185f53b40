"""What every family's loader does with weights: cut them for a rank, fuse them, stack experts, name the parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.loader.reference.place import Part, Place, stage_layers
from tests.loader.reference.stored import Arrays
from tests.loader.reference.weights import Along, Weight, find

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Cut:
    """A weight and which of its rows or columns are wanted."""

    def __init__(self, weight: Weight, along: Along | None = None, part: Part = (0, 0)) -> None:
        self.weight, self.along, self.part = weight, along, part

    def encoded(self) -> Arrays:
        """The stored components, cut."""
        return self.weight.stored if self.along is None else self.weight.cut(self.along, *self.part)

    def decoded(self, dtype: torch.dtype) -> torch.Tensor:
        """The values, dequantised as a whole and then cut."""
        values = self.weight.values().to(dtype)
        if self.along is None:
            return values
        return values.narrow(-2 if self.along is self.weight.rows else -1, self.part[0], self.part[1] - self.part[0])


def _commonest(stored: Arrays) -> torch.dtype:
    """The number format of most bytes of plain tensors: a model's, where its config names none."""
    plain = Counter[torch.dtype]()
    for t in stored.values():
        plain[t.dtype] += t.nbytes if t.dtype in DTYPES.values() else 0
    return plain.most_common(1)[0][0]


class Loader:
    """The state of loading one rank. Names of parameters are given without the ``weight`` they end in."""

    def __init__(self, config: dict[str, Any], stored: Arrays, place: Place) -> None:
        whole = ("quantization_config", "dtype", "torch_dtype")
        self.config = {**config, **config.get("text_config", {}), **{k: config[k] for k in whole if k in config}}
        self.stored, self.place = stored, place
        said = self.config.get("dtype") or self.config.get("torch_dtype")
        self.dtype = DTYPES[said] if said else _commonest(stored)
        self.params: Arrays = {}

    @property
    def layers(self) -> range:
        """The decoder layers of this stage."""
        stage, size = self.place.pp
        given = (self.config.get(key) for key in ("num_layers", "num_hidden_layers"))  # LongCat saves twice as many too
        num_layers = next((n for n in given if n), None) or len(self.config["layers_block_type"])
        return stage_layers(num_layers, size, stage, self.place.partition)

    @property
    def is_first(self) -> bool:
        return self.place.pp[0] == 0

    @property
    def is_last(self) -> bool:
        return self.place.pp[0] == self.place.pp[1] - 1

    # cuts ------------------------------------------------------------------------------------------------------------

    def find(self, base: str) -> Weight:
        return find(self.stored, base, self.config.get("quantization_config") or {})

    def whole(self, base: str) -> Cut:
        return Cut(self.find(base))

    def rows(self, base: str, of: Part | None = None, share: Callable[[int], Part] | None = None) -> Cut:
        """Column parallel: this rank's rows; ``of`` is where the weight lies in what is packed with others."""
        return cut_rows(self.find(base), share or self.place.share, of)

    def columns(self, base: str) -> Cut:
        """Row parallel: this rank's columns."""
        return cut_columns(self.find(base), self.place.share)

    def vector(self, name: str, share: Callable[[int], Part] | None = None) -> torch.Tensor:
        """A bias or a norm, or this rank's part of it."""
        whole = self.stored[name]
        start, stop = share(len(whole)) if share else (0, len(whole))
        return whole[start:stop]

    def floats(self, target: str, source: str, names: Sequence[str]) -> None:
        """What is the same on every rank, and F32 whatever it is stored as, where it exists."""
        for name in names:
            if source + name in self.stored:
                self.params[target + name] = self.stored[source + name].float()

    # parameters ------------------------------------------------------------------------------------------------------

    def put(self, name: str, *cuts: Cut) -> None:
        """One parameter of one or several weights: as they are stored if all are stored alike, else decoded."""
        forms = {c.weight.form for c in cuts}
        if len(forms) == 1:
            made = cuts[0].weight.fuse([c.encoded() for c in cuts])
        else:
            made = {"weight": torch.cat([c.decoded(self._common(forms)) for c in cuts], -2)}
        self._name(name, made)

    def put_experts(self, name: str, experts: Sequence[Sequence[Cut]]) -> None:
        """A stack of such parameters, one for each expert that this rank holds; all experts decide on the form."""
        forms = {c.weight.form for cuts in experts for c in cuts}
        held = [experts[e] for e in self.place.experts(len(experts))]
        if len(forms) == 1:
            stack = [cuts[0].weight.fuse([c.encoded() for c in cuts]) for cuts in held]
        else:
            dtype = self._common(forms)
            stack = [{"weight": torch.cat([c.decoded(dtype) for c in cuts], -2)} for cuts in held]
        self._name(name, {suffix: torch.stack([member[suffix] for member in stack]) for suffix in stack[0]})

    def _common(self, forms: set[tuple[Any, ...]]) -> torch.dtype:
        """Plain weights widen until all fit; where any is encoded, the model's dtype."""
        dtypes = [form[1][1] for form in forms]
        if any(form[0] is not Weight for form in forms):
            return self.dtype
        made = dtypes[0]
        for dtype in dtypes:
            made = torch.promote_types(made, dtype)
        return made

    def _name(self, name: str, components: Arrays) -> None:
        for suffix, tensor in components.items():
            self.params[name + (suffix.removeprefix("_") if name.endswith("_") else suffix)] = tensor

    def copy(self, target: str, source: str, names: Sequence[str]) -> None:
        """What is the same on every rank, where it exists."""
        for name in names:
            if source + name in self.stored:
                self.params[target + name] = self.stored[source + name]

    def vocabulary(self, name: str, base: str) -> None:
        """An embedding or a head: this rank's rows, zeros where the vocabulary does not divide."""
        weight = self.find(base)
        size = weight.shape[0]
        start, count = self.place.vocabulary(size)
        if type(weight) is not Weight:
            self.put(name, self.rows(base))
            return
        mine = weight.values()[start : min(start + count, size)]
        zeros = torch.zeros(count - len(mine), *mine.shape[1:], dtype=mine.dtype)
        self.params[name + "weight"] = torch.cat([mine, zeros])

    def top(self, prefix: str = "model.", head: str = "lm_head.", embed: str = "embed_tokens.") -> None:
        """Embedding, last norm and head. A tied head is the embedding, held by the last stage too."""
        tied = head + "weight" not in self.stored and head + "qweight" not in self.stored
        tied = tied and head + "weight_packed" not in self.stored
        if self.is_first:
            self.vocabulary("embed_tokens.", prefix + embed)
        if self.is_last:
            self.params["norm.weight"] = self.stored[prefix + "norm.weight"]
            self.vocabulary("lm_head.", prefix + embed if tied else head)


def cut_rows(weight: Weight, share: Callable[[int], Part], of: Part | None = None) -> Cut:
    first, end = of or (0, weight.shape[0])
    start, stop = share(end - first)
    return Cut(weight, weight.rows, (first + start, first + stop))


def cut_columns(weight: Weight, share: Callable[[int], Part]) -> Cut:
    return Cut(weight, weight.columns, share(weight.shape[1]))
