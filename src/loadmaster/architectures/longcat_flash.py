"""LongCat-Flash: two latent attentions and two dense MLPs in each layer, beside one MLP of experts.

The router also scores ``zero_expert_num`` experts that return their input: they store nothing, so it has more rows than there are
experts. With n-gram embeddings (``ngram_vocab_size_ratio``), tables of hashed n-grams and their projections stand beside the
embedding on the first stage; each table is divided by rows, where vLLM divides the rows of all tables together. The MTP layer is
one dense layer under ``model.mtp.``, with its own embedding.

Sources: ``longcat_flash`` of transformers 5.24; ``longcat_flash.py``, ``longcat_flash_mtp.py`` and ``longcat_flash_ngram.py`` in
``vllm/model_executor/models``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks, mla
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Param, Schema, Tensor, by_vocabulary, embedding, linear
from loadmaster.errors import UnsupportedError

_TABLES: Final = 64
"""Tables of n-grams that are spelled; published models have 12."""


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, num_experts = c.size("hidden_size"), c.size("n_routed_experts")
    rows = num_experts + c.size("zero_expert_num", 0, least=0)
    dense = blocks.gated_mlp(hidden, c.size("ffn_hidden_size", c.optional_size("intermediate_size")))
    inner = c.size("expert_ffn_hidden_size", c.optional_size("moe_intermediate_size"))
    _, *experts = blocks.experts(hidden, inner, num_experts)
    part = (*blocks.norms(hidden), *mla.latent_attention(c), *dense)
    layer = (
        *_numbered(part, 0),
        *_numbered(part, 1),
        Tensor("moe.router", (rows, hidden), usual=("F32",)),
        Tensor("moe.router_bias", (rows,), keep="F32"),
        *experts,
    )
    layers = c.size("num_layers", (c.optional_size("num_hidden_layers") or 0) // 2 or None)
    return Schema(
        top=(*embedding(c), *_ngrams(c, hidden)),
        kinds={"sparse": layer, "mtp": (*part, *_draft(c, hidden))},
        layers=("sparse",) * layers,
        drafts=("mtp",) * c.size("num_nextn_predict_layers", 0, least=0),
        unread=tuple(_unread(c, num_experts, rows)),
    )


def _unread(c: Config, num_experts: int, rows: int) -> Iterator[tuple[str, str]]:
    if c.values.get("num_nextn_predict_layers") is None:
        yield r"model\.mtp\..*", "config.json has no num_nextn_predict_layers, the number of MTP layers"
    if rows > num_experts:  # transformers saves a gate and an up of them
        zero = "|".join(map(str, range(num_experts, rows)))
        yield rf"model\.layers\.\d+\.mlp\.experts\.({zero})\..*", "an expert that returns its input has no weights"


def _numbered(tensors: Iterable[Tensor], number: int) -> Iterator[Tensor]:
    """Yield the tensors of the first or the second half of a layer."""
    return (replace(t, name=f"{number}.{t.name}") for t in tensors)


def _ngrams(c: Config, hidden: int) -> Iterator[Tensor]:
    if c.values.get("ngram_vocab_size_ratio") is None:
        return
    rows = int(c.number("ngram_vocab_size_ratio", above=0) * c.size("vocab_size"))
    count = c.size("emb_split_num") * (c.size("emb_neighbor_num") - 1)
    if not 0 < count <= _TABLES or hidden % count:
        raise UnsupportedError(
            f"config.json: {count} tables of n-grams do not divide hidden_size {hidden}",
            hint=f"supported: up to {_TABLES}, by emb_split_num and emb_neighbor_num",
        )
    for number in range(count):
        yield Tensor(f"ngram.{number}", (rows + 2 * number + 1, hidden // count), by_vocabulary(), table="device")
        yield Tensor(f"ngram.projection.{number}", (hidden, hidden // count))


def _draft(c: Config, hidden: int) -> tuple[Tensor, ...]:
    return (
        linear("mtp.eh_proj", hidden, 2 * hidden),
        *(Tensor(f"mtp.{norm}", (hidden,)) for norm in ("enorm", "hnorm", "norm")),
        Tensor("mtp.embed", (c.size("vocab_size"), hidden), by_vocabulary()),
    )


_PART: Final[dict[str, str]] = {**blocks.NORMS_SPELLING, **mla.SPELLING, **blocks.gated_mlp_spelling()}
_MODULES: Final = {"input_layernorm.", "post_attention_layernorm.", "self_attn."}


def _within(name: str, number: int) -> str:
    """Return the name of a module, stored or of a parameter, in the half ``number`` of a layer."""
    for module in _MODULES:
        name = name.replace(f".{module}", f".{module}{number}.")
    return name.replace(".mlp.", f".mlps.{number}.")


_DRAFT: Final = "model.mtp.layers.{layer}."
_PARAMS: Final = (*blocks.NORMS_NATIVE, *mla.NATIVE, *blocks.gated_mlp_native())

FAMILY = Family(
    name="longcat_flash",
    architectures=("LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM"),
    schema=schema,
    spelling={
        **blocks.TOP_SPELLING,
        **{f"{n}.{name}": _within(stored, n) for n in (0, 1) for name, stored in _PART.items()},
        **blocks.experts_spelling(),
        "moe.router": blocks.LAYER + "mlp.router.classifier.weight",
        "moe.router_bias": blocks.LAYER + "mlp.router.e_score_correction_bias",
        **{f"ngram.{n}": f"model.ngram_embeddings.embedders.{n}.weight" for n in range(_TABLES)},
        **{f"ngram.projection.{n}": f"model.ngram_embeddings.post_projs.{n}.weight" for n in range(_TABLES)},
    },
    drafts=(
        {
            **{name: stored.replace(blocks.LAYER, _DRAFT) for name, stored in _PART.items()},
            **{f"mlp.{n}": f"{_DRAFT}transformer_layer.mlp.{n}_proj.weight" for n in ("gate", "up", "down")},
            "mtp.eh_proj": _DRAFT + "eh_proj.weight",
            **{f"mtp.{norm}": f"{_DRAFT}{norm}.m.weight" for norm in ("enorm", "hnorm")},
            "mtp.norm": "model.mtp.norm.weight",
            "mtp.embed": "model.mtp.embed_tokens.weight",
        },
    ),
    native=(
        *blocks.TOP_NATIVE,
        *(
            replace(p, name=_within(p.name, n), parts=tuple(f"{n}.{part}" for part in p.parts))
            for n in (0, 1)
            for p in _PARAMS
        ),
        *_PARAMS,
        *blocks.EXPERTS_NATIVE,
        *blocks.DRAFT_NATIVE,
        *(
            Param(f"ngram_embeddings.{kind}.{n}.weight", (f"ngram.{infix}{n}",), stage="first")
            for kind, infix in (("embedders", ""), ("post_projs", "projection."))
            for n in range(_TABLES)
        ),
    ),
    waived=(blocks.INV_FREQ,),
    unchecked={
        "LongcatFlashForCausalLM": "names and shapes are those of transformers' class, those of the MTP layer of vLLM's loader",
        "LongcatFlashNgramForCausalLM": OF_VLLM,
    },
)
