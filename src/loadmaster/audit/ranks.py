"""vLLM's loaders in one process, on the CPU, as any rank of any layout: models are built and loaded, never run.

Groups of one process pretend to be larger. Checks for what only running a model needs are overridden: instruction sets of a
CPU, or the GPU that vLLM for CUDA expects (`pretended`). For the audit and for tests; serving a model uses none of this.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadmaster.audit.pretended import is_pretended, on_the_host, pretend

if TYPE_CHECKING:
    import torch

QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_KIMI_K3_GEMM_AR": "0",  # a kernel of several GPUs, which needs more packages
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # that of a draft, likewise
}
"""Environment variables for vLLM, unless they are set already."""


@dataclass(frozen=True)
class Rank:
    """A rank of a layout: (rank, size) in its pipeline and in its tensor-parallel group; ``ep``: experts are spread over it.

    >>> str(Rank(pp=(1, 2), tp=(0, 2), ep=True)), str(Rank())
    ('pp1of2-tp0of2-ep', 'pp0of1-tp0of1')
    """

    pp: tuple[int, int] = (0, 1)
    tp: tuple[int, int] = (0, 1)
    ep: bool = False

    def __str__(self) -> str:
        return f"pp{self.pp[0]}of{self.pp[1]}-tp{self.tp[0]}of{self.tp[1]}" + ("-ep" if self.ep else "")


class Group:
    """A group of one process that pretends to be rank ``rank`` of ``size``."""

    def __init__(self, real: Any, rank: int, size: int) -> None:
        self._real = real
        self.rank = self.rank_in_group = rank
        self.world_size, self.ranks = size, list(range(size))
        self.first_rank, self.last_rank = 0, size - 1
        self.is_first_rank, self.is_last_rank = rank == 0, rank == size - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@dataclass
class Built:
    """A rank's model, its parameters, the loader that writes them, and the configs of both.

    Parameters without memory are those of towers that were left out (``language_model_only``).
    """

    model: Any
    loader: Any
    model_config: Any
    config: Any
    params: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.params = {n: p.data for n, p in self.model.named_parameters() if not p.is_meta}

    def holding(self, names: Container[str]) -> dict[str, torch.Tensor]:
        """Return the parameters, and those of ``names`` that are buffers: an engine holds some stored tensors so."""
        return {**{n: b for n, b in self.model.named_buffers() if n in names}, **self.params}

    def current(self) -> Any:
        """Return the context in which vLLM works on the model."""
        return _current(self.config, self.model_config)

    def process(self) -> None:
        """Let vLLM convert the weights to the form that it computes with."""
        import torch
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        with self.current():
            process_weights_after_loading(self.model, self.model_config, torch.device("cpu"))

    def write(self) -> None:
        """Let the loader write the parameters, up to vLLM's processing of weights."""
        with self.current():
            self.loader.load_weights(self.model, self.model_config)


def load(
    path: Path,
    rank: Rank = Rank(),  # a frozen value
    *,
    load_format: str = "loadmaster",
    draft: str | None = None,
    **engine: Any,
) -> Built:
    """Build a rank's model and load it, up to vLLM's processing of weights; arguments as of `build`."""
    built = build(path, rank, load_format=load_format, draft=draft, **engine)
    built.write()
    return built


def build(path: Path, rank: Rank, *, load_format: str, draft: str | None = None, **engine: Any) -> Built:
    """Build a rank's model. Unwritten memory has the pattern (`unwritten`), so it is the same in every run.

    ``draft`` is a method of speculation: its draft model is built instead. ``engine`` are more of vLLM's arguments.
    """
    pp, tp = _groups()
    import torch
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.models import utils

    from loadmaster.integrations.vllm import register
    from loadmaster.integrations.vllm.unwritten import patterned

    register()
    arguments = {
        "model": str(path),
        "dtype": "bfloat16",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 256,
        "enforce_eager": True,
        "load_format": load_format,
        "use_tqdm_on_load": False,
        "speculative_config": {"method": draft, "num_speculative_tokens": 1} if draft else None,
        **engine,
    }
    config = EngineArgs(**arguments).create_engine_config()
    parallel = config.parallel_config
    parallel.pipeline_parallel_size, parallel.tensor_parallel_size = rank.pp[1], rank.tp[1]
    parallel.enable_expert_parallel = rank.ep
    utils._model_to_pp_missing_layer_names.clear()  # a cache by id(model), which a later model may reuse
    parallel_state._PP, parallel_state._TP = Group(pp, *rank.pp), Group(tp, *rank.tp)
    parallel_state._ETP = parallel_state._TP  # of tables of n-grams
    parallel_state._EP = Group(tp, *(rank.tp if rank.ep else (0, 1)))
    model_config = config.speculative_config.draft_model_config if draft else config.model_config
    with _current(config, model_config):
        loader = get_model_loader(config.load_config)
        with torch.device("cpu"), patterned():
            model = loader.create_model(vllm_config=config, model_config=model_config)
    return Built(model, loader, model_config, config)


def _current(config: Any, model_config: Any) -> Any:
    """Return the context in which vLLM builds and loads."""
    from contextlib import ExitStack

    from vllm.config import set_current_vllm_config
    from vllm.utils.torch_utils import set_default_torch_dtype

    stack = ExitStack()
    if is_pretended():
        stack.enter_context(on_the_host())
    stack.enter_context(set_current_vllm_config(config))
    stack.enter_context(set_default_torch_dtype(model_config.dtype))
    return stack


@functools.cache
def _groups() -> Any:
    """Start the groups of this process once, and override checks for what only running a model needs."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda work: work()  # or another process imports vLLM, once for each class of models
    if is_pretended():
        pretend()
    else:
        _pretend_instructions()
    with set_current_vllm_config(VllmConfig()):
        port = 20000 + os.getpid() % 20000
        parallel_state.init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
    return parallel_state._PP, parallel_state._TP


def _pretend_instructions() -> None:
    """Let vLLM for CPUs build models that this CPU cannot run."""
    import torch
    from vllm.model_executor.kernels.linear.scaled_mm import cpu as kernels
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe
    from vllm.model_executor.models import deepseek_v2
    from vllm.platforms.cpu import CpuPlatform

    backend = CpuPlatform.get_attn_backend_cls.__func__

    def dense(cls: Any, /, selected_backend: Any, attn_selector_config: Any, **more: Any) -> Any:
        return backend(cls, selected_backend, attn_selector_config._replace(use_sparse=False), **more)

    CpuPlatform.get_attn_backend_cls = classmethod(dense)
    for name, kernel in vars(kernels).items():
        if name.startswith("CPUFp8"):
            kernel.is_supported = classmethod(lambda cls, *a, **k: (True, None))
    for name, experts in vars(cpu_moe).items():
        if name.startswith("CPUExpertsFp8"):
            experts._supports_current_device = staticmethod(lambda *a, **k: True)

    class Nothing(torch.nn.Module):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__()

    deepseek_v2.SparseAttnIndexer = Nothing
