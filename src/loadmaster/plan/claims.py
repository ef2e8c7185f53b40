"""What the config claims about a checkpoint's number formats. The headers decide; claims are checked against them.

Each quantisation method writes its own ``quantization_config``; this module turns each into the formats that may
occur (`loadmaster.formats`) and the modules listed as unquantised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadmaster.architectures.config import Config
from loadmaster.architectures.mlx import key_of_mlx
from loadmaster.errors import ConfigError, UnsupportedError
from loadmaster.formats import (
    BITSANDBYTES_INT8,
    FP4,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TENSOR_OTHERS,
    INT8_CHANNEL,
    MLX_BITS,
    MLX_FLOATS,
    MLX_GROUPS,
    MXFP4,
    MXFP4_LINEAR,
    MXFP4_LINEAR_INV,
    MXFP4_PACKED,
    NVFP4,
    NVFP4_MODELOPT,
    Format,
    awq,
    bitsandbytes,
    fp8_block,
    gptq,
    int4_packed,
    mlx,
    mxfp8,
)
from loadmaster.limits import PATTERN_CHARACTERS, PATTERNS, UNQUANTISED
from loadmaster.plan.patterns import Pattern, read_pattern

KV_CACHE_SCALES = (
    (r".*\.(self_attn|attn)\.([qkv]_proj\.)?([qkv]|kv|prob)_(scale|zero_point)", "scales of a quantised KV cache"),
    (r".*\.[kv]_proj\.output_scale", "scales of a quantised KV cache"),
)
"""Stored next to weights by several methods, for a cache that is not quantised here."""


@dataclass(frozen=True, slots=True)
class Claims:
    """The model's dtype, the quantised formats that may occur, and the modules that it lists as unquantised.

    Modules are given by name, by prefix (``model.layers.0.*``), or by another pattern. ``experts`` is the format that the config
    gives to routed experts, if it is another than that of the rest. ``modules`` gives the format of single modules (None: not
    quantised), where the config names those that differ and leaves open which of the others are quantised; the first of
    ``formats`` is that of the others. Where the config does not do so, it is None.
    """

    model_dtype: str
    formats: tuple[Format, ...] = ()
    ignored: frozenset[str] = frozenset()
    ignored_prefixes: frozenset[str] = frozenset()
    ignored_patterns: tuple[Pattern, ...] = ()
    experts: Format | None = None
    modules: Mapping[str, Format | None] | None = None

    def contradicts(self, tensor: str, format_: Format | None, *, rarely: bool) -> str | None:
        """Return what the config says of a stored weight in ``format_`` (None: plain), if it says something else.

        ``rarely``: usually such a weight is not quantised.
        """
        if self.modules is not None:
            said = self.modules.get(tensor.rpartition(".")[0], format_ and self.formats[0])
            return None if said == format_ else _called(said)
        if not self.formats or (format_ is None and rarely) or (format_ is not None) != self.ignores(tensor):
            return None
        return "quantised" if format_ is None else "unquantised"

    def ignores(self, tensor: str) -> bool:
        """Return whether the config says that the module of this stored weight is not quantised.

        A name means that module and all below it, at any depth (``lm_head``, ``self_attn``, ``layers.3.mlp.gate``).
        """
        module = tensor.rpartition(".")[0]
        if not self.ignored and not self.ignored_prefixes and not self.ignored_patterns:
            return False
        if self.ignored_prefixes and any(module[:i] in self.ignored_prefixes for i in range(len(module) + 1)):
            return True
        parts = module.split(".")
        count = len(parts)
        runs = (".".join(parts[i:j]) for i in range(count) for j in range(i + 1, count + 1))
        return any(r in self.ignored for r in runs) or any(p.matches(module) for p in self.ignored_patterns)


def _called(format_: Format | None) -> str:
    return "unquantised" if format_ is None else f"{format_.name} in groups of {format_.block[-1]}"


def read_claims(config: Config, default_dtype: str) -> Claims:
    """Read ``dtype`` and ``quantization_config``.

    Raises:
        ConfigError: the quantization_config is malformed.
        UnsupportedError: it names a method that is not supported.
    """
    dtype = config.dtype or default_dtype
    if (key := key_of_mlx(config.values)) is not None:
        return _mlx(dtype, config.values[key], f"config.json: {key}")
    quantization = config.values.get("quantization_config")
    if quantization is None:
        return Claims(dtype)
    if not isinstance(quantization, Mapping):
        raise ConfigError("config.json: quantization_config is not an object")
    method = quantization.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise UnsupportedError(
            f"config.json: quantization_config.quant_method {method!r} is not supported",
            hint=f"supported: {', '.join(sorted(METHODS))}",
        )
    formats, experts = METHODS[method](quantization), None
    expert_dtype = quantization.get("expert_dtype", config.values.get("expert_dtype"))
    if method == "fp8" and expert_dtype is not None:
        formats, experts = _deepseek_v4(quantization, expert_dtype)
    if method == "fp8" and (of_experts := _of_experts(quantization)):
        formats, experts = (*formats, *of_experts), of_experts[0]
    ignored = _ignored(quantization)
    names = frozenset(n for n in ignored if not n.startswith("re:") and "*" not in n)
    prefixes = frozenset(n[:-1] for n in ignored if _is_prefix(n))
    return Claims(dtype, formats, names, prefixes, tuple(read_pattern(n) for n in ignored if _is_pattern(n)), experts)


def _mlx(dtype: str, q: Mapping[str, Any], where: str) -> Claims:
    """Read what MLX wrote: the settings of most modules, and those of single modules by name.

    Raises:
        ConfigError: a setting is impossible.
        UnsupportedError: it is not supported.
    """
    usual = _mlx_format(q, where)
    if len(q) > UNQUANTISED.value:
        raise ConfigError(f"{where} has {UNQUANTISED.exceeded(len(q))}", hint=UNQUANTISED.hint)
    modules: dict[str, Format | None] = {}
    for name, value in q.items():
        if isinstance(value, Mapping):
            modules[name] = _mlx_format(value, f"{where}: {name}")
        elif value is False:
            modules[name] = None
    formats = dict.fromkeys((usual, *(f for f in modules.values() if f is not None)))
    return Claims(dtype, tuple(formats), modules=modules)


def _mlx_format(q: Mapping[str, Any], where: str) -> Format:
    """Return the format of one module's settings; what they leave out is as in ``mlx.nn.Linear.to_quantized``."""
    mode, bits, group = q.get("mode", "affine"), q.get("bits", 4), q.get("group_size", 64)
    if type(mode) is str and type(bits) is type(group) is int:
        if mode == "affine" and bits in MLX_BITS and group in MLX_GROUPS:
            return mlx(bits, group)
        if (found := MLX_FLOATS.get((mode, bits, group))) is not None:
            return found
    raise UnsupportedError(
        f"{where}: MLX's mode {mode!r} with {bits!r} bits in groups of {group!r} is not supported",
        hint=f"supported: affine with {', '.join(map(str, MLX_BITS))} bits in groups of {', '.join(map(str, MLX_GROUPS))}, "
        + ", ".join(f"{m} with {b} bits in groups of {g}" for m, b, g in MLX_FLOATS),
    )


