"""The training run: four stages, each a change of what is learned, on what length, with which attention."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tools.trained.attention import Mode
from tools.trained.data import Data
from tools.trained.measure import losses
from tools.trained.model import Glm

DRAFT_WEIGHTS = (0.3, 0.15)
"""Weights of the losses of the first and the second draft, beside 1 for the next token."""

BALANCE_RATE = 1e-3
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARM_UP_STEPS = 100
LOG_EVERY, CHECK_EVERY = 20, 100


@dataclass(frozen=True)
class Stage:
    """One part of the run.

    ``shapes``: windows × tokens of the steps, taking turns. ``rate``: the learning rate, from … to, along a cosine.
    ``distilled``: drafts learn what the model itself predicts, which is what decides whether they are accepted; before, they
    learn the text.
    """

    name: str
    steps: int
    shapes: tuple[tuple[int, int], ...]
    rate: tuple[float, float]
    mode: Mode = "sparse"
    dropout: float = 0.15
    distilled: bool = True
    quantised: bool = False

    @property
    def draft_weights(self) -> tuple[float, ...]:
        """Weights of the drafts' losses; the second draft has no indexer of its own to warm up."""
        return DRAFT_WEIGHTS[:1] if self.mode == "warm-up" else DRAFT_WEIGHTS


STAGES = (
    Stage("dense", 1800, ((32, 1024), (4, 8192)), (3e-3, 1e-3), mode="dense", distilled=False),
    Stage("indexer", 200, ((8, 2048), (2, 8192)), (3e-3, 1e-3), mode="warm-up", dropout=0.0),
    Stage("sparse", 400, ((8, 2048), (2, 8192)), (1e-3, 4e-4)),
    Stage("fp8", 250, ((8, 2048), (2, 8192)), (4e-4, 2e-5), quantised=True),
)


@dataclass
class Row:
    """A line of loss.csv, in nats.

    ``loss`` is that of the next token, ``draft_loss`` the weighed mean of the drafts' (cross-entropy with the text, later with
    what the model predicts), ``index_loss`` the indexers' divergence, all of one step; ``held_out`` is the loss of the next
    token in text that is never trained on.
    """

    step: int
    stage: str
    rate: float
    loss: float
    draft_loss: float
    index_loss: float
    held_out: float | None
    seconds: float


def train(
    model: Glm, data: Data, stages: tuple[Stage, ...], *, seed: int, context: int, ended: Callable[[Stage], None]
) -> list[Row]:
    """Train ``model`` in place through all ``stages``, calling ``ended`` after each; return the curve."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    rows: list[Row] = []
    began, number = time.monotonic(), 0
    for stage in stages:
        _prepare(model, stage)
        for step in range(stage.steps):
            rate = _rate(stage, step) * min(1.0, (number + 1) / WARM_UP_STEPS)
            for group in optimiser.param_groups:
                group["lr"] = rate
            tokens = data.windows(*stage.shapes[step % len(stage.shapes)], generator).to(device)
            loss, draft_loss, index_loss = _losses(model, tokens, stage)
            (loss + draft_loss + index_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad()
            if stage.mode != "warm-up":
                _balance(model)
            last = step == stage.steps - 1
            if number % LOG_EVERY == 0 or last:
                held_out = None
                if number % CHECK_EVERY == 0 or last:
                    held_out = losses(model, data.held_out, "sparse" if stage.mode == "sparse" else "dense", context)[0]
                figures = (loss.item(), draft_loss.item() / sum(stage.draft_weights), index_loss.item())
                rows.append(Row(number, stage.name, rate, *figures, held_out, time.monotonic() - began))
                print(
                    " ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in asdict(rows[-1]).values()),
                    flush=True,
                )
                if not math.isfinite(figures[0]):
                    raise ArithmeticError(f"the loss is {figures[0]} at step {number}")
            number += 1
        ended(stage)
    return rows


def write_curve(rows: list[Row], path: Path) -> None:
    """Write loss.csv."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def _prepare(model: Glm, stage: Stage) -> None:
    model.train()
    model.set_dropout(stage.dropout)
    model.set_quantised(stage.quantised)
    indexers = {id(p) for p in model.indexer_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(stage.mode != "warm-up" or id(parameter) in indexers)


def _losses(model: Glm, tokens_BT: Tensor, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of the next token, of the drafts (weighed), and of the indexers."""
    output = model(tokens_BT, stage.mode, num_drafts=len(stage.draft_weights))
    logits_BTV, *drafts = output.logits
    loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
    draft_loss = torch.zeros_like(loss)
    for i, (draft_BTV, weight) in enumerate(zip(drafts, stage.draft_weights, strict=True)):
        draft_BTV = draft_BTV[:, i:-2]  # every draft's row t is for token t + 2; the first i rows have no state before
        target = tokens_BT[:, 2 + i :].flatten()
        if stage.distilled:
            target = logits_BTV[:, 1 + i : -1].detach().flatten(0, 1).float().softmax(-1)
        draft_loss = draft_loss + weight * F.cross_entropy(draft_BTV.flatten(0, 1).float(), target)
    return loss, draft_loss, output.index_loss


def _balance(model: Glm) -> None:
    for module in model.modules():
        balance = getattr(module, "balance", None)
        if balance is not None:
            balance(BALANCE_RATE)


def _rate(stage: Stage, step: int) -> float:
    first, last = stage.rate
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
