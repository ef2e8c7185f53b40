"""Reads ``params.json``, the config that Mistral publishes with weights in its own names, as a config.json.

Dense models are read, with vision too, and those with latent attention, routed and shared experts (Mistral-Large-3). Older ones
with routed experts alone (Mixtral) are not, nor those with audio.

Source: ``vllm/transformers_utils/configs/mistral.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from loadmaster.limits import LAYERS

LARGE, DENSE, VISION = "MistralLarge3ForCausalLM", "MistralForCausalLM", "PixtralForConditionalGeneration"
"""vLLM's names of the classes."""

_KEYS: Final = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "activation": "hidden_act",
}
_OF_EXPERTS: Final = {
    "route_every_n": "moe_layer_freq",
    "first_k_dense_replace": "first_k_dense_replace",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_experts": "n_routed_experts",
    "expert_hidden_dim": "moe_intermediate_size",
    "routed_scale": "routed_scaling_factor",
    "num_shared_experts": "n_shared_experts",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
}
_OF_YARN: Final = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "beta": "beta_fast",
    "alpha": "beta_slow",
}
_READ: Final = ("moe", "quantization", "yarn", *_KEYS)


def as_config(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values of a ``params.json`` under the keys of config.json; None where the model is not one that is supported.

    >>> as_config({"dim": 64, "moe": {"num_experts": 8, "num_shared_experts": 1}, "qk_nope_head_dim": 16})["n_routed_experts"]
    8
    >>> as_config({"dim": 64, "n_layers": 2, "n_heads": 4, "head_dim": 16})["architectures"]
    ['MistralForCausalLM']
    """
    architecture = _architecture(params)
    if architecture is None:
        return None
    config = {key: value for key, value in params.items() if key not in _READ}
    config |= {new: params[old] for old, new in _KEYS.items() if old in params}
    if isinstance(experts := params.get("moe"), Mapping):
        config |= {new: experts[old] for old, new in _OF_EXPERTS.items() if old in experts}
    if params.get("quantization"):
        config["quantization_config"] = _quantisation(params["quantization"])
    if isinstance(yarn := params.get("yarn"), Mapping):
        config["rope_parameters"] = _rope(yarn)
    if architecture != LARGE:
        config |= {"model_type": "mistral", **_windows(config)}
    return {**config, "architectures": [architecture]}


def _architecture(params: Mapping[str, Any]) -> str | None:
    experts = params.get("moe")
    if isinstance(experts, Mapping) and experts.get("num_shared_experts") and params.get("qk_nope_head_dim"):
        return LARGE
    others = params.get("multimodal")
    others = others if isinstance(others, Mapping) else {}
    is_dense = not experts and not params.get("qk_nope_head_dim") and all(params.get(k) for k in ("dim", "n_layers"))
    if not is_dense or others.get("whisper_model_args"):
        return None
    return VISION if params.get("vision_encoder") or others.get("vision_encoder_args") else DENSE


def _rope(yarn: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``rope_parameters`` of a ``yarn`` section; without ``apply_scale``, values keep their size."""
    rope = {
        "rope_type": "yarn",
        "mscale_all_dim": 1,
        **{new: yarn[old] for old, new in _OF_YARN.items() if old in yarn},
    }
    return rope if yarn.get("apply_scale", True) else {**rope, "attention_factor": 1.0}


def _windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of windows where ``sliding_window`` is a pattern of layers, which repeats."""
    pattern, num_layers = config.get("sliding_window"), config.get("num_hidden_layers")
    if not isinstance(pattern, list) or not pattern or type(num_layers) is not int or num_layers > LAYERS.value:
        return {}
    kinds = ["full_attention" if size is None else "sliding_attention" for size in pattern]
    return {
        "sliding_window": next((size for size in pattern if size is not None), None),
        "layer_types": [kinds[layer % len(kinds)] for layer in range(num_layers)],
    }


def _quantisation(stated: Any) -> Any:
    """Return a ``quantization_config``. Other methods than Mistral's own FP8 are written as there."""
    if not isinstance(stated, Mapping) or stated.get("qformat_weight") != "fp8_e4m3":
        return stated
    scheme = "dynamic" if stated.get("qscheme_act") == "NO_SCALES" else "static"
    return {"quant_method": "fp8", "activation_scheme": scheme}
