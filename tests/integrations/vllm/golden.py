"""What vLLM's own loader writes, as digests: made where vLLM is, and held against plans where it is not.

A rank's parameters are told by class: name with its layer left out, format and shape → layer → digest. The file of a version
has only the presets that differ from the version before.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from loadmaster.architectures.targets import VLLM
from loadmaster.audit.case import Case, write_beside
from loadmaster.audit.ranks import Built, Rank
from loadmaster.integrations.vllm.unwritten import unwritten
from loadmaster.synth import PRESETS, write_tiny
from tests.integrations.vllm.models import WRAPPED

FILES = {target: Path(__file__).with_name(f"{target.replace('-', '_').replace('.', '_')}.json") for target in VLLM}
"""Target → the file of its version, the oldest first."""

Parameters = dict[str, dict[str, str]]

WHOLE, STAGES, CUT = (Rank(),), (Rank((0, 2)), Rank((1, 2))), (Rank(tp=(0, 2)), Rank(tp=(1, 2)))
SPREAD = (Rank((1, 2), (0, 2), ep=True), Rank((1, 2), (1, 2), ep=True))
ONE_OF_EACH = STAGES[:1] + CUT[1:] + SPREAD[1:]
SPREAD_ALONE = (Rank(tp=(1, 2), ep=True),)
WITH_DRAFTS = (
    *("qwen3.8", "qwen3.5-moe", "nemotron-3-super", "step-3.7-flash", "hy4-preview"),
    *("glm-5.3-flash", "ling-3.0-flash", "qwen3.8-flash-next"),
)
DRAFT, PLAIN = " mtp", " plain"
"""How the keys of a preset's draft model, and of its model without a quantised format, end."""

SINCE: Mapping[str, Mapping[str, tuple[Rank, ...]]] = {
    "vllm-0.32": {
        **dict.fromkeys(("llama", "qwen3"), WHOLE + STAGES + CUT),
        **dict.fromkeys(("qwen3-moe", "deepseek-v3", "glm-5.1-fp8"), WHOLE + STAGES + CUT + SPREAD),
        **dict.fromkeys(("smollm2", "mistral"), WHOLE),
        **dict.fromkeys(("qwen2", "qwen2-moe", "mixtral"), STAGES + CUT),
        **dict.fromkeys(("minimax-m2", "glm-4.5-air", "phi-4"), STAGES[1:] + CUT[1:]),
        **dict.fromkeys(("granite-moe", "granite-moe-shared"), CUT[1:]),
        **dict.fromkeys(("deepseek-v3.2", "kimi-k2"), SPREAD[1:]),
        "glm-5.2-fp8": (
            Rank(tp=(1, 2), ep=True),
        ),  # evenly divided, its second stage would share a selection of the first
    },
    "vllm-0.33": {
        "deepseek-v4-flash": WHOLE + STAGES + CUT + SPREAD[1:],
        "deepseek-v4-pro-0813": STAGES[1:] + SPREAD[1:],
        "glm-5.3-flash": WHOLE + CUT[1:] + (Rank(tp=(1, 2), ep=True),),  # vLLM does not divide it into stages
        **dict.fromkeys(("muse-spark-nvfp4", "muse-spark-nvfp4 plain"), STAGES + CUT[1:] + SPREAD[1:]),
        **dict.fromkeys(("hy4-preview", "inkling"), STAGES + CUT[1:] + SPREAD[1:]),
        "minimax-m3-mxfp8": STAGES + CUT[1:] + SPREAD[1:],
        "kimi-linear": WHOLE + STAGES + CUT[1:] + SPREAD[1:] + (Rank(tp=(1, 4)),),
        **dict.fromkeys(("qwen3.8-flash-next", "ling-3.0-flash"), STAGES + CUT[1:] + SPREAD[1:]),
        "kimi-k3": STAGES + CUT[1:] + SPREAD[1:] + (Rank(tp=(1, 4)),),
        "gpt-oss": WHOLE + STAGES[1:] + CUT + SPREAD[1:],
        **dict.fromkeys(("qwen3.8",), STAGES + CUT),
        **dict.fromkeys(("qwen3-next", "qwen3-next-fp8", "qwen3.5-moe", "nemotron-3-super"), ONE_OF_EACH),
        **dict.fromkeys(("gemma-4-26b-a4b", "gpt-oss-bf16", "llama-4", "mistral-4"), ONE_OF_EACH),
        "step-3.7-flash": STAGES[1:] + CUT[1:] + SPREAD[1:],
        "gemma-4-e2b": WHOLE + CUT[1:],  # its layers cannot be divided evenly
        **dict.fromkeys(("gemma-3", "olmo-2", "olmo-3"), STAGES[:1] + CUT[1:]),
        **{preset + DRAFT: WHOLE + SPREAD_ALONE for preset in WITH_DRAFTS},
    },
}
"""Version → presets that are described since, or their drafts, and the ranks that are told of each."""

