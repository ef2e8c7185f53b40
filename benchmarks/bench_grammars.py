"""Time to compile grammars and to compute masks, with llguidance, xgrammar and outlines-core: those that are installed.

    python benchmarks/bench_grammars.py path/to/tokenizer.json > benchmarks/results/grammars.json

Each library answers with tokens that its own masks allow, drawn at random, 100 in all. ``import_mib`` is what importing it
adds to the process. A schema that takes longer than 20 s ends as ``timeout``: each measurement has a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "200 properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}},
    "enum of 5,000": {"enum": [f"word {i}" for i in range(5000)]},
    "recursive": {
        "$ref": "#/$defs/t",
        "$defs": {"t": {"type": "object", "properties": {"left": {"$ref": "#/$defs/t"}}}},
    },
    "a pattern with (a|b){1,500}": {"type": "string", "pattern": "^((a|b)*c){1,500}$"},
}
NUM_MASKS, MOST_S = 100, 20.0


def llguidance(tokenizer: str, schema: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    from llguidance import LLMatcher, LLTokenizer

    vocabulary = LLTokenizer(Path(tokenizer).read_text(), eos_token=[2])

    def compiled() -> Any:
        matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_json_schema(schema), log_level=0)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def step(matcher: Any) -> tuple[bytes, Callable[[int], Any], bool]:
        return matcher.compute_bitmask(), matcher.consume_token, matcher.is_stopped()

    return compiled, step


def xgrammar(tokenizer: str, schema: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    import xgrammar as xgr
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    info = xgr.TokenizerInfo.from_huggingface(fast, stop_token_ids=[2])
    bitmask = xgr.allocate_token_bitmask(1, info.vocab_size)

    def compiled() -> Any:
        compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        return xgr.GrammarMatcher(compiler.compile_json_schema(schema))

    def step(matcher: Any) -> tuple[bytes, Callable[[int], Any], bool]:
        matcher.fill_next_token_bitmask(bitmask)
        return bitmask.numpy().tobytes(), matcher.accept_token, matcher.is_terminated()

    return compiled, step


def outlines_core(tokenizer: str, schema: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    import outlines_core as oc
    from outlines_core.json_schema import build_regex_from_schema
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=tokenizer)
    texts: dict[str, list[int]] = {}
    for token in range(len(fast)):
        if token != 2:
            texts.setdefault(fast.decode([token]), []).append(token)
    vocabulary = oc.Vocabulary(2, {text: ids for text, ids in texts.items() if text})
    words = np.zeros(-(-len(fast) // 32), np.uint32)

    def compiled() -> Any:
        return oc.Guide(oc.Index(build_regex_from_schema(schema), vocabulary))

    def step(guide: Any) -> tuple[bytes, Callable[[int], Any], bool]:
        guide.write_mask_into(words.ctypes.data, words.size, 4)
        return words.tobytes(), lambda token: guide.advance(token, return_tokens=False), guide.is_finished()

    return compiled, step


LIBRARIES = {"llguidance": llguidance, "xgrammar": xgrammar, "outlines_core": outlines_core}


def measure(library: str, tokenizer: str, schema: Any, pipe: Any) -> None:
    try:
        compiled, step = LIBRARIES[library](tokenizer, json.dumps(schema))
        begin = time.perf_counter()
        matcher = compiled()
        compile_s = time.perf_counter() - begin
        rng, masks = random.Random(0), []
        while len(masks) < NUM_MASKS:
            begin = time.perf_counter()
            mask, advance, is_over = step(matcher)
            masks.append(time.perf_counter() - begin)
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
            allowed = [int(token) for token in allowed if token != 2]
            if is_over or not allowed:
                matcher.reset()
            else:
                advance(rng.choice(allowed))
        figures = {
            "compile_ms": compile_s * 1e3,
            "mask_us": np.median(masks) * 1e6,
            "longest_mask_ms": max(masks) * 1e3,
        }
        pipe.send({name: round(float(value), 2) for name, value in figures.items()})
    except Exception as error:
        pipe.send({"refused": f"{type(error).__name__}: {error}".partition("\n")[0][:100]})


def weight(library: str, pipe: Any) -> None:
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    __import__(library)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = round(time.perf_counter() - begin, 2)
    pipe.send({"import_s": seconds, "import_mib": round(added), "torch": "torch" in sys.modules})


def in_process(work: Callable[..., None], *args: Any) -> Any:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=work, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(MOST_S + 40) else {"refused": "timeout"}
    except EOFError:
        return {"refused": "the process ended"}
    finally:
        process.kill()
        process.join()


def main() -> None:
    tokenizer, results = sys.argv[1], {}
    for library in LIBRARIES:
        if find_spec(library) is None:
            continue
        results[library] = {"import": in_process(weight, library)}
        for name, schema in SCHEMAS.items():
            results[library][name] = in_process(measure, library, tokenizer, schema)
            print(library, name, results[library][name], file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
