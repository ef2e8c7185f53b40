"""Inside vLLM: the load format ``loadmaster``.

    vllm serve MODEL --load-format loadmaster

vLLM builds the model of this rank and writes its parameters with its own ``load_weights``; what is offered to that, and what
is said of the result, is decided here. `needs` says which stored tensors this rank's model needs, `stream` reads them in
file order with a fixed budget, and `proof` says which bytes of which parameter were not written.
"""

from __future__ import annotations

from typing import Final

LOAD_FORMAT: Final = "loadmaster"


def register() -> None:
    """Make vLLM know the load format.

    vLLM calls it in each of its processes, by the entry point in the group ``vllm.general_plugins``, and may call it again.
    """
    from vllm.model_executor import model_loader

    from loadmaster.integrations.vllm.loader import Loader

    # vLLM warns of a format that it already has, and tells nowhere in public which those are
    known = getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if known.get(LOAD_FORMAT) is not Loader:
        model_loader.register_model_loader(LOAD_FORMAT)(Loader)
