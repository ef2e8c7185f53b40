"""Payload: what only reading the bytes can show (`loadmaster verify`)."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

PAYLOAD: Final[dict[str, Entry]] = {
    "sha256-mismatch": Entry(
        "a file's SHA-256 is not the one recorded of it",
        "a damaged download, a failing disk, a file changed after its manifest was written",
        "",
        "fetch the file again; where it was changed on purpose, write the manifest anew",
    ),
    "sha256-record": Entry(
        "a manifest cannot be read, or records a file that is not there",
        "a manifest of another form or with a damaged line, an incomplete download",
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
    "value-all-zero": Entry(
        "every value of a weight or a norm is zero",
        "a sparse file whose bytes were never written, a download resumed over a hole, a tensor that was never trained",
        "",
        "fetch the shard again; biases and zero points, which may well be zero, are not reported",
    ),
    "copy-differs": Entry(
        "a tensor that the model takes for another one is stored, and differs from it",
        "a head trained apart under a config that ties it, an MTP layer whose embedding was not updated",
        "",
        "say in the config what is meant (tie_word_embeddings), or have the copies agree",
    ),
}
