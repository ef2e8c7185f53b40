"""The embedding and the head, whose rows are the vocabulary: whole, or divided over the ranks of a stage.

Which rows a rank holds is in the plan. A vocabulary that does not divide is padded; padding is never looked up, and the head
drops its columns.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from loadmaster.layers.linear import Linear
from loadmaster.layers.weight import Params


class Embedding:
    """Token ids ``[T]`` → ``[T, H]``, in the dtype of the weight."""

    def __init__(self, params: Params, name: str) -> None:
        self.weight_VH = params.tensor(name)
        (self.rows,) = params.division(name).parts
        self.group = params.group if self.rows.num_shares > 1 else None

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        """Return the rows of the tokens. A rank gives zeros for the ids that it does not hold; the ranks add them up."""
        if self.group is None:
            return F.embedding(token_ids_T, self.weight_VH)
        local_T = token_ids_T - self.rows.first
        is_other_T = (local_T < 0) | (local_T >= self.rows.count)
        x_TH = F.embedding(local_T.masked_fill(is_other_T, 0), self.weight_VH)
        return self.group.all_reduce(x_TH.masked_fill(is_other_T[:, None], 0))


class Head:
    """Hidden states ``[R, H]`` → logits ``[R, V]`` of the whole vocabulary, on every rank."""

    def __init__(self, params: Params, prefix: str) -> None:
        self.product = Linear.of(params, prefix)
        (self.rows,) = params.division(f"{prefix}.weight").parts
        self.group = params.group if self.rows.num_shares > 1 else None

    def __call__(self, x_RH: Tensor) -> Tensor:
        """Return the logits, without the columns of a padded vocabulary."""
        logits_RV = self.product(x_RH)
        if self.group is not None:
            logits_RV = self.group.all_gather(logits_RV)
        return logits_RV[:, : self.rows.total]
