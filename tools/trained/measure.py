"""Figures of the model on text that it has not seen: what sparse attention and FP8 cost, and how often drafts are accepted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tools.trained.attention import Mode
from tools.trained.model import Glm

CONTEXT = 8192
PROMPT_TOKENS, NEW_TOKENS = 64, 128
"""Lengths of the greedy answers in which drafts are counted."""


@torch.no_grad()
def losses(model: Glm, held_out: tuple[Tensor, ...], mode: Mode, context: int) -> tuple[float, float]:
    """Return the mean loss of the next token, and of the first draft, in nats over all whole windows of ``context`` tokens."""
    model.eval()
    device = next(model.parameters()).device
    windows = [w for text in held_out for w in text.split(context) if len(w) == context]
    sums = torch.zeros(2, device=device)
    for window in windows:
        tokens = window[None].to(device)
        logits = model(tokens, mode, num_drafts=1).logits
        sums[0] += F.cross_entropy(logits[0][0, :-1].float(), tokens[0, 1:])
        sums[1] += F.cross_entropy(logits[1][0, :-2].float(), tokens[0, 2:])
    model.train()
    mean = (sums / len(windows)).tolist()
    return mean[0], mean[1]


@torch.no_grad()
def recall(model: Glm, held_out: tuple[Tensor, ...], mode: Mode, context: int) -> float:
    """Return the perplexity of 256 tokens that end the window and stood at its beginning, without the first 32 of them."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for text in held_out:
        tokens = text[:context].clone()
        tokens[-256:] = tokens[:256]
        logits = model(tokens[None].to(device), mode).logits[0][0].float()
        found.append(F.cross_entropy(logits[-225:-1], tokens[-224:].to(device)))
    model.train()
    return math.exp(float(torch.stack(found).mean()))


@torch.no_grad()
def acceptance(model: Glm, held_out: tuple[Tensor, ...], num_drafts: int, *, prompts: int) -> list[float]:
    """Return the share of accepted first drafts, of accepted second ones after accepted first ones, and so on.

    The answers are greedy, to prompts from the texts held out. Every position counts as one at which drafting could begin,
    and all drafts are made with the tokens before them known; an engine makes later drafts from earlier ones, which are the
    same tokens as long as they are accepted.
    """
    model.eval()
    device = next(model.parameters()).device
    text = torch.cat(held_out)
    starts = torch.linspace(0, len(text) - PROMPT_TOKENS - 1, prompts).long()
    tokens = torch.stack([text[s : s + PROMPT_TOKENS] for s in starts]).to(device)
    for _ in range(NEW_TOKENS):
        tokens = torch.cat([tokens, model(tokens).logits[0][:, -1:].argmax(-1)], dim=1)
    drafts = model(tokens, num_drafts=num_drafts).logits[1:]
    reached = torch.ones(prompts, NEW_TOKENS - num_drafts, dtype=torch.bool, device=device)
    shares = []
    for i, logits in enumerate(drafts):
        at = PROMPT_TOKENS - 1 + i  # the row of the draft that follows the first new token, and i drafts
        rows = slice(at, at + reached.shape[1])
        right = logits[:, rows].argmax(-1) == tokens[:, at + 2 : at + 2 + reached.shape[1]]
        shares.append(float((right & reached).sum() / reached.sum().clamp(min=1)))
        reached = reached & right
    model.train()
    return shares
