"""EXAONE-4, and the language model of EXAONE-4.5: a Llama with norms after attention and MLP, and normed heads.

EXAONE-4.5 has an MTP layer under ``mtp.``: such a layer, with a matrix and norms before it. It shares the model's embedding and
head. How many layers it runs is given beside the section of the language model.

Sources: ``modeling_exaone4.py`` of transformers 5.24; ``exaone4_5_mtp.py`` in ``vllm/model_executor/models``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadmaster.architectures import blocks, dense
from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Schema

STYLE: Final = dense.Style((), (), (), norms=("post_norm", "post_mlp_norm"), head_norms=True)


def schema(c: Config) -> Schema:
    """Return the logical tensors that ``c`` describes."""
    return blocks.with_draft_apart(c, dense.of_style(c, STYLE), "dense")


FAMILY = replace(
    dense.FAMILY,
    name="exaone4",
    architectures=("Exaone4ForCausalLM",),
    schema=schema,
    drafts=(blocks.draft_apart_spelling(dense.FAMILY.spelling),),
    native=(*dense.FAMILY.native, *blocks.DRAFT_NATIVE),
    unchecked={},
)
