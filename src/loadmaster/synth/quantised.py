"""The ``quantization_config`` of published models, one function for each method, as the quantisation tools write it.

``group`` is the number of inputs that share a factor; it is smaller in tiny models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Quantization = dict[str, Any]

FP8: Quantization = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def _compressed(kind: str, ignore: Sequence[str], **weights: Any) -> Quantization:
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"dynamic": False, "symmetric": True, **weights}}
        },
    }


def _fp8(_: int) -> Quantization:
    return FP8


def _fp8_powers(_: int) -> Quantization:
    """The factors are powers of two, stored as E8M0."""
    return {**FP8, "scale_fmt": "ue8m0"}


def _fp8_static(_: int) -> Quantization:
    return {"quant_method": "fp8", "activation_scheme": "static"}


def _fp8_channel(_: int) -> Quantization:
    return _compressed("float-quantized", ["lm_head"], num_bits=8, type="float", strategy="channel")


def _fp8_blocks(_: int) -> Quantization:
    return _compressed(
        "float-quantized", ["lm_head"], num_bits=8, type="float", strategy="block", block_structure=[128, 128]
    )


def _w8a8(_: int) -> Quantization:
    return _compressed("int-quantized", ["lm_head"], num_bits=8, type="int", strategy="channel")


def _w4a16(group: int) -> Quantization:
    return _compressed("pack-quantized", ["lm_head"], num_bits=4, type="int", strategy="group", group_size=group)


def _w4a16_asymmetric(group: int) -> Quantization:
    return _compressed(
        "pack-quantized", ["lm_head"], num_bits=4, type="int", strategy="group", group_size=group, symmetric=False
    )


def _int4_experts(_: int) -> Quantization:
    """Kimi-K2-Thinking: only the routed experts, in groups of 32."""
    ignore = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
    return _compressed("pack-quantized", ignore, num_bits=4, type="int", strategy="group", group_size=32)


def _nvfp4(_: int) -> Quantization:
    return _compressed(
        "nvfp4-pack-quantized", ["lm_head"], num_bits=4, type="float", strategy="tensor_group", group_size=16
    )


def _modelopt_fp4(_: int) -> Quantization:
    """DeepSeek-R1-FP4 and the like: experts and dense layers, not the attention."""
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "ignore": ["lm_head", "*self_attn*"],
    }


def _modelopt_fp8(_: int) -> Quantization:
    return {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}


def _awq(group: int) -> Quantization:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def _gptq(group: int) -> Quantization:
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True}


def _gptq_act_order(group: int) -> Quantization:
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": True, "sym": True}


def _gptq8(group: int) -> Quantization:
    return {"quant_method": "gptq", "bits": 8, "group_size": group, "desc_act": False, "sym": True}


def _mxfp4(_: int) -> Quantization:
    return {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }


QUANTISED: dict[str, Callable[[int], Quantization]] = {
    "fp8": _fp8,
    "fp8-ue8m0": _fp8_powers,
    "fp8-static": _fp8_static,
    "fp8-channel": _fp8_channel,
    "fp8-blocks": _fp8_blocks,
    "w8a8": _w8a8,
    "w4a16": _w4a16,
    "w4a16-asym": _w4a16_asymmetric,
    "int4": _int4_experts,
    "nvfp4": _nvfp4,
    "modelopt-fp4": _modelopt_fp4,
    "modelopt-fp8": _modelopt_fp8,
    "awq": _awq,
    "gptq": _gptq,
    "gptq-act-order": _gptq_act_order,
    "gptq8": _gptq8,
    "mxfp4": _mxfp4,
}
"""Name of the format in ``loadmaster synth`` -> function of the group size -> quantization_config."""
