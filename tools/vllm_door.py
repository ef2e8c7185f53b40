"""What the plug-in, the audit and its tests use of vLLM, by name; and whether a version of vLLM has it.

    python -m tools.vllm_door FOLDER      # of the package: …/site-packages/vllm

vLLM documents few of these names, so any version may move one. The check reads vLLM's source and imports nothing, so it needs
neither vLLM's requirements nor a GPU. What a name means is tested by `tests/integrations/vllm`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

VERSIONS: Final = ("0.32", "0.33")
"""The versions of vLLM that have all of `DOOR`."""

_FUSED_MOE: Final = "vllm.model_executor.layers.fused_moe"
_LOADER: Final = "vllm.model_executor.model_loader"
_PARALLEL: Final = (
    *("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size", "data_parallel_rank"),
    *("enable_expert_parallel", "expert_placement_strategy", "enable_eplb", "eplb_config"),
    *("prefill_context_parallel_size", "decode_context_parallel_size"),
)
_MODEL: Final = (
    *("model", "revision", "runner_type", "dtype", "quantization", "hf_config", "hf_text_config"),
    *("hf_config_path", "hf_overrides", "config_format"),
)

DOOR: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm.config.load:LoadConfig": ("model_loader_extra_config", "download_dir"),
    "vllm.config.model:ModelConfig": _MODEL,
    "vllm.config.offload:OffloadConfig": ("uva", "prefetch"),
    "vllm.config.offload:PrefetchOffloadConfig": ("offload_group_size",),
    "vllm.config.offload:UVAOffloadConfig": ("cpu_offload_gb",),
    "vllm.config.parallel:EPLBConfig": ("num_redundant_experts",),
    "vllm.config.parallel:ParallelConfig": _PARALLEL,
    "vllm.config.vllm": ("set_current_vllm_config",),
    "vllm.config.vllm:VllmConfig": (
        *("model_config", "parallel_config", "offload_config", "lora_config"),
        *("load_config", "speculative_config"),
    ),
    "vllm.distributed.parallel_state": (
        *("get_pp_group", "get_tensor_model_parallel_rank", "get_tensor_model_parallel_world_size"),
        *("init_distributed_environment", "initialize_model_parallel", "_PP", "_TP", "_EP"),
    ),
    "vllm.distributed.utils": ("get_pp_indices",),
    "vllm.engine.arg_utils:EngineArgs": ("create_engine_config",),
    "vllm.logger": ("init_logger",),
    f"{_FUSED_MOE}.config:FusedMoEConfig": (
        *("num_experts", "num_logical_experts", "moe_parallel_config", "has_bias"),
        *("hidden_dim", "hidden_dim_unpadded"),
        *("intermediate_size_per_partition", "intermediate_size_per_partition_unpadded"),
    ),
    f"{_FUSED_MOE}.config:FusedMoEParallelConfig": ("tp_rank", "tp_size", "enable_eplb"),
    f"{_FUSED_MOE}.expert_map_manager:ExpertMapManager": ("expert_map", "num_fused_shared_experts"),
    f"{_FUSED_MOE}.routed_experts:RoutedExperts": (
        *("expert_map_manager", "moe_config"),
        *("ckpt_gate_proj_name", "ckpt_up_proj_name", "ckpt_down_proj_name"),
    ),
    "vllm.model_executor.layers.quantization": ("QUANTIZATION_METHODS", "get_quantization_config"),
    "vllm.model_executor.layers.quantization.kv_cache": ("BaseKVCacheMethod",),
    "vllm.model_executor.layers.vocab_parallel_embedding": ("ParallelLMHead", "VocabParallelEmbedding"),
    _LOADER: ("register_model_loader", "get_model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
    f"{_LOADER}.base_loader:BaseModelLoader": ("create_model", "load_model", "load_weights", "download_model"),
    f"{_LOADER}.default_loader:DefaultModelLoader": ("get_all_weights", "load_weights", "enable_weights_track"),
    f"{_LOADER}.utils": ("get_model_cls", "initialize_model", "process_weights_after_loading"),
    f"{_LOADER}.weight_utils": ("maybe_download_from_modelscope",),
    "vllm.model_executor.models.registry": ("_run_in_subprocess",),
    "vllm.model_executor.models.utils": (*("PPMissingLayer", "StageMissingLayer", "_model_to_pp_missing_layer_names"),),
    "vllm.model_executor.models.deepseek_v2": ("SparseAttnIndexer",),
    "vllm.platforms": ("current_platform",),
    "vllm.triton_utils": ("HAS_TRITON", "triton"),
    "vllm.v1.attention.backends.mla.prefill.base:MLAPrefillBackend": ("validate_configuration",),
    "vllm.v1.worker.workspace": ("init_workspace_manager",),
    "vllm.utils.torch_utils": ("set_default_torch_dtype",),
}
"""Module, or module and class → the names in it."""


def missing(folder: Path) -> Iterator[str]:
    """Yield each name of `DOOR` that the vLLM in ``folder`` does not have, as ``module:Class.name``."""
    for place, names in DOOR.items():
        module, _, owner = place.partition(":")
        tree = _parsed(folder, module)
        body = tree.body if tree is not None and not owner else _body_of(tree, owner)
        if body is None:
            yield place
            continue
        defined = set(_names(body, within_class=bool(owner)))
        yield from (f"{place}.{name}" for name in names if name not in defined)


def _parsed(folder: Path, module: str) -> ast.Module | None:
    base = folder.joinpath(*module.split(".")[1:])
    file = next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
    return None if file is None else ast.parse(file.read_text(encoding="utf-8"))


def _body_of(tree: ast.Module | None, owner: str) -> list[ast.stmt] | None:
    classes = (s for s in ast.walk(tree) if isinstance(s, ast.ClassDef)) if tree is not None else ()
    return next((s.body for s in classes if s.name == owner), None)


def _names(body: list[ast.stmt], *, within_class: bool) -> Iterator[str]:
    """Yield what a module or class defines: also names under a condition, imported ones, and attributes of ``self``."""
    for node in (inner for statement in body for inner in ast.walk(statement)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.alias():
                yield node.asname or node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()) if within_class:
                yield node.attr


def main() -> int:
    """Print what is missing."""
    lacking = list(missing(Path(sys.argv[1])))
    print("\n".join(lacking) if lacking else f"{sum(map(len, DOOR.values()))} names: all there")
    return bool(lacking)


if __name__ == "__main__":
    sys.exit(main())
