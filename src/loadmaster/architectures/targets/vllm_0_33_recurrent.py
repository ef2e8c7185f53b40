"""vLLM 0.33's models with recurrent or other unusual layers: architecture in config.json → how vLLM implements it (`vllm`).

Sources, all of 0.33.0: ``lfm2``, ``lfm2_moe``, ``granitemoehybrid``, ``falcon_h1``, ``jamba``, ``mamba``, ``mamba2``, ``zamba2``,
``olmo_hybrid``, ``gemma3n`` and ``nemotron_h`` in ``vllm/model_executor/models``; ``mamba_mixer``, ``mamba_mixer2`` and
``gdn/olmo_gdn_linear_attn`` in ``vllm/model_executor/layers/mamba``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from loadmaster.architectures import gemma3n, mamba2, zamba2
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Param, by_columns, by_rows
from loadmaster.architectures.targets import vllm_0_33_mixed
from loadmaster.architectures.targets.vllm import EMBEDDING, HEAD, NORM, Described
from loadmaster.architectures.targets.vllm_0_32 import SPARSE_BLOCK, untied


def _tied(c: Config) -> str | None:
    """vLLM always has a tied head."""
    is_tied = c.flag("tie_word_embeddings", c.flag("tie_embedding", True))
    return None if is_tied else "the head is not tied to the embedding"


def _falcon_h1(c: Config) -> str | None:
    """vLLM has no biases."""
    return next((f"{key} is true" for key in ("attention_bias", "mlp_bias") if c.flag(key)), None)


def _puzzle(c: Config) -> str | None:
    """vLLM sizes all Mamba-2 layers alike."""
    own = {k for b in c.objects("block_configs") if b.values.get("block_type") == "mamba" for k in b.values}
    return "its Mamba-2 layers have sizes of their own" if own - {"block_type"} else untied(c)


def _inside(described: Described, wrapper: str) -> Described:
    return replace(described, classes=(wrapper,), within="language_model.")


_EVERYTHING: Final = (EMBEDDING, NORM, HEAD)
_A_LOG: Final = ("mamba.A_log", "mamba.A")
_FEED_FORWARD: Final = (
    ("mlp.experts.", "feed_forward.experts.routed_experts."),
    ("mlp.gate.", "feed_forward.router."),
    ("mlp.", "feed_forward."),
    ("post_attention_layernorm.", "pre_ff_layernorm."),
)
_FINAL_NORM: Final = (("norm.", "final_layernorm."),)

_LFM2 = Described(
    ("Lfm2ForCausalLM",),
    modules=(
        ("self_attn.q_norm.", "self_attn.q_layernorm."),
        ("self_attn.k_norm.", "self_attn.k_layernorm."),
        ("self_attn.o_proj.", "self_attn.out_proj."),
        ("input_layernorm.", "operator_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("conv.", "short_conv."),
        ("mlp.gate_up_proj.", "feed_forward.w13."),
        ("mlp.down_proj.", "feed_forward.w2."),
        ("mlp.experts.", "feed_forward.experts.routed_experts."),
        ("mlp.gate.", "feed_forward.gate."),
    ),
    top=(("norm.", "embedding_norm."),),
    on_every_stage=(EMBEDDING,),
    formats={},
    obstacle=_tied,
)

_HYBRID = Described((), keep=(("mamba.A", "F32"),), computed=("mamba.A",), formats={})  # -exp(A_log)

_MAMBA = Described(
    ("MambaForCausalLM",),
    modules=(("mixer.A_log", "mixer.A"),),
    top=(("embed_tokens.", "embeddings."), ("norm.", "norm_f.")),
    on_every_stage=_EVERYTHING,
    keep=(("mixer.A", "F32"),),
    computed=("mixer.A",),
    model="backbone.",
    formats={},
)


def _adapters(turn: int) -> tuple[tuple[str, str], ...]:
    """Return vLLM's names of the adapters of one layer that uses a shared block of Zamba2."""
    lists = {part: f"self_attn.linear_{part}_adapter_list" for part in "qkv"}
    lists["gate_up"] = "feed_forward.gate_up_proj_adapter_list"
    return tuple(
        (f"shared.adapters.{turn}.{name}_{side}.", f"shared_transformer.{of}.{turn}.{side.upper()}.")
        for name, of in lists.items()
        for side in "ab"
    )