def _bitsandbytes(q: Mapping[str, Any]) -> tuple[Format, ...]:
    """Return the formats of ``BitsAndBytesConfig`` in transformers. Whether factors are nested the headers say."""
    if q.get("load_in_8bit", q.get("_load_in_8bit")):
        return (BITSANDBYTES_INT8,)
    kind, storage = q.get("bnb_4bit_quant_type", "fp4"), q.get("bnb_4bit_quant_storage") or "uint8"
    if not q.get("load_in_4bit", q.get("_load_in_4bit")) or kind not in ("nf4", "fp4") or storage != "uint8":
        raise UnsupportedError(
            f"config.json: quantization_config: bitsandbytes with bnb_4bit_quant_type {kind!r}, stored as {storage!r}, is not "
            "supported",
            hint="supported: load_in_8bit, and load_in_4bit with nf4 or fp4, stored as uint8",
        )
    nested = q.get("bnb_4bit_use_double_quant") is True
    return bitsandbytes(kind, nested=nested), bitsandbytes(kind, nested=not nested)


def _is_prefix(name: str) -> bool:
    return name.find("*") == len(name) - 1 and name != "" and not name.startswith("re:")


def _is_pattern(name: str) -> bool:
    return name.startswith("re:") or ("*" in name and not _is_prefix(name))


