"""Layout: what is wrong with the parallel layout for this model."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

LAYOUT: Final[dict[str, Entry]] = {
    "layout-stages": Entry(
        "the layers cannot be divided over the pipeline stages as requested",
        "more stages than layers, or a --layer-partition that does not add up",
        "8 pipeline stages for 4 layers",
        "the message gives the numbers",
    ),
    "layout-cut": Entry(
        "no pipeline stage can begin where the layout would begin one",
        (
            "a --layer-partition, or more stages than the model allows, that separate layers which must be on one stage: a "
            "layer and the one whose KV cache it reads, or, on an engine that does not pass it on, whose selection it shares"
        ),
        (
            "no stage can begin at layer 3: layer 3 needs topk_indices of layer 2, and vllm-0.32 passes only hidden_states, "
            "residual"
        ),
        "use the --layer-partition that the hint names; `loadmaster plan --cuts` lists all boundaries",
    ),
    "layout-moved": Entry(
        "the layers are not divided evenly, because a stage cannot begin where it would",
        "a pipeline size without --layer-partition, for a model some of whose layers must stay together",
        (
            "evenly divided, a stage would begin at layer 4: layer 4 needs topk_indices of layer 2, and vllm-0.32 passes only "
            "hidden_states, residual; the layers are divided 6,2 instead"
        ),
        "none needed natively; vLLM divides evenly unless it is given the VLLM_PP_LAYER_PARTITION that the hint names",
    ),
    "layout-indivisible": Entry(
        "a dimension does not divide over the tensor-parallel ranks",
        "a tensor-parallel size that does not divide heads, experts or groups of a quantised format",
        (
            "attn.q_b (model.layers.{layer}.self_attn.q_b_proj.weight): 8 unit(s) of 40 do not divide over 3 "
            "tensor-parallel ranks, and 5 more"
        ),
        "the hint lists the valid sizes",
    ),
    "layout-block-cut": Entry(
        "a cut falls inside a quantisation block where that is not possible",
        "a tensor-parallel size under which a packed format's words or groups would be split",
        "a cut at elements 4 to 64 of dim 0 splits a packed word of 8 (awq, qweight)",
        "use a smaller tensor-parallel size and more pipeline stages",
    ),
    "draft-missing": Entry(
        "speculative decoding with MTP was requested, but the checkpoint has no MTP layer",
        "num_nextn_predict_layers is 0 or absent",
        "1 MTP layer(s) asked for, and the model has 0",
        "remove --speculative-config",
    ),
    "tower-missing": Entry(
        "--multimodal was requested, but the checkpoint has nothing outside its language model",
        "a text-only model, or a checkpoint that was saved without its towers",
        "--multimodal asks for vision and audio, and nothing is stored outside the language model",
        "remove --multimodal",
    ),
    "tower-unchecked": Entry(
        "with --multimodal, tensors outside the language model are held as the headers have them; no table checks them",
        "every model with vision or audio: only language models have tables",
        (
            "what is stored outside the language model (model.visual: 2 tensors, 295,168 bytes) is held as the headers have it: "
            "no table says what its names and shapes should be"
        ),
        "none needed; compare the names with the published index if in doubt",
    ),
    "memory-capacity": Entry(
        "a rank needs more memory than the capacity given",
        "too few ranks, or an uneven partition: the last stage also holds the head and the MTP layer",
        "rank 3 needs 4.23 GiB for its parameters; the capacity is 4.00 GiB",
        "use more ranks, or the --layer-partition that the hint names, where one fits",
    ),
    "memory-activations": Entry(
        "the KV cache may leave too little memory for computing a batch",
        "a large --max-num-batched-tokens; the need is estimated from the shapes of the layers",
        ("rank 0: the KV cache leaves 9.57 GiB for batches and graphs, which may take 13.94 GiB (an estimate)"),
        "use a smaller --max-num-batched-tokens or a smaller KV cache",
    ),
    "memory-requests": Entry(
        "fewer requests of the full length fit into the KV cache at a time than --max-num-seqs allows",
        "a long --max-model-len with many requests",
        (
            "3 of 64 requests of 131,072 tokens fit into the KV cache at a time; more of this length wait, or are "
            "computed again"
        ),
        "use the --max-num-seqs or the --max-model-len that the hint names, or more ranks",
    ),
}