def _in_decoder() -> tuple[Param, ...]:
    """Return the parameters of a layer that a shared block of Zamba2 feeds into."""
    norm = Param("{block}.mamba_decoder.input_layernorm.weight", ("input_norm",))
    own = (norm, *mamba2.native("{block}.mamba_decoder.mamba."))
    made = (replace(p, parts=tuple(f"decoder.{part}" for part in p.parts)) for p in own)
    a = Param("{block}.mamba_decoder.mamba.A", ("decoder.mamba.a_log",), keep="F32")
    return tuple(a if p.parts == a.parts else p for p in made)


_TURNS: Final = range(zamba2.MOST_ADAPTERS)
_ZAMBA2 = replace(
    _HYBRID,
    classes=("Zamba2ForCausalLM",),
    modules=(
        _A_LOG,
        *(pair for turn in _TURNS for pair in _adapters(turn)),
        ("shared.attn_norm.", "shared_transformer.input_layernorm."),
        ("shared.mlp_norm.", "shared_transformer.pre_ff_layernorm."),
        ("shared.mlp.", "shared_transformer.feed_forward."),
        ("shared.", "shared_transformer."),
    ),
    top=_FINAL_NORM,
    computed=("mamba.A", "mamba_decoder.mamba.A"),
    placements={f"adapter.{turn}.{part}_a": by_rows() for turn in _TURNS for part in ("q", "k", "v", "mlp")},
    params=_in_decoder(),
    sends=(),  # vLLM does not divide it into stages
    obstacle=_tied,
)

_GEMMA3N = Described(
    ("Gemma3nForCausalLM",),
    top=tuple((name, f"self_decoder.{name}") for name in ("embed_tokens", "per_layer_", "altup_projections.")),
    keep=(("altup.correct_output_scale", "F32"),),
    placements={
        **{f"altup.{way}.{stream}": by_rows() for way in ("in", "out") for stream in range(gemma3n.STREAMS - 1)},
        "per_layer.projection": by_rows(),
        "laurel.left": by_rows(),
        "laurel.right": by_columns(),
    },
    params=(
        Param("lm_head.weight", ("head",), stage="last"),  # a tied head has no name
        Param("{block}.self_attn.qkv_proj.weight", ("attn.q", "attn.k", "attn.v")),
        Param("{block}.self_attn.q_proj.weight", ("attn.q",), unless="attn.k"),
    ),
    formats={},
    sends=(),  # vLLM does not divide it into stages
    obstacle=_tied,
)

DESCRIBED: Final[Mapping[str, Described]] = {
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": replace(_LFM2, classes=("Lfm2MoeForCausalLM",)),
    "Lfm2VlForConditionalGeneration": _inside(_LFM2, "Lfm2VLForConditionalGeneration"),
    "GraniteMoeHybridForCausalLM": replace(
        _HYBRID,
        classes=("GraniteMoeHybridForCausalLM",),
        modules=(*SPARSE_BLOCK, _A_LOG),
        sends=(),  # over stages, vLLM neither finds the layers of others nor skips them
    ),
    "FalconH1ForCausalLM": Described(
        ("FalconH1ForCausalLM",),
        modules=(("mamba.A_log", "mamba.mamba.A"), ("mamba.", "mamba.mamba."), *_FEED_FORWARD),
        top=_FINAL_NORM,
        keep=(("mamba.mamba.A", "F32"),),
        computed=("mamba.mamba.A",),
        formats={},
        sends=("hidden_states",),
        obstacle=_falcon_h1,
    ),
    "JambaForCausalLM": replace(
        _HYBRID,
        classes=("JambaForCausalLM",),
        modules=(("self_attn.", ""), _A_LOG, *_FEED_FORWARD),
        top=_FINAL_NORM,
        on_every_stage=_EVERYTHING,
        obstacle=untied,
    ),
    "MambaForCausalLM": _MAMBA,
    "FalconMambaForCausalLM": _MAMBA,
    "Mamba2ForCausalLM": replace(_MAMBA, classes=("Mamba2ForCausalLM",), sends=()),  # without stages, as vLLM has it
    "Zamba2ForCausalLM": _ZAMBA2,
    "OlmoHybridForCausalLM": Described(
        ("OlmoHybridForCausalLM",),
        modules=(("self_attn_norm.", "post_attention_layernorm."),),
        on_every_stage=_EVERYTHING,
        placements={"attn.q_norm": None, "attn.k_norm": None},
        formats={},
        sends=("hidden_states",),
    ),
    "Gemma3nForCausalLM": _GEMMA3N,
    "Gemma3nForConditionalGeneration": _inside(_GEMMA3N, "Gemma3nForConditionalGeneration"),
    "NemotronHPuzzleForCausalLM": replace(
        vllm_0_33_mixed.DESCRIBED["NemotronHForCausalLM"], drafts=(), obstacle=_puzzle
    ),
}
