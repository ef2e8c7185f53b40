"""vLLM's default loader: only the tensors that a rank needs something of, as load format ``loadmaster-filter``.

`register` adds the format; a plug-in of vLLM's group ``vllm.general_plugins`` calls it. The model's ``load_weights`` writes the
parameters, so this works where `loadmaster`'s own load format cannot: it only chooses what is read. vLLM's filter is made from
expert ids; it reads other stages' layers too, and steps aside where experts are copied.
"""

from __future__ import annotations

from typing import Final

LOAD_FORMAT: Final = "loadmaster-filter"


def register() -> None:
    """Add the load format to vLLM's registry. Needs vLLM 0.32."""
    from collections.abc import Iterator
    from dataclasses import replace
    from typing import Any

    import torch
    import vllm
    from safetensors import safe_open
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from loadmaster.architectures.targets import target_of_vllm
    from loadmaster.checkpoint import open_checkpoint
    from loadmaster.integrations.filter import needed_by_shard
    from loadmaster.integrations.vllm.direct import Unfit
    from loadmaster.integrations.vllm.loader import layout_here
    from loadmaster.integrations.vllm.proving import prove_layout

    class FilteredLoader(DefaultModelLoader):  # type: ignore[misc]
        """vLLM's loader, whose tensors come from a plan."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="safetensors"))  # as which files are found

        def create_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
            """Remember vLLM's configuration, and build the model."""
            self.planned_for = vllm_config
            return super().create_model(vllm_config, model_config, prefix)  # type: ignore[no-any-return]

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:
            folder, *_ = self._prepare_weights(
                source.model_or_path,
                source.subfolder,
                source.revision,
                source.fall_back_to_pt,
                source.allow_patterns_overrides,
            )
            checkpoint = open_checkpoint(folder)
            config = self.planned_for.model_config
            try:
                layout, rank = layout_here(self.planned_for, config)
                found = needed_by_shard(
                    prove_layout(checkpoint, layout, config.dtype, target=target_of_vllm(vllm.__version__)), rank
                )
            except Unfit as why:
                raise ValueError(f"--load-format {LOAD_FORMAT}: this is not described: {why}") from why
            for shard, of_shard in found.items():
                with safe_open(checkpoint.path / shard, "pt") as file:
                    for tensor in of_shard:
                        yield source.prefix + tensor.name, file.get_tensor(tensor.name)

    register_model_loader(LOAD_FORMAT)(FilteredLoader)
