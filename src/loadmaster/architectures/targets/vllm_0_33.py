"""vLLM 0.33's models, as a difference to 0.32's: those that 0.32 describes have the same parameters.

Sources: the files named in `vllm_0_32` and in the tables that are joined here, of 0.33.0.
"""

from __future__ import annotations

from typing import Final

from loadmaster.architectures.targets import (
    vllm_0_32,
    vllm_0_33_around,
    vllm_0_33_deepseek,
    vllm_0_33_dense,
    vllm_0_33_experts,
    vllm_0_33_experts_latent,
    vllm_0_33_experts_of_transformers,
    vllm_0_33_inkling,
    vllm_0_33_latent,
    vllm_0_33_ling,
    vllm_0_33_mixed,
    vllm_0_33_older,
    vllm_0_33_recurrent,
    vllm_0_33_sparse,
)
from loadmaster.architectures.targets.vllm import Version

VERSION: Final = Version(
    "vllm-0.33",
    {
        **vllm_0_32.VERSION.described,
        **vllm_0_33_deepseek.DESCRIBED,
        **vllm_0_33_dense.DESCRIBED,
        **vllm_0_33_experts.DESCRIBED,
        **vllm_0_33_experts_latent.DESCRIBED,
        **vllm_0_33_experts_of_transformers.DESCRIBED,
        **vllm_0_33_inkling.DESCRIBED,
        **vllm_0_33_latent.DESCRIBED,
        **vllm_0_33_ling.DESCRIBED,
        **vllm_0_33_mixed.DESCRIBED,
        **vllm_0_33_older.DESCRIBED,
        **vllm_0_33_recurrent.DESCRIBED,
        **vllm_0_33_sparse.DESCRIBED,
    },
    around=vllm_0_33_around.AROUND,
)
