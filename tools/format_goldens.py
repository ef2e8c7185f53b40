"""Tiny checkpoints as MLX and bitsandbytes write them, and digests of their values: ``python -m tools.format_goldens FOLDER``.

It runs in an environment with ``mlx[cpu]``, ``mlx-lm``, ``bitsandbytes`` and ``accelerate``, and writes what
``tests/loader/golden`` holds. A digest is that of the values that the package itself decodes. It also compares the names and
shapes of mlx-lm's classes with the tables, for every architecture that `loadmaster.architectures.mlx` lists.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from loadmaster.architectures.aliases import MODEL_TYPES
from loadmaster.architectures.mlx import NAMES, named_by_mlx
from loadmaster.architectures.registry import find_family
from loadmaster.synth.inventory import inventory
from loadmaster.synth.presets import Preset

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
QWEN3_MOE: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "tie_word_embeddings": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "rope_theta": 1e6,
    "max_position_embeddings": 1024,
}
BITS = {"v_proj": 6, "down_proj": 3, "o_proj": 5, "lm_head": 8, "up_proj": 2}
"""Bits of the mixed checkpoint, by module; the others have 4."""

ANY: dict[str, Any] = {
    **QWEN3_MOE,
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"), 1e-5),
    **dict.fromkeys(("logits_scaling", "attention_multiplier", "embedding_multiplier", "residual_multiplier"), 1.0),
    **dict.fromkeys(("sliding_window", "query_pre_attn_scalar"), 32),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), 30.0),
    **dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias", "use_qk_norm"), False),
    "layer_types": ["full_attention"] * 2,
    "no_rope_layers": [1, 0],
    "num_local_experts": 4,
    "partial_rotary_factor": 0.5,
    "shared_expert_intermediate_size": 128,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "logit_scale": 1.0,
    "rope_scaling": None,
    "rope_traditional": False,
    "sliding_window_pattern": 2,
    "use_bias": True,
    "use_qkv_bias": True,
    "bias": False,
}
"""Keys that some architecture or other needs."""


def _mixed(path: str, _: Any) -> bool | dict[str, int]:
    bits = BITS.get(path.rpartition(".")[2])
    return {"group_size": 32, "bits": bits} if bits else not path.endswith("0.self_attn.q_proj")


def _router(path: str, _: Any) -> bool | dict[str, int]:
    return {"group_size": 64, "bits": 8} if path.endswith("mlp.gate") else True


def _write(out: Path, decoded: dict[str, bytes]) -> None:
    digests = {name: hashlib.sha256(values).hexdigest() for name, values in sorted(decoded.items())}
    (out / "decoded.json").write_text(json.dumps(digests, indent=1) + "\n")


def write_mlx(
    out: Path, config: dict[str, Any], predicate: Callable[..., Any] | None, group: int, mode: str, bits: int = 4
) -> None:
    """Write a checkpoint as ``mlx_lm.convert`` does, and the digests of its F32 values."""
    import mlx.core as mx
    from mlx_lm.utils import quantize_model, save_config, save_model

    mx.random.seed(1)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.float32)
    model, config = quantize_model(
        model, {**config, "torch_dtype": "float32"}, group, bits, mode, quant_predicate=predicate
    )
    out.mkdir(parents=True)
    save_model(out, model)
    save_config(config, config_path=out / "config.json")
    (out / "model.safetensors.index.json").unlink(missing_ok=True)
    decoded = {
        f"{path}.weight": mx.dequantize(m.weight, m.scales, m.get("biases"), m.group_size, m.bits, m.mode)
        for path, m in model.named_modules()
        if hasattr(m, "bits")
    }
    _write(out, {name: bytes(memoryview(values.astype(mx.float32))) for name, values in decoded.items()})


def write_bitsandbytes(out: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint as transformers saves it, and the digests of its BF16 values."""
    from bitsandbytes import functional
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**config, dtype=torch.bfloat16)).bfloat16().save_pretrained(out)
    how = BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]
    quantised = AutoModelForCausalLM.from_pretrained(
        out, quantization_config=how, device_map="cpu", dtype=torch.bfloat16
    )
    quantised.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    stored = load_file(out / "model.safetensors")

    def decoded(name: str, weight: torch.Tensor) -> torch.Tensor:
        beside = {n.removeprefix(f"{name}."): t for n, t in stored.items() if n.startswith(f"{name}.")}
        made: torch.Tensor = (
            functional.int8_vectorwise_dequant(weight, stored[name.removesuffix("weight") + "SCB"])
            if weight.dtype == torch.int8
            else functional.dequantize_4bit(weight, functional.QuantState.from_dict(beside, torch.device("cpu")))
        )
        return made

    encoded = ((n, t) for n, t in stored.items() if n.endswith(".weight") and t.dtype in (torch.uint8, torch.int8))
    values = ((n, decoded(n, t).to(torch.bfloat16).contiguous()) for n, t in encoded)
    _write(out, {n: v.view(torch.uint8).numpy().tobytes() for n, v in values})


def names_of_mlx() -> Iterator[str]:
    """Yield how the tables differ from mlx-lm's classes in names and shapes."""
    from mlx.utils import tree_flatten
    from mlx_lm.utils import MODEL_REMAPPING

    types = {architecture: kind for kind, architecture in reversed([*MODEL_TYPES.items()])}
    for architecture in NAMES:
        kind = types[architecture]
        config = {**ANY, "architectures": [architecture], "model_type": kind}
        family = find_family(config)
        config["tie_word_embeddings"] = family.schema(family.describe({**config, "tie_word_embeddings": None})).tied
        module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
        theirs = {
            n: tuple(t.shape) for n, t in tree_flatten(module.Model(module.ModelArgs.from_dict(config)).parameters())
        }
        preset = Preset(architecture, config, {}, 1, family=named_by_mlx(family, architecture))
        ours = {e.name: e.signature.shape for e in inventory(preset, config)}
        if config["tie_word_embeddings"]:
            theirs.pop("lm_head.weight", None)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                yield f"{architecture}: {name}: {ours.get(name)} here, {theirs.get(name)} in mlx-lm"


def main(out: Path) -> None:
    """Write all checkpoints, then compare the names."""
    write_mlx(out / "mlx-mixed", LLAMA, _mixed, 64, "affine")
    write_mlx(out / "mlx-moe", QWEN3_MOE, _router, 64, "affine")
    write_mlx(out / "mlx-mxfp4", LLAMA, None, 32, "mxfp4")
    write_mlx(out / "mlx-mxfp8", LLAMA, None, 32, "mxfp8", bits=8)
    write_mlx(out / "mlx-nvfp4", LLAMA, None, 16, "nvfp4")
    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    long = {**LLAMA, "intermediate_size": 384}  # more than one nested block
    nested = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    write_bitsandbytes(out / "bitsandbytes-nf4", long, {**four, **nested})
    write_bitsandbytes(out / "bitsandbytes-fp4", LLAMA, {**four, "bnb_4bit_quant_type": "fp4"})
    write_bitsandbytes(out / "bitsandbytes-int8", LLAMA, {"load_in_8bit": True})
    print("\n".join(names_of_mlx()) or f"{len(NAMES)} architectures have mlx-lm's names and shapes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