def _ignored(quantization: Mapping[str, Any]) -> list[str]:
    keys = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers", "llm_int8_skip_modules")
    value: object = next((quantization[k] for k in keys if quantization.get(k)), [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError("config.json: quantization_config's list of unquantised modules is not a list of strings")
    written = list(dict.fromkeys(filter(_is_pattern, value)))
    longest = max(written, key=len, default="")
    for limit, count in ((UNQUANTISED, len(value)), (PATTERNS, len(written)), (PATTERN_CHARACTERS, len(longest))):
        if count > limit.value:
            message = f"config.json: quantization_config's list of unquantised modules has {limit.exceeded(count)}"
            raise ConfigError(message, hint=limit.hint)
    return list(dict.fromkeys(value))


def _fp8(q: Mapping[str, Any]) -> tuple[Format, ...]:
    if q.get("fmt", "e4m3") != "e4m3":
        raise UnsupportedError(f"config.json: quantization_config.fmt {q['fmt']!r} is not supported")
    if q.get("weight_block_size") is None:
        return (FP8_TENSOR, FP8_CHANNEL, *FP8_TENSOR_OTHERS)
    block = _block(q["weight_block_size"], "weight_block_size")
    return (fp8_block(block), *(_MXFP8 if block == (1, 32) else ()))


def _deepseek_v4(q: Mapping[str, Any], expert_dtype: object) -> tuple[tuple[Format, ...], Format | None]:
    """Return the formats of DeepSeek-V4, whose scales are called ``scale``, and that of its experts.

    Beside FP4 experts all scales are powers of two (``vllm/models/deepseek_v4/quant_config.py``).
    """
    if expert_dtype not in ("fp4", "fp8"):
        raise UnsupportedError(
            f"config.json: expert_dtype {expert_dtype!r} is not supported", hint="supported: fp4, fp8"
        )
    block = _block(q.get("weight_block_size"), "weight_block_size")
    dense = fp8_block(block, suffix="scale", powers=expert_dtype == "fp4")
    return ((dense, FP4), FP4) if expert_dtype == "fp4" else ((dense,), None)


def _of_experts(q: Mapping[str, Any]) -> tuple[Format, ...]:
    """Return the formats of experts that a key names beside the method of the rest, as in MiMo-V2.6 and Ling-3; else none.

    Sources: ``fp8.py`` in ``vllm/model_executor/layers/quantization``; ``bailing_moe_v3.py`` in ``vllm/model_executor/models``.
    """
    if (routed := q.get("routed_experts_quant_method")) is not None:
        if routed != "mxfp4":
            raise UnsupportedError(
                f"config.json: quantization_config.routed_experts_quant_method {routed!r} is not supported",
                hint="supported: mxfp4",
            )
        return (MXFP4_LINEAR_INV, MXFP4_LINEAR)
    if (store_dtype := q.get("store_dtype")) is None:
        return ()
    if store_dtype != "mxfp4" or q.get("mxfp4_block_size", 32) != 32:
        raise UnsupportedError(
            f"config.json: quantization_config: store_dtype {store_dtype!r} in blocks of {q.get('mxfp4_block_size', 32)!r} is "
            "not supported",
            hint="supported: mxfp4 in blocks of 32",
        )
    return (MXFP4_LINEAR,)


def _block(value: object, key: str) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(b) is int and 0 < b < 2**31 for b in value)):
        raise ConfigError(f"config.json: quantization_config.{key} must be two positive integers")
    return value[0], value[1]


def _bits(q: Mapping[str, Any], key: str = "bits") -> int:
    bits = q.get(key)
    if bits not in (4, 8):
        raise UnsupportedError(f"config.json: quantization_config: {key} is {bits!r}, only 4 and 8 are supported")
    return int(bits)


def _group(q: Mapping[str, Any]) -> int | None:
    """Return the group size; None means one group per row."""
    size = q.get("group_size", q.get("q_group_size"))
    if size is None or size == -1:
        return None
    if type(size) is not int or not 0 < size < 2**31:
        raise ConfigError(f"config.json: quantization_config.group_size is {size!r}, expected a positive integer or -1")
    return size


def _awq(q: Mapping[str, Any]) -> tuple[Format, ...]:
    version = str(q.get("version", "gemm")).lower()
    if version != "gemm":
        raise UnsupportedError(
            f"config.json: quantization_config.version {version!r} is not supported",
            hint="supported: gemm",
        )
    if _bits(q, "bits" if "bits" in q else "w_bit") != 4:
        raise UnsupportedError("config.json: quantization_config: AWQ is supported only with 4 bits")
    return (awq(_group(q)),)


