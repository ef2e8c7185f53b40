"""Inkling-2, and its variant with a loop: a mix of snapshots of the residual before each attention and each MLP.

A snapshot is taken every ``n_layers_per_attn_res_block`` layers. A stage passes all of them on: later cuts pass more. The query
that weighs them before an attention is stored under the number of the layer before; the first attention has none. Layers without
a window have three queries and norms, for q, k and v, and convolutions whose weights depend on the input. In the variant, some
layers run several times in turn: no stage can begin between them. Experts may be MXFP8; the variant's, which are NVFP4 or MXFP8
by layer and have scales of their own kind, are described in plain weights only.

Sources: ``inkling2`` and ``inkling2_loop`` of transformers 5.24, and its ``conversion_mapping.py``.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures import inkling_blocks as blocks
from loadmaster.architectures.config import Config
from loadmaster.architectures.inkling_config import conv_width, described, local_layers, sizes_of
from loadmaster.architectures.schema import Carried, Family, Param, Placement, Schema, Tensor, by_rows
from loadmaster.architectures.spelling import packed
from loadmaster.errors import ConfigError

_SIZES: Final = {
    **{"vocab_size": 201024, "head_dim": 128, "swa_head_dim": 128, "d_rel": 16, "rel_extent": 1024},
    **{"num_key_value_heads": 8, "swa_num_key_value_heads": 8, "sliding_window_size": 1024},
}
_LOOPED: Final = {
    **{"hidden_size": 2304, "moe_intermediate_size": 1152, "num_hidden_layers": 24, "n_routed_experts": 128},
    **{"num_attention_heads": 24, "swa_num_attention_heads": 24},
    **{"loop_layer_index_start": 6, "loop_layer_index_end": 18},
}
_PLAIN: Final = {
    **{"hidden_size": 4608, "moe_intermediate_size": 2304, "num_hidden_layers": 48, "n_routed_experts": 384},
    **{"num_attention_heads": 48, "swa_num_attention_heads": 48},
}
"""Of ``Inkling2TextConfig`` and ``Inkling2LoopTextConfig``."""

LOOPS: Final = ("Inkling2LoopForConditionalGeneration", "Inkling2LoopForCausalLM")


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    is_looped = c.values["architectures"][0] in LOOPS
    formats = () if is_looped else ("mxfp8", "fp8")
    c = described(c, {**_SIZES, **(_LOOPED if is_looped else _PLAIN)}, formats)
    if (inner := c.optional_size("intermediate_size")) is not None:  # another name of the experts' width
        c = Config({**c.values, "moe_intermediate_size": inner})
    hidden, num_layers = c.size("hidden_size"), c.size("num_hidden_layers")
    every = c.size("n_layers_per_attn_res_block", 6)
    local, looped = local_layers(c), _looped(c, num_layers, every) if is_looped else range(0)
    marks = {"window": local, "first": {0}, "looped": looped}
    layers = [", ".join(name for name, having in marks.items() if i in having) or "full" for i in range(num_layers)]
    first_of = {kind: layers.index(kind) for kind in dict.fromkeys(layers)}
    kinds = {kind: _layer(c, i, is_local=i in local, is_looped=i in looped) for kind, i in first_of.items()}
    messages = [_query(f"loop.{name}", hidden, 2 * len(looped)) for name in ("queries", "kv_queries") if looped]
    turns = f"layers {looped.start} to {looped.stop - 1} run {c.size('loop_num_passes', 3)} times in turn"
    return Schema(
        top=(*blocks.top(c), Tensor("embed_norm", (hidden,)), _query("out.query", hidden, 1), *messages),
        kinds=kinds,
        layers=tuple(layers),
        carries=tuple((Carried("block_states", (-(-i // every), hidden)),) if i else () for i in range(num_layers)),
        joined=tuple(turns if i in looped[1:] else "" for i in range(num_layers)),
    )


def _looped(c: Config, num_layers: int, every: int) -> range:
    start, stop = c.size("loop_layer_index_start", least=0), c.size("loop_layer_index_end")
    if not 0 < start < stop <= num_layers or start % every or stop % every:
        raise ConfigError(
            f"config.json: loop_layer_index_start and _end, {start} and {stop}, must be multiples of {every} "
            f"within {num_layers} layers"
        )
    return range(start, stop)


def _query(name: str, hidden: int, count: int) -> Tensor:
    return Tensor(name, (hidden,) if count == 1 else (count, hidden), keep="F32")


def _layer(c: Config, layer: int, *, is_local: bool, is_looped: bool) -> tuple[Tensor, ...]:
    heads, kv_heads, head, _ = sizes_of(c, is_local=is_local)
    hidden, width, clipped = c.size("hidden_size"), conv_width(c), {"q": head, "rel": c.size("d_rel")}
    attention, norms = blocks.attention(c, is_local=is_local), ["input_norm"]
    if not is_local:
        norms = ["q_input_norm", "k_input_norm", "v_input_norm"]
        attention = tuple(t for t in attention if t.name not in ("attn.k_conv", "attn.v_conv"))
        across, along = Placement(1, head, repeat=True), by_rows(width, repeat=True)
        for part in ("k", "v"):
            attention += (
                Tensor(f"attn.{part}_static", (width, kv_heads * head), across, usual=("F32",)),
                Tensor(f"attn.{part}_dynamic", (kv_heads * width, hidden), along),
            )
    return (
        *(Tensor(name, (hidden,)) for name in (*norms, "post_norm")),
        *attention,
        Tensor("attn.gate", (heads * head, hidden), by_rows(head)),
        *(Tensor(f"attn.{n}_clip", (heads, size), by_rows(), usual=("F32",)) for n, size in clipped.items()),
        Tensor("attn.sink", (heads, hidden), by_rows()),
        *((_query("attn.query", hidden, 1 if is_local else 3),) if layer else ()),
        _query("mlp.query", hidden, 1),
        *blocks.experts(c, shared=0),
        *(_controllers(c, hidden) if is_looped else ()),
    )


_CONTROLLERS: Final = ("attn", "k", "v", "mlp")


def _controllers(c: Config, hidden: int) -> tuple[Tensor, ...]:
    """Return what mixes the snapshots of the pass before into this one."""
    rank = c.size("loop_gate_rank", 64)
    sizes = {"down": (rank, 2 * hidden), "forget": (hidden, rank), "gain": (hidden, rank)}
    return tuple(Tensor(f"loop.{of}.{n}", shape) for of in _CONTROLLERS for n, shape in sizes.items())


_OWN: Final = {
    **{f"{part}_input_norm": f"{part}_input_norm.weight" for part in ("q", "k", "v")},
    **{f"attn.{part}_static": f"attn.{part}_sconv.static_w" for part in ("k", "v")},
    **{f"attn.{part}_dynamic": f"attn.{part}_sconv.weight_proj" for part in ("k", "v")},
    **{f"attn.{part}_clip": f"attn.{part}_l2_clip.scale" for part in ("q", "rel")},
    **{"attn.gate": "attn.gate_attn.weight", "attn.sink": "attn.attn_sink_proj.weight"},
    **{f"loop.{o}.{n}": f"controllers.{o}.{n}_weight" for o in _CONTROLLERS for n in ("down", "forget", "gain")},
}
_OF_MODEL: Final = {
    "out.query": "attn_res.output_query",
    **{f"loop.{name}": f"middle_cycle_cross_pass_{name}" for name in ("queries", "kv_queries")},
}
_NAMES: Final = ("Inkling2ForConditionalGeneration", "Inkling2ForCausalLM", *LOOPS)

FAMILY = Family(
    name="inkling2",
    architectures=_NAMES,
    schema=schema,
    spelling={
        **blocks.spelling(_OWN),
        **{name: "model.llm." + stored for name, stored in _OF_MODEL.items()},
        **packed("model.llm.attn_res.attn_queries.{layer}", "attn.query", first=1),
        "mlp.query": "model.llm.attn_res.mlp_queries.{layer}",
    },
    native=(
        *blocks.native(_OWN),
        *(Param(f"{{block}}.{of}_res.query", (f"{of}.query",)) for of in ("attn", "mlp")),
        *(Param(stored, (n,), stage="last" if n == "out.query" else "every") for n, stored in _OF_MODEL.items()),
    ),
    waived=blocks.TOWERS,
    section="text_config",
    unchecked=dict.fromkeys(
        _NAMES, "names and shapes are those of transformers' class; number formats were not seen in a release"
    ),
)
