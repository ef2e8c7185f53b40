"""DSpark: the draft of DeepSeek-V4 since July and of V4.1, three blocks that read hidden states of the model's last layers.

The first block projects the states of the tapped layers (``dspark_target_layer_ids``), the last has the heads: one for pairs of
tokens (``markov_head``), one for confidence. Embedding and head are the model's.

Sources: as `loadmaster.architectures.deepseek_v4` and `deepseek_v41`; ``dspark.py`` of both in ``vllm/models``.
"""

from __future__ import annotations

from collections.abc import Mapping

from loadmaster.architectures.config import Config
from loadmaster.architectures.schema import Tensor, linear

MARKOV = ("markov_w1", "markov_w2")
MARKOV_OF_V41 = ("embed", "head")
WEIGHTS = (
    *("main_proj", "main_norm", "norm", "confidence_head.proj"),
    *(f"markov_head.{name}" for name in (*MARKOV, *MARKOV_OF_V41)),
)
"""Names of weights in the blocks of DSpark, under ``mtp.{layer}.``"""


def dspark(
    c: Config, block: tuple[Tensor, ...], *, markov: tuple[str, str] = MARKOV, last: tuple[Tensor, ...] = ()
) -> tuple[tuple[str, ...], Mapping[str, tuple[Tensor, ...]]]:
    """Return the kinds of the blocks in order, and what each has: ``block``, and the first and the ``last`` more.

    There are none where the config taps no layers.
    """
    hidden, taps = c.size("hidden_size"), len(c.sizes("dspark_target_layer_ids"))
    if not taps:
        return (), {}
    vocab, rank = c.size("vocab_size"), c.size("dspark_markov_rank")
    kinds = ("dspark, first", *("dspark",) * (taps - 2), "dspark, last")
    return kinds, {
        "dspark, first": (
            *block,
            linear("mtp.main_proj", hidden, taps * hidden),
            Tensor("mtp.main_norm", (hidden,)),
        ),
        "dspark": block,
        "dspark, last": (
            *block,
            Tensor("mtp.norm", (hidden,)),
            *last,
            *(Tensor(f"mtp.markov_head.{name}", (vocab, rank)) for name in markov),
            Tensor("mtp.confidence_head.proj", (1, hidden + rank)),
        ),
    }
