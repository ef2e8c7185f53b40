"""Llama and its dense relatives: Llama, SmolLM2, Mistral (in its own names too), Qwen2, Qwen3.

Sources: the released configs and ``modeling_llama.py``, ``modeling_qwen2.py``, ``modeling_qwen3.py`` and
``modeling_mistral.py`` of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from loadmaster.architectures import blocks, mistral_names
from loadmaster.architectures.config import Config
from loadmaster.architectures.model import AttentionSpec, Model, require
from loadmaster.architectures.rope import read_rope
from loadmaster.architectures.schema import Family, Schema, embedding
from loadmaster.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaModel(Model):
    """A dense model. ``windows`` gives for each layer how many tokens it attends to at most; None: all."""

    attention: AttentionSpec
    windows: tuple[int | None, ...]


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    hidden, heads, kv_heads, head = blocks.heads_of(c)
    architecture = c.values["architectures"][0]
    bias = c.flag("attention_bias")  # Qwen2 has biases on q, k and v, and no key for them; Llama's flag includes o
    qk_norm = head if architecture == "Qwen3ForCausalLM" or c.flag("qk_norm") else 0  # the flag is Bagel's
    layer = (
        *blocks.norms(hidden),
        *blocks.attention(
            hidden,
            heads,
            kv_heads,
            head,
            bias=bias or architecture == "Qwen2ForCausalLM",
            out_bias=bias and architecture != "Qwen2ForCausalLM",
            q_norm=qk_norm,
            k_norm=qk_norm,
        ),
        *blocks.gated_mlp(hidden, c.size("intermediate_size"), bias=c.flag("mlp_bias")),
    )
    return Schema(
        top=embedding(c),
        kinds={"dense": layer},
        layers=("dense",) * c.size("num_hidden_layers"),
    )


def read_model(c: Config) -> LlamaModel:
    """Return what computing the model needs."""
    require(c, "qk_norm", False)
    require(c, "hidden_act", "silu")
    require(c, "llama_4_scaling", None)
    _, heads, kv_heads, head = blocks.heads_of(c)
    norm_eps = c.number("rms_norm_eps")
    return LlamaModel(
        schema=schema(c),
        norm_eps=norm_eps,
        attention=AttentionSpec(
            heads,
            kv_heads,
            head,
            norm_eps,
            read_rope(c),
            qk_norm="head" if c.values["architectures"][0] == "Qwen3ForCausalLM" else None,
        ),
        windows=windows(c),
    )


def windows(c: Config) -> tuple[int | None, ...]:
    """Return for each layer how many tokens it attends to at most; None for all.

    ``layer_types`` decides where it is given. Otherwise Mistral slides in every layer if ``sliding_window`` is set, and
    Qwen only with ``use_sliding_window``, from layer ``max_window_layers`` on.
    """
    num_layers = c.size("num_hidden_layers")
    size = c.optional_size("sliding_window")
    has_switch = "use_sliding_window" in c.values
    if size is None or (has_switch and not c.flag("use_sliding_window")):
        return (None,) * num_layers
    types = c.strings("layer_types")
    if types and len(types) < num_layers:
        raise ConfigError(
            f"config.json: layer_types has {len(types)} entries, expected one for each of {num_layers} layers"
        )
    if types:
        slides = [kind == "sliding_attention" for kind in types[:num_layers]]
    elif has_switch:
        first = c.size("max_window_layers", 28, least=0)
        slides = [layer >= first for layer in range(num_layers)]
    else:
        slides = [c.values.get("model_type") == "mistral"] * num_layers
    return tuple(size if s else None for s in slides)


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    schema=schema,
    spelling=blocks.DECODER_SPELLING,
    variants=({**blocks.DECODER_SPELLING, **mistral_names.DENSE},),
    native=blocks.DECODER_NATIVE,
    waived=(blocks.INV_FREQ,),
    runs=True,
)
