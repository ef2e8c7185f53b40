"""Inside vLLM: the load format ``loadmaster``.

    vllm serve MODEL --load-format loadmaster

vLLM builds the model of this rank. Its parameters are written directly by a plan (`direct`), or by the model's own
``load_weights``: `needs` chooses the stored tensors that the rank's model needs, and `stream` reads them in file order with a
fixed budget. `unwritten` finds the bytes of parameters that were not written.

Before vLLM starts: `installed` finds it, `cpu` knows what it cannot run on a CPU, `carried` reads its options, and `handover`
replaces this process with its server.
"""

from __future__ import annotations

from typing import Final

LOAD_FORMAT: Final = "loadmaster"


def register() -> None:
    """Register the load format with vLLM.

    vLLM calls this in each of its processes, by the entry point in the group ``vllm.general_plugins``, perhaps twice.
    """
    from vllm.model_executor import model_loader

    from loadmaster.integrations.vllm.loader import Loader

    # vLLM warns about a format that is registered already, and has no public list of the registered ones
    known = getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if known.get(LOAD_FORMAT) is not Loader:
        model_loader.register_model_loader(LOAD_FORMAT)(Loader)
