"""What reading vLLM's code showed of the causes: written for one version, and used for that alone."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from loadmaster.audit.verdict import Verdict

READ_IN: Final = "0.32.0"
"""The version of vLLM whose code was read."""

DEFAULT: Final = "vllm/model_executor/model_loader/default_loader.py: DefaultModelLoader"
WEIGHTS: Final = "vllm/model_executor/model_loader/weight_utils.py"
EXPERTS: Final = "vllm/model_executor/layers/fused_moe/routed_experts.py: RoutedExperts"
PARAMETER: Final = "vllm/model_executor/parameter.py"
DEEPSEEK: Final = "vllm/model_executor/models/deepseek_v2.py"
AUTO: Final = "vllm/model_executor/models/utils.py: AutoWeightsLoader"


@dataclass(frozen=True)
class Note:
    """One finding: cases by globs, and the verdict that it explains; the first note that fits a case is its.

    ``where`` are the places in vLLM that decide it, beside those that the cases show themselves; ``test`` is the test that
    would have found it.
    """

    title: str
    cases: tuple[str, ...]
    verdict: Verdict
    cause: str
    where: tuple[str, ...]
    affected: str
    test: str

    def fits(self, name: str, verdict: str) -> bool:
        """Whether a case with this verdict is one of the finding's."""
        return verdict == self.verdict.value and any(fnmatchcase(name, glob) for glob in self.cases)


