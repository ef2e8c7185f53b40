"""Finds what a size is called in config.json: the keys that equal it, or a product or sum of keys that does.

An expression is Python over keys: ``num_attention_heads * head_dim``. Where several keys equal a size, those that share words
with the tensor's name come first, and the others are kept, so that the draft can say what else it may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from keyword import kwlist
from typing import Any, Final

UNLIKELY = re.compile(
    r"token|position|window|topk|top_k|per_tok|_id$|_layers?$|^n_layer|group$|max_|interval|freq|period|step|rope_theta|version"
)
"""Keys whose values are no sizes of tensors."""

RESERVED: Final = frozenset(
    [*kwlist, *("Config", "Family", "Param", "Schema", "Tensor", "blocks", "c", "i", "kind_of", "tuple", "range")]
) | {"by_columns", "by_rows", "by_vocabulary", "embedding", "linear", "packed"}
"""Names that a variable of a drafted file cannot have."""

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "n_embed", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
    "head": ("head_dim", "kv_channels"),
    "inner": ("intermediate_size", "ffn_hidden_size", "n_inner", "intermediate_size_mlp", "ffn_dim"),
    "moe_inner": ("moe_intermediate_size", "intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"),
    "shared_inner": ("shared_expert_intermediate_size", "shared_intermediate_size", "moe_intermediate_size"),
    "num_shared": ("n_shared_experts", "num_shared_experts"),
    "experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "q_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "nope": ("qk_nope_head_dim",),
    "rope": ("qk_rope_head_dim",),
    "value": ("v_head_dim",),
}
"""What a size is → the keys that configs call it by, the first that the config has."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A size as an expression over config keys. ``doubt`` says why it is a guess; empty where it is certain."""

    text: str
    value: int
    doubt: str = ""


