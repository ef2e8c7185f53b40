"""What older models have in common: q, k and v in one tensor, layer norms with biases, an MLP without a gate.

Where the rows of q, k and v alternate by head, the tensor is one logical tensor, cut in whole heads. Where they follow one
another, or alternate by group of heads, q, k and v are cut each for itself. `falcon.py` and `gpt2.py` have the families.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param, Schema, Tensor, by_columns, by_rows, by_vocabulary, linear
from loadmaster.architectures.spelling import Packed, Spelling, packed


def grouped(hidden: int, groups: int, rows: int, width: int, *, bias: bool, out_bias: bool) -> tuple[Tensor, ...]:
    """Return q, k, v as one tensor of ``groups`` of ``rows``, and o, whose groups have ``width`` inputs each."""
    tensors = [
        linear("attn.qkv", groups * rows, hidden, by_rows(rows)),
        linear("attn.o", hidden, groups * width, by_columns(width)),
    ]
    if bias:
        tensors.append(Tensor("attn.qkv_bias", (groups * rows,), by_rows(rows)))
    if out_bias:
        tensors.append(Tensor("attn.o_bias", (hidden,)))
    return tuple(tensors)


def model(
    c: Config, hidden: int, layer: tuple[Tensor, ...], num_layers: int, *extra: Tensor, tied: bool, bias: bool = True
) -> Schema:
    """Return a schema whose layers are all alike; ``bias``: the last norm has one. ``tied`` is the family's default."""
    vocab = c.size("vocab_size")
    top = [Tensor("embed", (vocab, hidden), by_vocabulary()), Tensor("norm", (hidden,)), *extra]
    if bias:
        top += blocks.norm_biases(hidden, "norm")
    if not c.flag("tie_word_embeddings", tied):
        top.append(Tensor("head", (vocab, hidden), by_vocabulary(), quantised=True, rarely=True))
    return Schema(tuple(top), {"dense": layer}, ("dense",) * num_layers)


def normed(hidden: int, *names: str, bias: bool = True) -> tuple[Tensor, ...]:
    """Return layer norms, with their biases unless there are none."""
    return (*(Tensor(n, (hidden,)) for n in names), *(blocks.norm_biases(hidden, *names) if bias else ()))


NATIVE = (
    *blocks.TOP_NATIVE,
    Param("positions.weight", ("positions",), stage="first"),
    Param("embed_norm.weight", ("embed_norm",), stage="first"),
    Param("embed_norm.bias", ("embed_norm_bias",), stage="first"),
    *blocks.NORMS_NATIVE,
    *blocks.NORM_BIASES_NATIVE,
    *(
        Param(f"{{block}}.{name}.{kind}", (f"{name}{suffix}",))
        for name in ("attn_norm", "mlp_norm")
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
    ),
    *(p for p in blocks.ATTENTION_NATIVE if "norm" not in p.name),
    Param("{block}.self_attn.query_key_value.weight", ("attn.qkv",)),
    Param("{block}.self_attn.query_key_value.bias", ("attn.qkv_bias",)),
    *blocks.PLAIN_MLP_NATIVE,
)


MASKS = (
    r"(transformer\.|gpt_neox\.)?(h|layers)\.\d+\.(attn|attention)\.(bias|masked_bias)",
    "causal masks are not weights",
)


def modules(root: str, **names: str) -> Spelling:
    """Return weights and biases of a layer's modules, given by logical name with ``__`` for a dot."""
    return {
        name.replace("__", ".") + suffix: f"{root}{{layer}}.{module}.{kind}"
        for name, module in names.items()
        for suffix, kind in (("", "weight"), ("_bias", "bias"))
    }


def packed_qkv(name: str, *, transposed: bool = False, by_group: bool = False) -> dict[str, Packed]:
    """Return q, k and v one after another in a module, or alternating by group, and their biases."""
    parts = ("attn.q", "attn.k", "attn.v")
    return {
        **packed(name + ".weight", *parts, transposed=transposed, by_group=by_group),
        **packed(name + ".bias", *(f"{part}_bias" for part in parts), by_group=by_group),
    }
