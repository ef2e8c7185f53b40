"""transformers on hand-dequantised weights: the numerical reference, float32, eager attention."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.loader.reference import dequantise, read_all
from tests.versions import TRANSFORMERS


def transformers_model(path: Path, folder: Path) -> PreTrainedModel:
    """Write a checkpoint's weights dequantised to float32 into ``folder``, and let transformers load them."""
    stored = read_all(path)
    plain = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(f"{name}_scale_inv")
        plain[name] = tensor.float() if scale is None else dequantise(tensor, scale)
    config = json.loads((path / "config.json").read_text())
    config.pop("quantization_config", None)
    return load_model(folder, config, plain)


def load_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Write a checkpoint of float32 weights into ``folder``, and let transformers load it."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**{k: v for k, v in config.items() if k != "torch_dtype"}, "dtype": "float32"}
    if TRANSFORMERS < (5, 18) and "rotary_dim" in config:  # MiniMax-M2's config; read since 5.18
        config["partial_rotary_factor"] = config["rotary_dim"] / config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        if name.endswith(("q_a_layernorm", "kv_a_layernorm")):  # engines take the config's epsilon, transformers 1e-6
            module.variance_epsilon = config["rms_norm_eps"]
        if TRANSFORMERS < (5, 19) and type(module).__name__ == "GptOssExperts":  # a constant, 7; read since 5.19
            module.limit = config.get("swiglu_limit", module.limit)
    return model.eval()


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest expected logit, to which float32's rounding is proportional.

    Gemma-3's logits reach 260. float32 has steps of 3e-5 there, and transformers itself is 1e-4 from float64.
    """
    return float((logits - expected).abs().max() / expected.abs().max())


def greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy decoding without a cache: the whole sequence anew for every token."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