@dataclass
class Sizes:
    """The sizes of one config. ``used`` collects the keys of the expressions that were found."""

    values: Mapping[str, Any]
    used: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the keys that hold sizes."""
        self.keys = {
            k: v
            for k, v in self.values.items()
            if type(v) is int and v > 1 and k.isidentifier() and k not in RESERVED and not UNLIKELY.search(k)
        }
        for name in ("heads", "kv_heads", "num_shared", "experts"):  # 1 is a size too
            key = self.key(name)
            if key and type(self.values.get(key)) is int:
                self.keys.setdefault(key, self.values[key])

    def key(self, name: str) -> str | None:
        """Return the config's key for one of `NAMES`, or None."""
        return next((k for k in NAMES[name] if type(self.values.get(k)) is int), None)

    def evaluate(self, template: str) -> Dim | None:
        """Return an expression over `NAMES` as one over keys; None where the config lacks one of them.

        >>> Sizes({"hidden_size": 64, "num_attention_heads": 4}).evaluate("heads * head")
        Dim(text='num_attention_heads * head_dim', value=64, doubt='')
        """
        numbers: dict[str, int] = {}
        keys: dict[str, str] = {}
        for word in re.findall(r"[a-z_]+", template):
            key = self.key(word)
            if key is not None:
                numbers[word], keys[word] = self.values[key], key
            elif word == "head" and (hidden := self.evaluate("hidden")) and (heads := self.evaluate("heads")):
                numbers[word], keys[word] = hidden.value // heads.value, "head_dim"
            elif word == "kv_heads" and (heads := self.evaluate("heads")):
                numbers[word], keys[word] = heads.value, heads.text
            else:
                return None
        value = eval(template, {"__builtins__": {}}, numbers)  # one of this package's templates
        return Dim(re.sub(r"[a-z_]+", lambda m: keys[m[0]], template), int(value))

    def matching(self, size: int, templates: tuple[str, ...]) -> Dim | None:
        """Return the first of ``templates`` that equals ``size``."""
        found = (self.evaluate(t) for t in templates)
        return next((self._use(d) for d in found if d is not None and d.value == size), None)

    def find(self, size: int, words: Mapping[str, float]) -> Dim:
        """Return the best expression for ``size`` in a tensor whose name has ``words``; its number where none is found.

        Words that the keys share with the name count for an expression, and each product or sum against it. It is a guess
        where another one is nearly as good, or where no word is shared.
        """
        scores: dict[str, float] = {}
        for level, found in enumerate((self._single(size), self._products(size), self._sums(size))):
            for text in found:
                scores.setdefault(text, self._score(text, words) - level)
        if size <= 4:
            scores = {t: s for t, s in scores.items() if t.isidentifier() and s > 0}
            best = max(scores, key=lambda t: scores[t]) if scores else str(size)
            return self._use(Dim(best, size))
        if not scores:
            return Dim(str(size), size, f"{size} is no key of the config, and no product or sum of keys")
        best = max(scores, key=lambda t: scores[t])
        rivals = [t for t in scores if t != best and scores[t] > scores[best] - 0.75]
        doubt = f"{size} is taken for {best}, and is also {', '.join(rivals[:3])}" if rivals else ""
        if not rivals and scores[best] <= 0:
            doubt = f"{size} is taken for {best}, which only has the same value"
        return self._use(Dim(best, size, doubt))

    def _score(self, text: str, words: Mapping[str, float]) -> float:
        if text == self.key("hidden"):
            return 1.5
        keys = re.findall(r"[a-z_]\w*", text)
        return sum(max((words.get(w, 0.0) for w in _words(k)), default=0.0) for k in keys) / len(keys)

    def _single(self, size: int) -> Iterator[str]:
        yield from (k for k, v in self.keys.items() if v == size)

    def _products(self, size: int) -> Iterator[str]:
        items = sorted(self.keys.items(), key=lambda kv: "head" not in kv[0])
        counts = [(k, v) for k, v in items if re.search(r"head|expert|num|group", k) and "dim" not in k]
        hidden = self.key("hidden")
        if (derived := self.evaluate("heads * head")) and derived.value == size and "head_dim" not in self.values:
            yield derived.text
        for k, v in counts:
            yield from (f"{k} * {other}" for other, n in items if other != k and v * n == size and other != hidden)
            dims = [(a, n) for a, n in items if "head_dim" in a]
            for i, (a, n) in enumerate(dims):
                yield from (f"{k} * ({a} + {b})" for b, m in dims[i + 1 :] if v * (n + m) == size)
                yield from (f"2 * {k} * {a}" for _ in (1,) if 2 * v * n == size)
        for factor in (2, 3, 4):
            yield from (f"{factor} * {k}" for k, v in items if factor * v == size and k not in dict(counts))

    def _sums(self, size: int) -> Iterator[str]:
        items = [(k, v) for k, v in self.keys.items() if re.search(r"rank|head_dim|size", k)]
        for i, (a, n) in enumerate(items):
            yield from (f"{a} + {b}" for b, m in items[i + 1 :] if n + m == size)
        heads = [
            (k, n, a, m)
            for k, n in self.keys.items()
            if k.endswith("heads")
            for a, m in self.keys.items()
            if a.endswith("head_dim")
        ]
        for k, n, a, m in heads:
            for k2, n2, a2, m2 in heads:
                if 2 * n * m + n2 * m2 == size:
                    yield f"2 * {k} * {a} + {k2} * {a2}"

    def _use(self, dim: Dim) -> Dim:
        for key in re.findall(r"[A-Za-z_]\w*", dim.text):
            if key == "head_dim" and key not in self.values:
                for name in ("hidden", "heads"):
                    self.used[self.key(name) or ""] = None
            self.used[key] = None
        return dim


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower().replace("_", " "))) - {
        "size",
        "num",
        "dim",
        "n",
        "of",
        "weight",
    }


def words_of(name: str) -> dict[str, float]:
    """Return the words of a stored name, and what else configs call them, with their weights: the last parts count most.

    >>> words_of("self_attn.indexer.wk.weight")["index"] > words_of("self_attn.indexer.wk.weight")["attention"]
    True
    """
    words: dict[str, float] = {}
    for depth, part in enumerate(reversed(re.sub(r"\.(weight|bias)$", "", name).split("."))):
        for word in _words(part):
            weight = 3.0 / (depth + 1)
            words[word] = max(words.get(word, 0.0), weight)
            more = _SYNONYMS.get(word)
            if more:
                words[more] = max(words.get(more, 0.0), weight / 2 if more == "attention" else weight)
    return words


_SYNONYMS: Final = {"indexer": "index", "attn": "attention", "experts": "moe", "k": "key", "v": "value"}
