"""Payload: what only the bytes show (`loadmaster verify`)."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

PAYLOAD: Final[dict[str, Entry]] = {
    "sha256-mismatch": Entry(
        "a file's SHA-256 is not the recorded one",
        "a damaged download, a failing disk, a file changed after its manifest was written",
        "",
        "fetch the file again; where it was changed on purpose, write the manifest again",
    ),
    "sha256-record": Entry(
        "a manifest cannot be read, or records a file that is not there",
        "a manifest in another format or with a damaged line, an incomplete download",
        "",
        "write it as `sha256sum` does; fetch the file",
    ),
    "value-not-finite": Entry(
        "a tensor holds NaN or infinite values",
        "training that diverged, a conversion that overflowed (BF16 to F16), damaged bytes",
        "",
        "fetch the shard again; if it is published so, the conversion has to be repeated",
    ),
    "scale-implausible": Entry(
        "a scale has factors that are zero, negative, below 1e-15 or above 1e4 (the inverse where it is divided by)",
        "a quantiser without a guard for blocks of zeros, a scale stored as its inverse, damaged bytes",
        "",
        "quantise again; zeros in F16 or E4M3 may be underflow and are a warning, so are absurd sizes",
    ),
    "scale-unset": Entry(
        "all factors of an encoded weight are exactly 1, or all its exponents are 0 and its codes are not",
        "a converter that made the scales and did not fill them, scales dropped and created again by a loader",
        "",
        "quantise again; exponents of 0 are an error, since 2^-127 makes any weight zero, and factors of 1 are a warning",
    ),
    "scale-unchecked": Entry(
        "FP8 or packed tensors, or tensors that are called scales, could not be checked: nothing says what scales what",
        "a quantization_config that is missing or not supported, scales that were left out or have unusual names",
        "",
        "add quantization_config to config.json; the result is not sound while such tensors are unchecked",
    ),
    "index-implausible": Entry(
        (
            "an index of groups (g_idx) names groups that are not there (error), has groups of uneven sizes, is not in the"
            " order that the config says, or is that of another tensor (warnings)"
        ),
        "damaged bytes, a converter that mixed tensors up, desc_act set wrong",
        "",
        "fetch the shard again, or quantise again",
    ),
    "value-not-zero": Entry(
        "what is left unread because it should be zero is not: a GPTQ bias of a layer without bias, rows after the model's last",
        "a model with biases, or more heads, under a config that does not say so, a quantiser that moved an offset into the bias",
        "",
        "take the published config.json; where the values are meant, the model cannot be loaded without them",
    ),
    "value-contradicts": Entry(
        "the text beside a 4-bit weight (quant_state) says something else about the weight than the headers",
        "tensors of two conversions in one checkpoint, a block size other than 64, damaged bytes",
        "",
        "convert the model again; loading such a weight fails with the same words",
    ),
    "value-all-zero": Entry(
        "every value of a weight or a norm is zero (warning), or of all weights (error)",
        "a sparse file whose bytes were never written, a download resumed over a hole, a tensor that was never trained",
        "",
        "fetch the shard again; biases and zero points, which may well be zero, are not reported",
    ),
    "value-hole": Entry(
        "a run of zeros takes a sixteenth of a weight or more, or 1 MiB inside a layer's",
        "a download resumed over a hole, a sparse copy, a write that failed on a full disk",
        "",
        "fetch the shard again",
    ),
    "value-outlier": Entry(
        (
            "a weight's amplitude, values times factors, is more than 32 times that of its peers in other layers and experts"
            " or less than a 32nd, and far beyond their spread"
        ),
        "a scale of another tensor or in another unit, a scale applied twice or never, damaged bytes",
        "",
        "compare it with a known-good copy (--against), or fetch the shard again",
    ),
    "tensor-copied": Entry(
        "a layer, an expert or a tensor holds byte for byte what another one holds",
        "a converter that wrote one twice, shards merged wrongly, layers repeated on purpose",
        "",
        "fetch it again; in a model made by repeating layers this is expected",
    ),
    "copy-differs": Entry(
        "a tensor that the model shares with another one is stored, and differs from it",
        "a head trained apart under a config that ties it, an MTP layer whose embedding was not updated",
        "",
        "set tie_word_embeddings in the config to match, or make the copies equal",
    ),
    "manifest-differs": Entry(
        "a tensor is not what the known-good copy has (--against): other bytes, another shape, missing, or one too many",
        "damaged bytes, tensors that changed places, a shard of another revision",
        "",
        "fetch the shards that hold the tensors named; a manifest of a copy that was not sound itself is a warning",
    ),
}
