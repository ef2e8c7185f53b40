"""``python -m tools.evaluation MODEL --lm-eval PYTHON``: does the server score as transformers does?

lm-eval runs two small tasks of this folder twice: with the model behind ``loadmaster serve``, over ``/v1/completions``
(``local-completions``), and with the model in transformers (``hf``), both in float32. Scores must be equal, log likelihoods
must agree within ``--tolerance``, and greedy answers must be the same text. Exit code 1 if they are not.

lm-eval is installed in an environment of its own, in which torch is a build for CPUs:

    python -m venv lm-eval && lm-eval/bin/pip install --upgrade pip
    lm-eval/bin/pip install torch==2.13.0+cpu 'lm_eval[api,hf]' 'transformers>=5'

Run it in the repository's folder: the tasks name their files from there. SmolLM2-135M takes about 3 minutes on two cores; with
``--results DIR`` the comparison is kept in DIR/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.served import loadmaster_command, served

FOLDER = Path("tools/evaluation")
TASKS = ("loadmaster_cloze", "loadmaster_opposites")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

Samples = dict[str, list[dict[str, Any]]]
"""Task → its samples as lm-eval logs them."""


def evaluate(python: str, model: str, arguments: str, out: Path) -> tuple[dict[str, dict[str, float]], Samples]:
    """Run lm-eval once. Return the scores of each task, and its samples in order.

    Raises:
        SystemExit: lm-eval failed; has the end of its output.
    """
    command = [
        *(python, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", *TASKS),
        *("--include_path", str(FOLDER), "--output_path", str(out), "--log_samples", "--batch_size", "8"),
        *("--device", "cpu"),
    ]
    done = subprocess.run(
        command, env={**os.environ, **OFFLINE}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"lm-eval failed with {done.returncode}: {' '.join(command)}\n{done.stdout[-4000:]}")
    results = json.loads(next(out.rglob("results_*.json")).read_bytes())["results"]
    scores = {
        task: {name.split(",")[0]: value for name, value in results[task].items() if is_score(name, value)}
        for task in TASKS
    }
    samples = {}
    for task in TASKS:
        lines = next(out.rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
        samples[task] = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return scores, samples


def is_score(name: str, value: object) -> bool:
    """Whether an entry of lm-eval's results is a score, and not its error or a count."""
    return isinstance(value, float) and "stderr" not in name and "," in name


def likelihoods(samples: Sequence[dict[str, Any]]) -> list[float]:
    """Return the log likelihoods of all choices of all samples."""
    return [float(answer[0][0]) for sample in samples for answer in sample["resps"]]


def texts(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Return the generated texts of all samples."""
    return [str(answer[0]) for sample in samples for answer in sample["resps"]]


def compare(server: Samples, transformers: Samples) -> dict[str, Any]:
    """Return how far log likelihoods differ, and which generated texts do."""
    pairs = list(zip(likelihoods(server[TASKS[0]]), likelihoods(transformers[TASKS[0]]), strict=True))
    differences = [abs(a - b) for a, b in pairs]
    answers = list(zip(texts(server[TASKS[1]]), texts(transformers[TASKS[1]]), strict=True))
    return {
        "num_likelihoods": len(pairs),
        "largest_difference": max(differences),
        "mean_difference": sum(differences) / len(differences),
        "num_answers": len(answers),
        "different_answers": [pair for pair in answers if pair[0] != pair[1]],
    }


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lm-eval", required=True, metavar="PYTHON", help="the Python of the environment with lm-eval")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of log likelihoods (default: 0.001)")
    parser.add_argument(
        "--options", type=shlex.split, default=[], help='more options of loadmaster serve, such as --options="-tp 2"'
    )
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    model = args.model.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = loadmaster_command(model, "--dtype", "float32", "--max-model-len", "2048", *args.options)
        with served(command, folder / "log") as server:
            url = f"{server.url}/v1/completions"
            arguments = f"model=model,base_url={url},tokenizer={model},tokenizer_backend=huggingface,num_concurrent=4"
            scores, samples = evaluate(args.lm_eval, "local-completions", arguments, folder / "server")
        arguments = f"pretrained={model},dtype=float32"
        peer_scores, peer_samples = evaluate(args.lm_eval, "hf", arguments, folder / "transformers")
    comparison = compare(samples, peer_samples)
    report = {"model": model.name, "server": scores, "transformers": peer_scores, **comparison}
    print(json.dumps(report, indent=1))
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    is_close = comparison["largest_difference"] <= args.tolerance and not comparison["different_answers"]
    return 0 if scores == peer_scores and is_close else 1


if __name__ == "__main__":
    sys.exit(main())
