"""Generate a few tokens with vLLM, greedily, and print them as JSON: a process of its own for each engine.

usage: generate.py MODEL '{"load_format": "loadmaster", ...}' [OTHER ...]  (any of vLLM's engine arguments)

Then the weights of each other folder are loaded in place, and the same is generated again; what refuses them is printed first.
"""

import json
import sys
from typing import Any


def main(model: str, engine: dict[str, Any], others: list[str]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="bfloat16", max_model_len=128, max_num_seqs=4, skip_tokenizer_init=True, seed=0, **engine)
    prompts = [{"prompt_token_ids": [3, 4, 5]}, {"prompt_token_ids": [7, 8, 9, 10]}]
    params = SamplingParams(temperature=0, max_tokens=16, detokenize=False)

    def tell() -> None:
        llm.reset_prefix_cache()
        done = llm.generate(prompts, params, use_tqdm=False)
        print(json.dumps([list(d.outputs[0].token_ids) for d in done]), flush=True)

    tell()
    for other in others:
        try:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": other})
        except Exception as error:
            print(json.dumps({"refused": str(error)}), flush=True)
        tell()


if __name__ == "__main__":  # vLLM's workers import this file again
    main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:])
