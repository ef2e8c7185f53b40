"""How much an engine computes at a time, and how large its KV cache is. Names and meanings are vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadmaster.arguments import expect, expect_int
from loadmaster.errors import ConfigError, LoadError
from loadmaster.findings import gib
from loadmaster.workers.messages import Ready

MAX_NUM_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
"""The default by device. On a CPU a larger product is not faster, and other requests wait for it."""

CPU_CACHE_BYTES = 4 << 30
"""The default size of all KV caches on a CPU, unless one request needs more; as in vLLM."""

SHARE = {"cpu": 0.5, "cuda": 0.85}
"""The most of the memory that is free after loading which a KV cache takes by default."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """``max_num_seqs`` requests are computed at a time, in batches of at most ``max_num_batched_tokens`` tokens.

    ``kv_cache_memory_bytes`` is the size of the KV cache of each rank, rounded down to whole pages of ``block_size`` tokens.
    None: 4 GiB for all ranks together on a CPU, 85 % of the free memory on a GPU. ``enable_prefix_caching``: requests whose
    prompts begin alike compute the common beginning once. ``num_gpu_blocks_override``: the number of pages,
    whatever memory is free, on any device; they must hold at least one request.

    Raises:
        ArgumentError: a value has the wrong type or is out of range.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    block_size: int = 16
    enable_prefix_caching: bool = True
    num_gpu_blocks_override: int | None = None

    def __post_init__(self) -> None:
        expect_int("max_num_seqs", self.max_num_seqs, 1)
        for name in ("max_num_batched_tokens", "kv_cache_memory_bytes", "num_gpu_blocks_override"):
            if getattr(self, name) is not None:
                expect_int(name, getattr(self, name), 1)
        expect_int("block_size", self.block_size, 1)
        expect("enable_prefix_caching", self.enable_prefix_caching, bool, "True or False")

    def num_batched_tokens(self, device: str) -> int:
        """Return the budget of a batch, in tokens."""
        return self.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS[device]

    def num_pages(self, ready: Sequence[Ready], device: str, max_model_len: int) -> int:
        """Return the pages of the KV cache: as many as fit on every rank, and no more than all requests can use.

        Raises:
            ConfigError: one request of ``max_model_len`` tokens does not fit.
            LoadError: nor does it fit the memory that is free.
        """
        size = self.block_size
        page_bytes = max(1, *(r.token_bytes * size for r in ready))
        pages_per_request = -(-max_model_len // size)
        if self.num_gpu_blocks_override is not None:
            num_pages = self.num_gpu_blocks_override
            if num_pages < pages_per_request:
                raise ConfigError(
                    f"--num-gpu-blocks-override {num_pages}: a request may need {pages_per_request} pages of {size} tokens",
                    hint=f"pass at least {pages_per_request}, or --max-model-len {num_pages * size}",
                )
        elif self.kv_cache_memory_bytes is not None:
            num_pages = self.kv_cache_memory_bytes // page_bytes
            if num_pages < pages_per_request:
                raise ConfigError(
                    f"--kv-cache-memory-bytes {self.kv_cache_memory_bytes}: {num_pages * size:,} tokens fit, and a request may "
                    f"have {max_model_len:,}",
                    hint=f"pass at least {pages_per_request * page_bytes}, or --max-model-len {num_pages * size or size}",
                )
        else:
            on_cpu = device == "cpu"
            free = int(min(r.free_bytes for r in ready) * SHARE[device])
            free_pages = free // page_bytes
            if free_pages < pages_per_request:
                raise LoadError(
                    f"the KV cache of one request of {max_model_len:,} tokens takes "
                    f"{gib(pages_per_request * page_bytes)} on a rank, and {gib(free)} are free",
                    hint=f"pass --max-model-len {free_pages * size or size}, or use more ranks",
                )
            default = max(CPU_CACHE_BYTES // len(ready) // page_bytes, pages_per_request) if on_cpu else free_pages
            num_pages = min(default, free_pages)
        return min(num_pages, pages_per_request * self.max_num_seqs)
