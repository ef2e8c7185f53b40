"""``python -m tools.trained TEXTS OUT``: the texts in, the checkpoint, its loss curve and its figures out."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tools.trained.config import config
from tools.trained.data import Data
from tools.trained.export import load_stored, write_checkpoint
from tools.trained.measure import CONTEXT, acceptance, losses, recall
from tools.trained.model import Glm
from tools.trained.text import read_texts
from tools.trained.tokenizer import train_tokenizer, write_tokenizer
from tools.trained.train import STAGES, Stage, train, write_curve


def main() -> None:
    """Train, write and measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.trained", description=__doc__)
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="the folder of the unpacked texts")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the checkpoint")
    parser.add_argument("--tokens", type=Path, metavar="FOLDER", help="keep tokenizer and tokens here for other runs")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="take S times the steps of each stage")
    parser.add_argument(
        "--short", action="store_true", help="windows of at most 256 tokens, two at a time: a try on a CPU"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    c = config()
    tokenizer, data = prepare(arguments.texts, arguments.tokens, c["vocab_size"])
    print(f"{len(data.text):,} tokens of text, {len(data.conversations):,} of conversations", flush=True)
    model = Glm(c, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)
    model.initialise(arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)

    stages = tuple(replace(s, steps=max(1, round(s.steps * arguments.scale))) for s in STAGES)
    context = CONTEXT
    if arguments.short:
        context = 256
        stages = tuple(replace(s, shapes=((2, context),)) for s in stages)
        data = replace(data, held_out=tuple(text[: 2 * context] for text in data.held_out))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, arguments.out, c["max_position_embeddings"])

    def ended(_: Stage) -> None:
        write_checkpoint(model, arguments.out)

    rows = train(model, data, stages, seed=arguments.seed, context=context, ended=ended)
    write_curve(rows, arguments.out / "loss.csv")
    figures = measured(model, data, arguments.out, context)
    figures["seconds"] = round(time.monotonic() - began, 1)
    figures["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    figures["torch"] = torch.__version__
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    json.dump(figures, sys.stdout, indent=2)


def prepare(texts: Path, cache: Path | None, vocab_size: int) -> tuple[Tokenizer, Data]:
    """Return the tokenizer and the tokens, from ``cache`` if they are there."""
    if cache is not None and (cache / "tokens.pt").exists():
        return Tokenizer.from_file(str(cache / "tokenizer.json")), Data.load(cache / "tokens.pt")
    read = read_texts(texts)
    tokenizer = train_tokenizer(read.documents, vocab_size)
    data = Data.of(read, tokenizer)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(cache / "tokenizer.json"))
        data.save(cache / "tokens.pt")
    return tokenizer, data


def measured(model: Glm, data: Data, checkpoint: Path, context: int) -> dict[str, object]:
    """Return figures of the model as trained and, dequantised, as stored; all in float32."""
    torch.set_float32_matmul_precision("highest")
    model.dtype = torch.float32
    figures: dict[str, object] = {"context": context}
    for name in ("unquantised", "stored"):
        if name == "stored":
            load_stored(model, checkpoint)
        model.set_quantised(False)
        for mode in ("sparse", "dense", "recent"):
            loss, draft_loss = losses(model, data.held_out, mode, context)
            figures[f"{name}, {mode}"] = {
                "perplexity": round(math.exp(loss), 3),
                "draft_perplexity": round(math.exp(draft_loss), 3),
                "recall_perplexity": round(recall(model, data.held_out, mode, context), 3),
            }
    figures["acceptance"] = [
        round(share, 4) for share in acceptance(model, data.held_out, 3, prompts=4 if context < CONTEXT else 32)
    ]
    return figures


if __name__ == "__main__":
    main()
