"""Tensors: what is missing, left over, or in a form that does not fit; whole layers first, notes last."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

TENSORS: Final[dict[str, Entry]] = {
    "layer-missing": Entry(
        "a layer has none of its tensors",
        "num_hidden_layers of another size of the model, a pruned checkpoint, an MTP layer that was not published",
        "model.layers.2.*: no shard holds any tensor of layer 2: 31 weights are missing",
        "take the config.json that belongs to the checkpoint, or the shards that hold the layer",
    ),
    "expert-incomplete": Entry(
        "some experts of a layer have none of their tensors",
        "pruned experts under the original config, a conversion that lost a rank's experts",
        "model.layers.2.mlp.experts.1.*: experts 1, 3 (of 4) of layers 2-3 are in no shard",
        "n_routed_experts (num_experts) must be the number stored; convert again where some were lost",
    ),
    "tensor-missing": Entry(
        "a parameter needs a tensor that no shard holds",
        "a renamed tensor (a prefix added or lost), a checkpoint of another version of the architecture",
        "model.layers.2.self_attn.o_proj.weight: expected BF16 or F16 or F32 or F8_E4M3 [320, 256], in no shard",
        "compare with the nearest name that the hint gives; `loadmaster inspect --match` lists what is stored",
    ),
    "tensor-unexpected": Entry(
        "a stored tensor is neither needed by any parameter nor waived",
        "a config that describes less than is stored (shared indexers, no bias)",
        "model.layers.3.self_attn.indexer.*: 7 tensors that belong to no parameter of this architecture",
        "take the config.json that belongs to the checkpoint; remove what does not belong, or waive it with --waive",
    ),
    "waiver-read": Entry(
        "a requested waiver matches tensors that the model needs; they are read anyway",
        "a pattern that is too wide, or an attempt to leave out a tensor that the model needs",
        (
            "the waiver 'model.layers.2.input_layernorm.*': it matches one that is needed by the model and still read: "
            "model.layers.2.input_layernorm.weight"
        ),
        "narrow the pattern; what is missing or misshapen cannot be waived",
    ),
    "waiver-unused": Entry(
        "a requested waiver leaves nothing unread",
        "a pattern that matches no stored tensor, or only tensors that are waived without it",
        "the waiver 'model.vision.*' has no effect: it matches no stored tensor",
        "remove the waiver, or correct its pattern",
    ),
    "shape-mismatch": Entry(
        "a tensor's shape is not the one that the config gives it",
        "a config of another size of the model, a resized vocabulary, a tensor stored transposed or cut",
        "lm_head.weight: expected [384, 320] from the config, found [320, 320]",
        "take the config.json that belongs to the checkpoint",
    ),
    "dtype-inadmissible": Entry(
        "a tensor is stored in a form that its parameter does not allow",
        "a conversion that quantised what must stay (norms, routers), or another quantisation method than claimed",
        "model.layers.2.input_layernorm.weight: expected BF16 or F16 or F32, found F8_E4M3",
        "convert again with these modules left out, or correct quantization_config",
    ),
    "scale-missing": Entry(
        "a quantised weight has no scale",
        "a conversion that named scales differently (`weight_scale` for `weight_scale_inv`) or dropped some",
        (
            "model.layers.2.self_attn.indexer.wk.weight_scale_inv: no shard holds it; "
            "model.layers.2.self_attn.indexer.wk.weight is F8_E4M3 (fp8_block) and needs it as F32 or F8_E8M0 [1, 3]"
        ),
        "compare with the nearest name that the hint gives; convert again where it is lost",
    ),
    "scale-stray": Entry(
        "a scale is stored next to a weight that is not quantised, or whose format has no scale",
        "a weight dequantised and its scale left behind, or a weight mislabelled",
        (
            "model.layers.2.self_attn.o_proj.weight_scale_inv: it is stored next to "
            "model.layers.2.self_attn.o_proj.weight, which is BF16 and not quantised"
        ),
        "remove the scale if the weight is right; else store the weight in its quantised format again",
    ),
    "format-contradiction": Entry(
        "headers and the config's quantization_config say different things",
        "a list of unquantised modules that is not that of the checkpoint, a BF16 MTP layer in a quantised model",
        ("model.layers.2.self_attn.o_proj.weight: config says unquantised, file says F8_E4M3; using the file"),
        "as a warning: none, the file is used; as an error: add the missing quantization_config",
    ),
    "parts-differ": Entry(
        (
            "the parts of one fused parameter are all quantised, but in different ways: it is dequantised to the model's dtype, "
            "which takes more memory"
        ),
        "shards of two conversions in one checkpoint, scales of some experts written in another number format",
        (
            "model.layers.2.self_attn.q_a_proj.weight_scale_inv: it is F8_E8M0, other parts of "
            "layers.2.self_attn.fused_qkv_a_proj.weight use F32; "
            "layers.2.self_attn.fused_qkv_a_proj.weight is dequantised to BF16"
        ),
        "none needed, the values are right; to keep it quantised, store all parts in one format",
    ),
    "dtype-noted": Entry(
        "a tensor is stored in another form than its neighbours, and is loaded as it is",
        "a mixed-precision conversion",
        "model.layers.2.mlp.gate.e_score_correction_bias: stored as BF16, expected F32; using the file",
        "none needed",
    ),
}