def _gptq(q: Mapping[str, Any]) -> tuple[Format, ...]:
    if q.get("checkpoint_format", "gptq") != "gptq":
        raise UnsupportedError(
            f"config.json: quantization_config.checkpoint_format {q['checkpoint_format']!r} is not supported",
            hint="supported: gptq",
        )
    return (gptq(_group(q), bits=_bits(q), act_order=bool(q.get("desc_act", False))),)


def _modelopt(q: Mapping[str, Any]) -> tuple[Format, ...]:
    algorithm = str(q.get("quant_algo", "")).upper()
    known = {
        "NVFP4": (NVFP4_MODELOPT,),
        "FP8": (FP8_TENSOR,),
        "MXFP8": (mxfp8(),),
        "MIXED_PRECISION": (NVFP4_MODELOPT, FP8_TENSOR, mxfp8()),
    }
    if algorithm not in known:
        raise UnsupportedError(
            f"config.json or hf_quant_config.json: ModelOpt's quant_algo {q.get('quant_algo')!r} is not supported",
            hint=f"supported: {', '.join(known)}",
        )
    return known[algorithm]


def _compressed_tensors(q: Mapping[str, Any]) -> tuple[Format, ...]:
    groups = q.get("config_groups")
    if not isinstance(groups, Mapping) or not all(
        isinstance(g, Mapping) and isinstance(g.get("weights"), Mapping) for g in groups.values()
    ):
        raise ConfigError("config.json: quantization_config.config_groups must give the weights of each group")
    by_group = [_compressed(str(g.get("format") or q.get("format")), g["weights"]) for g in groups.values()]
    return tuple(dict.fromkeys(f for formats in by_group for f in formats))


def _compressed(kind: str, weights: Mapping[str, Any]) -> tuple[Format, ...]:
    type_, strategy = weights.get("type"), weights.get("strategy")
    if kind == "nvfp4-pack-quantized":
        return (NVFP4,)
    if kind == "mxfp4-pack-quantized" and weights.get("num_bits") == 4 and _group(weights) == 32:
        return (MXFP4_PACKED,)
    if kind == "mxfp8-quantized" and weights.get("num_bits") == 8 and _group(weights) == 32:
        return (mxfp8(),)
    if kind == "pack-quantized" and type_ == "int" and strategy in ("group", "channel"):
        group = _group(weights) if strategy == "group" else None
        return (
            int4_packed(
                group,
                zero_points=not weights.get("symmetric", True),
                bits=_bits(weights, "num_bits"),
                act_order=weights.get("actorder") in ("group", "dynamic", True),
            ),
        )
    if kind in ("float-quantized", "naive-quantized") and type_ == "float" and weights.get("num_bits") == 8:
        if strategy == "block":
            structure = _block(weights.get("block_structure"), "config_groups: block_structure")
            return (fp8_block(structure, suffix="weight_scale", input_scale=True),)
        if strategy in ("tensor", "channel"):
            return (FP8_TENSOR if strategy == "tensor" else FP8_CHANNEL,)
    if kind in ("int-quantized", "naive-quantized") and type_ == "int" and weights.get("num_bits") == 8:
        return (INT8_CHANNEL,)
    raise UnsupportedError(
        f"config.json: quantization_config: format {kind!r} with {weights.get('num_bits')}-bit {type_} weights by "
        f"{strategy} is not supported",
        hint="supported of compressed-tensors: float-quantized (FP8), pack-quantized (INT4, INT8), int-quantized, "
        "nvfp4-pack-quantized, mxfp4-pack-quantized and mxfp8-quantized in groups of 32",
    )


_MXFP8 = (mxfp8(suffix="weight_scale_inv"), mxfp8())

METHODS: dict[str, Callable[[Mapping[str, Any]], tuple[Format, ...]]] = {
    "fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "awq": _awq,
    "gptq": _gptq,
    "mxfp4": lambda _: (MXFP4,),
    "mxfp8": lambda _: _MXFP8,
    "bitsandbytes": _bitsandbytes,
}
"""``quant_method`` -> the formats that it may store, given the rest of the quantization_config."""