NOTES: Final = (
    Note(
        "The indexer's `wk` is loaded only once its scale has come, and nobody asks whether it came",
        ("*/wk-scale-missing*", "*/wk-missing*", "*/draft-wk-scale-missing*"),
        Verdict.SILENT,
        "An FP8 `wk` and its scale wait for each other in a dictionary; what still waits at the end is forgotten, and the rows "
        "of `wk` in `wk_weights_proj` keep whatever the memory held. `weights_proj`, the other part, makes the parameter "
        "count as loaded.",
        (f"{DEEPSEEK}: _try_load_fp8_indexer_wk",),
        "Models with a sparse-attention indexer stored in FP8 (DeepSeek-V3.2, GLM-5), and their MTP drafts, on every layout.",
        "load a checkpoint of one indexer whose `wk.weight_scale_inv` is left out, and expect an error that names it",
    ),
    Note(
        "The indexer's `wk` is dequantised with a block size guessed from the shapes",
        ("*/ragged-wk*", "*/wk-scale-half*"),
        Verdict.SILENT,
        "The block is taken to be rows of the weight // rows of the scale, and so for columns, instead of the config's "
        "`weight_block_size`. With a last block that is not whole the quotient is not 128 (448 // 4 = 112), and with a scale of "
        "the wrong shape it is any number: the factors are applied to other columns than their own.",
        (f"{DEEPSEEK}: _try_load_fp8_indexer_wk",),
        "Indexers in FP8 whose hidden size is no multiple of 128 (none published is known), and scales of a wrong shape.",
        "dequantise a `wk` of 448 columns with a scale of 4 and compare with the config's blocks of 128",
    ),
    Note(
        "Experts that are missing stay unwritten",
        (
            "*/expert-missing*",
            "*/expert-part-missing*",
            "*/expert-scale-missing*",
            "*/draft-expert-missing*",
            "mixtral/w?-missing*",
            "mixtral-fp8-static/*-missing",
            "granite-moe/stack-half",
        ),
        Verdict.SILENT,
        "All experts of a layer are one parameter, which counts as loaded after the first of them. Neither the default check "
        "nor `enable_weights_track` counts experts.",
        (f"{EXPERTS}.load_weights", f"{DEEPSEEK}: DeepseekV2Model.load_weights", f"{DEFAULT}.track_weights_loading"),
        "All models with experts, stored one by one or stacked, plain or quantised, sliced or dealt out.",
        "leave out one expert of one layer and expect an error with its number, for each of the stacked parameters",
    ),
    Note(
        "Experts that are smaller than the config says fill their parameter in part",
        ("*/expert-half", "qwen3-moe/config-wider"),
        Verdict.SILENT,
        "The destination is narrowed to the size of what is stored, because some kernels pad it; that it is smaller because "
        "the checkpoint is, is not told apart.",
        (f"{EXPERTS}._narrow_expert_data_for_padding", f"{EXPERTS}._load_w13", f"{EXPERTS}._load_w2"),
        "All models with experts that are stored one by one.",
        "load an expert whose up_proj has half the rows, without padding asked for, and expect an error",
    ),
    Note(
        "An expert with a number beyond the config's is dropped",
        ("*/expert-unknown",),
        Verdict.SILENT,
        "A stored expert that no entry of the mapping fits leaves the loop without a word.",
        (f"{EXPERTS}.load_weights",),
        "Models whose experts are loaded by `RoutedExperts.load_weights`; DeepSeek's own loop raises a `KeyError`.",
        "store one expert more than `num_experts` and expect an error",
    ),
    Note(
        "A fused parameter counts as loaded after its first part",
        (
            "*/k_proj-missing*",
            "*/q_bias-missing",
            "*/q_a_proj-scale-missing*",
            "*/kv_a_proj-*missing*",
            "*/weights_proj-missing*",
            "*/k_proj-scale-missing*",
            "*/q-scale-missing*",
        ),
        Verdict.SILENT,
        "`load_weights` returns the names of parameters, and a fused one is named by each of its parts; the check compares "
        "names, so one part stands for all. (Of models in BF16 it exempts all linear layers besides.)",
        (f"{DEFAULT}.track_weights_loading", f"{AUTO}._load_module"),
        "All models with fused projections; `enable_weights_track` does not find it either.",
        "leave out k_proj of one layer, with `enable_weights_track`, and expect an error that names the part",
    ),
    Note(
        "Of models in BF16 only norms and their like are checked: a missing projection, embedding, head or router is served",
        (
            "qwen3/*-missing*",
            "llama/*-missing*",
            "mistral/*",
            "olmo-?/*-missing",
            "gemma-3/*-missing",
            "phi-4/*-missing",
            "smollm2/*",
            "qwen2-moe/*-missing",
            "qwen3-moe/*-missing",
            "qwen3-next/*-missing",
            "glm-4.5-air/*-missing",
            "gpt-oss-bf16/*-missing",
            "granite-moe*/*-missing",
            "llama-4/*-missing",
        ),
        Verdict.SILENT,
        "The check exempts every module whose `quant_method` has `process_weights_after_loading`, and on unquantised models "
        "all parameters of it. `UnquantizedLinearMethod`, the embedding's and the experts' method have one: what is left are "
        "norms, sinks, `A_log`.",
        (f"{DEFAULT}.track_weights_loading",),
        "Every model in BF16 or F16, on every layout.",
        "for each parameter of a tiny model, leave out what feeds it and expect an error",
    ),
    Note(
        "Of quantised models nothing is checked unless it is asked for: any tensor, scale, layer or shard may be missing",
        (
            "glm-5*/*-missing*",
            "glm-5*/indexers*",
            "deepseek*/*-missing*",
            "kimi*/*-missing*",
            "llama-*/*-missing",
            "qwen3-*/*-missing",
            "phi-4-*/*-missing",
            "olmo-2-*/*-missing",
        ),
        Verdict.SILENT,
        "`enable_weights_track` is on by default only where `quantization` is None.",
        (f"{DEFAULT}.load_weights",),
        "Every quantised model: FP8 by block, tensor or channel, compressed-tensors, AWQ, GPTQ, ModelOpt; drafts too.",
        "for each stored tensor of a tiny FP8 checkpoint, leave it out and expect an error by default",
    ),
    Note(
        "A stored weight that is larger than the config says is cut to size",
        ("*/*-double", "qwen3/config-narrower", "qwen3/config-fewer-*"),
        Verdict.SILENT,
        "A column-parallel part is narrowed to the rank's rows without looking at how many there are; a row-parallel one to its "
        "columns. The first rows are taken, and the rest is dropped: a model of other sizes.",
        (
            f"{PARAMETER}: _ColumnvLLMParameter.load_merged_column_weight",
            f"{PARAMETER}: _ColumnvLLMParameter.load_qkv_weight",
            f"{PARAMETER}: RowvLLMParameter.load_row_parallel_weight",
        ),
        "All models with fused projections, where config.json is of another size than the shards (a pruned sibling, an edited "
        "config).",
        "load a gate_proj of twice the rows at tensor parallel sizes 1 and 2 and expect an error",
    ),
    Note(
        "A weight in BF16 among FP8 ones, which the config does not list, is rounded to FP8 without a factor",
        ("*/o_proj-plain*", "*/draft-plain*"),
        Verdict.SILENT,
        "Which layers are quantised is decided by the config's list alone, never by the headers; every weight loader ends in "
        "`param.data.copy_(loaded_weight)`, which converts, and the scale that is not stored stays unwritten. Loops of the "
        "models' own do not compare the formats.",
        (f"{PARAMETER}: RowvLLMParameter.load_row_parallel_weight", f"{DEEPSEEK}: DeepseekV2Model.load_weights"),
        "Models with loops of their own (DeepSeek and its drafts); in the field, MTP layers that were left in BF16.",
        "store one layer of an FP8 checkpoint in BF16, unlisted, and expect an error that names both formats",
    ),
    Note(
        "A tensor in another number format is converted element by element, with a warning among others",
        ("*/o_proj-int8", "*/*-float8", "*/claims-fp8", "*/routers-unlisted"),
        Verdict.WARNED,
        "`AutoWeightsLoader` compares the formats of the tensors that it hands to a parameter itself, and warns; then "
        "`param.data.copy_(loaded_weight)` converts: FP8 codes and integers become BF16 numbers, BF16 weights are rounded to "
        "FP8 without a factor. Of fused projections and experts, which go another way, there is no warning.",
        (f"{AUTO}._load_param", f"{WEIGHTS}: default_weight_loader"),
        "Models loaded by `AutoWeightsLoader`; in the field, routers in BF16 that an FP8 config does not list.",
        "store o_proj as I8 or FP8 in a BF16 checkpoint and expect an error: no conversion between these keeps the values",
    ),
    Note(
        "A tensor that lies in two shards is loaded from the last, whatever the index says",
        ("*/tensor-twice", "*/shard-stale-no-index"),
        Verdict.SILENT,
        "The index only chooses files; every tensor of every chosen file is offered, and what comes later overwrites.",
        (f"{WEIGHTS}: filter_duplicate_safetensors_files", f"{WEIGHTS}: safetensors_weights_iterator"),
        "All models: a folder written by two runs with different numbers of shards, or a shard merged by hand.",
        "store one tensor in two indexed shards with different values and expect an error, or the one that the index names",
    ),
    Note(
        "A file called consolidated*.safetensors takes the place of all shards, of any model",
        ("*/consolidated*",),
        Verdict.SILENT,
        "`auto` becomes `mistral` where such a file exists, and only that pattern is read, in Mistral's index; that the model "
        "is no Mistral and that there are shards with an index is not looked at. Its tensors may be others, or a few.",
        (f"{DEFAULT}._prepare_weights",),
        "All models whose folder has one (an export of another tool); where it is a part, the rest stays unwritten.",
        "put a consolidated file with other values beside an indexed Llama checkpoint and expect the shards to be read",
    ),
    Note(
        "A bias that the model does not have is dropped",
        ("*/bias-unknown",),
        Verdict.SILENT,
        "Unexpected names that end in `.bias` are ignored, for the sake of GPTQ exports with biases of zero; that they are zero "
        "is not looked at.",
        (f"{AUTO}.load_weights",),
        "All models loaded by `AutoWeightsLoader`, and those with a loop of their own that says the same.",
        "store an o_proj.bias that is not zero for a config without biases and expect an error",
    ),
    Note(
        "Two input scales of one expert become the one that is read last",
        ("*/input-scales-differ",),
        Verdict.SILENT,
        "gate and up share one `w13_input_scale`; the second overwrites the first. Their equality is checked for "
        "compressed-tensors alone.",
        (f"{EXPERTS}.weight_loader",),
        "FP8 with static activation scales and experts (`quant_method: fp8`), where a quantiser calibrated the two apart.",
        "give w1 and w3 of an expert different input scales and expect the larger, or an error",
    ),
    Note(
        "A tensor that the model does not have is a bare KeyError",
        (
            "glm-5*/tensor-unknown",
            "glm-5*/scales-renamed",
            "glm-5*/not-quantised",
            "glm-5*/weights_proj-quantised",
            "glm-5*/draft-silent",
            "deepseek-v3/fewer-experts",
        ),
        Verdict.UNCLEAR,
        "`params_dict[name]` in loops of the models' own; the name is the parameter's, after renaming, and nothing says that a "
        "stored tensor has no place, nor why (here: other scales' names, no `quantization_config`, an MTP layer that the config "
        "does not count, fewer experts).",
        (f"{DEEPSEEK}: DeepseekV2Model.load_weights",),
        "The models with loops of their own instead of `AutoWeightsLoader`, which says it in a sentence.",
        "add an unknown tensor and expect its stored name and a sentence, for each class with a loop of its own",
    ),
    Note(
        "A shape that does not fit is an assertion without words, or torch's own sentence without a name",
        (
            "*/*-half",
            "*/*-double",
            "*/*-transposed",
            "*/group-64",
            "*/config-vocabulary",
            "*/config-wider",
            "*/config-narrower",
            "*/fewer-experts",
            "*/more-experts",
        ),
        Verdict.UNCLEAR,
        "Parameters compare shapes by a bare `assert`, or let `narrow` and `copy_` fail; they know neither their own name nor "
        "that of the stored tensor, and nobody above them adds it.",
        (PARAMETER,),
        "All models.",
        "load a tensor of a wrong shape and expect its name and both shapes in the message",
    ),
    Note(
        "A broken shard is an error that does not name the file",
        ("*/shard-truncated", "*/shard-pointer", "*/shard-empty"),
        Verdict.UNCLEAR,
        "`safe_open` says what is wrong with a header, not whose; nothing is added. Shards are opened one after another, so "
        "that the error comes after all shards before it were read.",
        (f"{WEIGHTS}: safetensors_weights_iterator",),
        "All models, after an interrupted download or a clone without Git LFS.",
        "truncate the last shard and expect its name, before the first tensor is read",
    ),
    Note(
        "Scales of rows that do not fill their block cannot be merged or cut, and the error says nothing of it",
        ("*/ragged-merge", "*/ragged-fusion", "*/expert-cut", "minimax-m2/heads-cut*", "qwen3-next-fp8/sound"),
        Verdict.UNCLEAR,
        "Offsets of fused scales are rows // 128 and sizes are rounded up, so that a part which ends inside a block does not "
        "fit behind another. The divisibility is checked before loading only where a layer is cut by tensor parallelism, and "
        "not for keys and values that are fused with the queries.",
        (f"{PARAMETER}: _ColumnvLLMParameter", "vllm/model_executor/layers/quantization/utils/fp8_utils.py"),
        "FP8 in blocks with an intermediate size, heads or experts that are no multiple of 128, also on one rank.",
        "load gate and up of 448 rows, each with a scale of 4, and expect them or a refusal with the sizes that are legal",
    ),
    Note(
        "A layout that cuts inside a block is refused without saying where",
        ("deepseek-v3/expert-cut*", "deepseek-v3/heads-cut*"),
        Verdict.UNCLEAR,
        "The check is made in time, before anything is read, and gives the numbers; but neither the layer nor the option that "
        "would help is named.",
        ("vllm/model_executor/layers/quantization/utils/fp8_utils.py: validate_fp8_block_shape",),
        "FP8 in blocks under tensor parallelism.",
        "expect the module's prefix and the legal sizes in the message",
    ),
    Note(
        "What is missing is found once everything was read",
        ("*/*-missing*", "*/config-deeper", "*/shard-forgotten"),
        Verdict.LATE,
        "Where completeness is checked, it is by the names that `load_weights` returns at the end; the headers, which say the "
        "same in milliseconds, are not looked at before. A layer or shard is told by its norms alone, for the rest is exempt.",
        (f"{DEFAULT}.track_weights_loading", "vllm/model_executor/models/deepseek_mtp.py: DeepSeekMTP.load_weights"),
        "All models: minutes to an hour of reading for hundreds of gigabytes.",
        "leave out a norm in the first shard and expect the error before the second is opened",
    ),
    Note(
        "What the model does not have is found when its turn comes",
        ("*/tensor-unknown", "*/prefix-renamed", "*/o_proj-renamed", "*/config-shallower"),
        Verdict.LATE,
        "Names are matched while tensors are read; the sentence is a good one, and lists what there is.",
        (f"{AUTO}._load_module",),
        "Models loaded by `AutoWeightsLoader`.",
        "put an unknown tensor into the last shard and expect the error before the first is read",
    ),
)
"""The findings in version `READ_IN`."""
