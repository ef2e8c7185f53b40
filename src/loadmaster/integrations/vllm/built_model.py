"""The outline of a model that vLLM built on this rank, read from its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from loadmaster.integrations.vllm.needs import Outline


def outline_of(model: torch.nn.Module, model_config: Any) -> Outline:
    """Return the properties of a built model that decide which tensors it needs.

    The numbers of a list of layers are the checkpoint's if the list is as long as the config has layers; the numbers of a
    draft model's layers are if they continue where the config's layers end. Layers that the config does not count belong
    to no other model. Experts are distinguished only if each is on one rank and no shared experts are fused with them.
    """
    from vllm.distributed import get_pp_group

    config = model_config.hf_text_config
    is_draft = model_config.runner_type == "draft"
    tied = bool(
        getattr(config, "tie_word_embeddings", False) or getattr(model_config.hf_config, "tie_word_embeddings", False)
    )
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return Outline(
        placeholders=frozenset(_placeholders(model)),
        elsewhere=dict(_elsewhere(model, config, is_draft)),
        experts=dict(_experts(model)),
        copies_embedding=tied and get_pp_group().is_last_rank,
        rename=_same if mapper is None else mapper.map_name,
        is_unused=_unused(model),
    )


def _same(name: str) -> str:
    return name


def _unused(model: torch.nn.Module) -> Callable[[str], bool]:
    is_unused = getattr(model, "is_unused_checkpoint_weight", None)
    return is_unused if callable(is_unused) else lambda name: False


def _placeholders(model: torch.nn.Module) -> Iterator[str]:
    from vllm.model_executor.models.utils import PPMissingLayer, StageMissingLayer

    for name, module in model.named_modules():
        if isinstance(module, PPMissingLayer | StageMissingLayer):
            yield name


def _elsewhere(model: torch.nn.Module, config: Any, is_draft: bool) -> Iterator[tuple[str, frozenset[int]]]:
    num_layers = int(getattr(config, "num_hidden_layers", 0))
    drafted = range(num_layers, num_layers + int(getattr(config, "num_nextn_predict_layers", None) or 0))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not is_draft and len(module) == num_layers:
            yield name, frozenset(drafted)
        elif isinstance(module, torch.nn.ModuleDict) and len(module) and all(k.isdecimal() for k in module):
            numbers = frozenset(int(k) for k in module)
            if 0 < num_layers <= min(numbers):
                yield name, frozenset(range(drafted.stop)) - numbers


def _experts(model: torch.nn.Module) -> Iterator[tuple[str, frozenset[int]]]:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    for name, module in model.named_modules():
        if not isinstance(module, RoutedExperts):
            continue
        manager, moe = module.expert_map_manager, module.moe_config
        on_one_rank = moe.num_experts == moe.num_logical_experts and not moe.moe_parallel_config.enable_eplb
        if manager.expert_map is not None and on_one_rank and not manager.num_fused_shared_experts:
            yield name.removesuffix(".routed_experts"), frozenset(held_experts(module))


def held_experts(module: Any) -> tuple[int, ...]:
    """Return the numbers of the experts that one of vLLM's modules of experts holds, in the order of its slots.

    Its manager maps an expert's number to its slot on this rank, or to -1; it has no map if the rank holds all experts. Under
    EPLB copies are numbered after the experts, and are at first those of the first experts.
    """
    num_experts, num_logical = int(module.moe_config.num_experts), int(module.moe_config.num_logical_experts)
    expert_map = module.expert_map_manager.expert_map
    if expert_map is None:
        return tuple(i % num_logical for i in range(num_experts))
    slots: list[int] = expert_map[:num_experts].tolist()  # fused shared experts follow
    held = sorted((i for i, slot in enumerate(slots) if slot >= 0), key=slots.__getitem__)
    return tuple(i % num_logical for i in held)


def expert_sizes(model: torch.nn.Module) -> tuple[int, int] | None:
    """Return the hidden and inner elements of each expert, where a kernel wants more than this rank has of the model.

    None: no kernel wants more, or layers differ.
    """
    configs = [m.moe_config for _, m in _modules_of_experts(model)]
    sizes = {(int(c.hidden_dim), int(c.intermediate_size_per_partition)) for c in configs}
    return sizes.pop() if any(map(_has_room, configs)) and len(sizes) == 1 else None


def params_with_room(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of parameters that are larger than what is stored for them, because a kernel wants more.

    These are experts, and the matrix in Qwen4Exp's mixers that is filled up to 16 rows (``GatedResidual.pad_size``).
    """
    modules = [(name, m) for name, m in _modules_of_experts(model) if _has_room(m.moe_config)]
    experts = (f"{name}.{param}" for name, m in modules for param, _ in m.named_parameters(recurse=False))
    mixers = (name for name, m in model.named_modules() if hasattr(m, _MIXED) and getattr(m, "pad_size", False))
    return frozenset((*experts, *(f"{name}.{_MIXED}.weight" for name in mixers)))


_MIXED: Final = "input_mix_weight_down_block_inject"


def _modules_of_experts(model: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if getattr(m, "expert_map_manager", None) is not None]


def _has_room(moe: Any) -> bool:
    """Whether vLLM rounded sizes up before it made parameters: for its kernel (``maybe_roundup_sizes``), or in Kimi's model."""
    return bool(
        moe.hidden_dim != moe.hidden_dim_unpadded
        or moe.intermediate_size_per_partition != moe.intermediate_size_per_partition_unpadded
    )


def may_stay(model: torch.nn.Module, model_config: Any) -> Callable[[str], bool]:
    """Return a predicate on names: which parameters need not be written.

    These are the scales of a quantised cache, which have defaults, and the parameters of a draft model that vLLM replaces
    with those of the main model: always the head, and the embedding if both are on one stage. GPTQ makes biases of zeros for
    experts of models that have none, because some exports store them, and drops those that nobody wrote.
    """
    from vllm.distributed import get_pp_group
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    is_draft = model_config.runner_type == "draft"
    names: set[str] = set()
    for name, module in model.named_modules():
        is_head = isinstance(module, ParallelLMHead)
        is_embedding = isinstance(module, VocabParallelEmbedding) and not is_head
        replaced = is_draft and (is_head or (is_embedding and get_pp_group().world_size == 1))
        if replaced or isinstance(getattr(module, "quant_method", None), BaseKVCacheMethod):
            names.update(f"{name}.{param}" for param, _ in module.named_parameters())
        if isinstance(module, RoutedExperts) and not module.moe_config.has_bias:
            names.update((f"{name}.w13_bias", f"{name}.w2_bias"))
    return names.__contains__