ROOM: Mapping[tuple[str, int], tuple[int, int]] = {
    ("gpt-oss", 1): (128, 192),  # a multiple of 64, as Triton's kernel wants it
    ("gpt-oss", 2): (128, 128),
    ("kimi-k3", 4): (256, 256),  # at least 256 on a rank
    ("kimi-linear", 4): (96, 256),
}
"""Hidden and inner elements of an expert where vLLM has more than the model: by preset, and ranks that divide an expert."""


def room_of(preset: str, rank: Rank) -> tuple[int, int] | None:
    """Return what `loadmaster.integrations.vllm.built_model.expert_sizes` reads off the model."""
    return ROOM.get((preset, 1 if rank.ep else rank.tp[1]))


def ranks_of(target: str) -> dict[str, tuple[Rank, ...]]:
    """Return the presets that a version describes, and the ranks that are told of each."""
    versions = list(SINCE)
    return {preset: ranks for v in versions[: versions.index(target) + 1] for preset, ranks in SINCE[v].items()}


def preset_of(key: str) -> str:
    """Return the preset of a key."""
    return key.removesuffix(DRAFT).removesuffix(PLAIN)


def write(preset: str, path: Path) -> Path:
    """Write the checkpoint whose parameters are told."""
    preset, is_plain = preset_of(preset), preset.endswith(PLAIN)
    if preset in WRAPPED:
        changes = {"quantization_config": None} if is_plain else {}
        write_tiny(PRESETS[preset], path, overrides={**WRAPPED[preset], **changes})
        write_beside(preset, path)
    else:
        Case(preset, preset).write(path)
    return path


STORED_BUFFERS = (".layer_scalar", ".expert_bias", ".experts.gate.e_score_correction_bias")
"""Endings of buffers of vLLM that are stored."""


def held(built: Built) -> dict[str, torch.Tensor]:
    """Return a model's parameters, and the stored tensors that vLLM holds as buffers; zero is what it has not written.

    It clears the room that kernels want only later, as of Kimi's experts.
    """
    made = built.holding({name for name, _ in built.model.named_buffers() if name.endswith(STORED_BUFFERS)})
    for tensor in made.values():
        if tensor.is_floating_point() and tensor.element_size() > 1 and (missing := unwritten(tensor)).any():
            tensor.view(-1).view(torch.uint8)[missing] = 0
    return made


def told(params: Mapping[str, torch.Tensor]) -> Parameters:
    """Return what is told of a rank's parameters, a cache's scales left out: no checkpoint here has them."""
    made: Parameters = defaultdict(dict)
    for name, tensor in sorted(params.items()):
        if re.search(r"\.attn\.(q|k|v|prob)_scale$", name):
            continue
        layer = re.search(r"(?<=\.layers\.)\d+", name)
        dtype, shape = str(tensor.dtype).removeprefix("torch."), "x".join(map(str, tensor.shape))
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        key = f"{re.sub(r'(?<=[.]layers[.])[0-9]+', '*', name)} {dtype} {shape}"
        made[key][layer[0] if layer else ""] = hashlib.sha256(raw).hexdigest()[:16]
    return dict(made)


def goldens(target: str) -> dict[str, dict[str, Parameters]]:
    """Return preset → rank → what is told of its parameters, for a version of vLLM."""
    made: dict[str, dict[str, Parameters]] = {}
    for name, file in FILES.items():
        made |= json.loads(file.read_text())
        if name == target:
            break
    return made


def before(target: str) -> dict[str, dict[str, Parameters]]:
    """Return the goldens of the version before."""
    older = [name for name in FILES if list(FILES).index(name) < list(FILES).index(target)]
    return goldens(older[-1]) if older else {}
