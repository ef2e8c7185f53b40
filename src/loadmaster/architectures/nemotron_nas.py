"""Nemotron-NAS (DeciLM): a Llama of which layers lack their attention or their MLP, and have heads and widths of their own.

``block_configs`` of the config gives them: how many heads of queries share one of keys, and the MLP's width, or a factor that
it follows from. A part that was replaced by one matrix is not supported, in vLLM either.

Sources: ``nemotron_nas.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from loadmaster.architectures import blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import OF_VLLM, Family, Schema, Tensor, embedding
from loadmaster.errors import ConfigError, UnsupportedError


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    given, num_layers = c.objects("block_configs"), c.size("num_hidden_layers")
    if len(given) != num_layers:
        raise ConfigError(f"config.json: block_configs must have an object for each of {num_layers} layers")
    layers, kinds = [], {}
    for of in given:
        heads_a_key, inner = _attention(of.section("attention")), _inner(of.section("ffn"), c.size("hidden_size"))
        kind = f"{heads_a_key or 'no'} heads a key, MLP of {inner or 'none'}"
        layers.append(kind)
        kinds[kind] = _layer(c, heads_a_key, inner)
    return Schema(top=embedding(c), kinds=kinds, layers=tuple(layers))


def _attention(c: Config) -> int:
    """Return how many heads of queries share one of keys; 0 where a layer has no attention."""
    _refuse_linear(c)
    return 0 if c.flag("no_op") else c.size("n_heads_in_group")


def _inner(c: Config, hidden: int) -> int:
    """Return the width of an MLP; 0 where a layer has none. A factor is rounded up to 256."""
    _refuse_linear(c)
    if c.flag("no_op"):
        return 0
    if c.values.get("ffn_mult") is None:
        return c.size("intermediate_size")
    return -(-int(2 * c.number("ffn_mult", above=0) * hidden / 3) // 256) * 256


def _refuse_linear(c: Config) -> None:
    if c.flag("replace_with_linear"):
        raise UnsupportedError(f"{c.where}: replace_with_linear is true; it is not supported")


def _layer(c: Config, heads_a_key: int, inner: int) -> tuple[Tensor, ...]:
    hidden, heads, _, head = blocks.heads_of(c)
    bias = c.flag("attention_bias")
    tensors: tuple[Tensor, ...] = ()
    if heads_a_key:
        if heads % heads_a_key:
            raise ConfigError(f"config.json: {heads_a_key} heads a key do not divide num_attention_heads {heads}")
        tensors += (
            Tensor("input_norm", (hidden,)),
            *blocks.attention(hidden, heads, heads // heads_a_key, head, bias=bias, out_bias=bias),
        )
    if inner:
        tensors += (Tensor("post_norm", (hidden,)), *blocks.gated_mlp(hidden, inner, bias=c.flag("mlp_bias")))
    return tensors


FAMILY = Family(
    name="nemotron_nas",
    architectures=("DeciLMForCausalLM",),
    schema=schema,
    spelling=blocks.DECODER_SPELLING,
    native=blocks.DECODER_NATIVE,
    waived=(blocks.INV_FREQ,),
    unchecked={"DeciLMForCausalLM": OF_VLLM},
)
