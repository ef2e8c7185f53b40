"""Reads ``params.json``, the config that Mistral publishes with weights in its own names, as a config.json.

Only models with latent attention, routed and shared experts are read (Mistral-Large-3), because they are published in this form
alone. Mistral's other models are published in the form of transformers too. There the rows of q and k have another order, and a
table of names would not be enough.

Source: ``vllm/transformers_utils/configs/mistral.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

ARCHITECTURE: Final = "MistralLarge3ForCausalLM"
"""vLLM's name of the class."""

_KEYS: Final = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
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
_READ: Final = ("moe", "quantization", *_KEYS)


def as_config(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the values of a ``params.json`` under the keys of config.json; None where the model is not one that is supported.

    >>> as_config({"dim": 64, "moe": {"num_experts": 8, "num_shared_experts": 1}, "qk_nope_head_dim": 16})["n_routed_experts"]
    8
    """
    experts = params.get("moe")
    if not isinstance(experts, Mapping) or not experts.get("num_shared_experts") or not params.get("qk_nope_head_dim"):
        return None
    config = {key: value for key, value in params.items() if key not in _READ}
    config |= {new: params[old] for old, new in _KEYS.items() if old in params}
    config |= {new: experts[old] for old, new in _OF_EXPERTS.items() if old in experts}
    if params.get("quantization"):
        config["quantization_config"] = _quantisation(params["quantization"])
    return {**config, "architectures": [ARCHITECTURE]}


def _quantisation(stated: Any) -> Any:
    """Return a ``quantization_config``. Other methods than Mistral's own FP8 are written as there."""
    if not isinstance(stated, Mapping) or stated.get("qformat_weight") != "fp8_e4m3":
        return stated
    scheme = "dynamic" if stated.get("qscheme_act") == "NO_SCALES" else "static"
    return {"quant_method": "fp8", "activation_scheme": scheme}
