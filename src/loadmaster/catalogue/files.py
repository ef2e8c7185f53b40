"""Files: what is wrong with them before the model is considered."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

FILES: Final[dict[str, Entry]] = {
    "checkpoint-missing": Entry(
        "there is no such folder, hub model or URL, or it holds no safetensors file",
        (
            "a mistyped path; a repository that holds pickled or GGUF weights only, or a LoRA adapter; a download that"
            " fetched the small files only"
        ),
        "glm holds no .safetensors file",
        (
            "give the folder that holds config.json and the shards; convert pickled weights to safetensors; for"
            " `verify`, add --download for a model on the hub"
        ),
    ),
    "file-lfs-pointer": Entry(
        "a file is a Git LFS pointer of some 130 bytes instead of the file itself",
        "a repository cloned without Git LFS, or with GIT_LFS_SKIP_SMUDGE=1",
        (
            "model-00002-of-00003.safetensors: the file is a Git LFS pointer of 79 bytes, not the content "
            "itself (5,360,000,000 bytes); lost with it: 62 weights of layers 1-3"
        ),
        "run `git lfs install` and `git lfs pull` in the folder, or download it with `hf download`",
    ),
    "file-empty": Entry(
        "a file has no bytes",
        "a download that was killed as it began, or a full disk",
        "config.json: the file has no bytes",
        "fetch the file again",
    ),
    "limit-exceeded": Entry(
        (
            "a file, or the checkpoint, is larger than any that was ever published: a header, an index, a config, the number "
            "of tensors or shards, the length of a name"
        ),
        "a file made to exhaust memory, or a damaged one; a number in a shard's name that was mistyped",
        "config.json: it has 33 objects or lists within one another, and the limit is 32",
        "take the published file; the limits and their reasons are in docs/reference/limits.md",
    ),
    "shard-missing": Entry(
        "a shard is not in the folder, or not at its URL: the index names it, or the numbers in the other shards' names imply it",
        "an interrupted download, a copy that left a file out",
        (
            "model-00002-of-00003.safetensors: it is not in the folder; by the index it holds 106 tensor(s); "
            "lost with it: 62 weights of layers 1-3"
        ),
        "fetch that shard; the tensors lost with it are counted here and not reported one by one",
    ),
    "shard-unreadable": Entry(
        "a shard cannot be opened or read, or changed while it was read",
        (
            "permissions, a link to nothing (an emptied hub cache), a failing disk or network mount; a folder, a FIFO or a "
            "device in its place"
        ),
        (
            "model-00002-of-00003.safetensors: it cannot be read: No such file or directory; lost with it: 62 "
            "weights of layers 1-3"
        ),
        "fix the problem that the operating system reports",
    ),
    "file-truncated": Entry(
        "a shard ends before its last tensor does",
        "an interrupted download or copy, a full disk",
        (
            "model-00002-of-00003.safetensors: its tensors end at byte 1,574,280 of the data, but the file "
            "ends at 1,570,184: 4,096 missing"
        ),
        "fetch the shard again and compare its size with the published one",
    ),
    "file-overlong": Entry(
        "a shard continues after its last tensor ends",
        "a download resumed at the wrong place, two files written into one",
        (
            "model-00002-of-00003.safetensors: its tensors end at byte 1,574,280 of the data, but the file "
            "continues to 1,578,376"
        ),
        "fetch the shard again",
    ),
    "header-invalid": Entry(
        "a shard's header is not what the safetensors format allows",
        "another format under this name (a web page, an archive, a pickle), or damaged bytes",
        (
            "model-00002-of-00003.safetensors: the file is a web page, not a safetensors file; lost with it: 62"
            " weights of layers 1-3"
        ),
        "fetch the shard again, or fix the program that wrote it",
    ),
    "header-duplicate-key": Entry(
        "a header names one tensor twice",
        "a faulty writer; most readers silently use the last one",
        (
            "model.layers.1.mlp.experts.1.up_proj.weight: the header names it twice; lost with it: 62 weights "
            "of layers 1-3"
        ),
        "write the shard again; the header does not show which of the two is right",
    ),
    "header-unknown-dtype": Entry(
        "a header names a number format that the safetensors format does not have",
        "a writer of a newer format, or a faulty one",
        (
            "model.layers.1.mlp.experts.3.gate_proj.weight: its dtype is 'F8_E9M9', which the format does not "
            "have; lost with it: 62 weights of layers 1-3"
        ),
        "update this package, or write the shard with a known number format",
    ),
    "header-extent": Entry(
        "the bytes a header gives a tensor are not those its dtype and shape need",
        "a header edited without its data: a shape changed, packed values relabelled",
        (
            "model.layers.2.input_layernorm.weight: BF16 [321] needs 642 bytes, but the header gives it 640 "
            "(368,784 to 369,424)"
        ),
        "write the shard again from its source",
    ),
    "header-tiling": Entry(
        "the tensors of a file overlap, or leave a gap between them",
        "a faulty writer, or tensors cut out of a file in place",
        (
            "model.layers.1.mlp.experts.3.gate_proj.weight_scale_inv: "
            "model.layers.1.mlp.experts.3.gate_proj.weight and "
            "model.layers.1.mlp.experts.3.gate_proj.weight_scale_inv leave a gap: one ends at byte 30,720, the "
            "next begins at 30,784"
        ),
        "write the shard again from its source",
    ),
    "tensor-duplicate": Entry(
        "two shards hold a tensor of the same name",
        "two revisions in one folder, tied weights saved twice, shards merged by hand",
        (
            "model.layers.1.mlp.experts.3.gate_proj.weight: it is also in model-00002-of-00003.safetensors "
            "(and 105 more like it)"
        ),
        "remove the shards of the other revision, or add the index that says which counts",
    ),
    "shard-unindexed": Entry(
        "a shard that the index does not name holds tensors that no other shard has",
        "an index from before a layer or an adapter was added",
        (
            "model-00002-of-00003.safetensors: it holds model.layers.1.mlp.experts.3.gate_proj.weight and 105 "
            "more tensor(s) that no shard of the index has; ignored; lost with it: 62 weights of layers 1-3"
        ),
        "download or create the index again, or move the file away",
    ),
    "shard-stray": Entry(
        "a safetensors file in the folder does not belong to the checkpoint; it is not read",
        "shards of an earlier revision, the publisher's own consolidated file, an adapter",
        "consolidated.safetensors: the same weights in their publisher's own layout, not a shard; ignored",
        "none needed; remove the file if you do not want it",
    ),
    "index-invalid": Entry(
        "the index is not a JSON object with a weight_map of names to files",
        "a damaged or half-written index; the index is ignored, and all shards are read",
        ("model.safetensors.index.json: the index cannot be read: unexpected end of data: line 6 column 34 (char 100)"),
        "fetch the index again",
    ),
    "index-disagrees": Entry(
        "the index and the headers of the shards name different tensors or places",
        "a stale index: shards were written anew (quantised, merged, pruned) and the index was kept",
        (
            "model.layers.9.input_layernorm.weight: the index says that it is in "
            "model-00001-of-00003.safetensors, but that file's header does not have it"
        ),
        "download or create the index again; the headers are what is loaded",
    ),
    "index-total-size": Entry(
        "the index states a total size that is not that of the tensors",
        "an index copied from the checkpoint that this one was made from",
        (
            "model.safetensors.index.json: the index states a total size of 756,162,687,872 bytes, but the "
            "tensors have 4,724,128"
        ),
        "none needed for loading",
    ),
    "checkpoint-partial": Entry(
        "the folder has only some bytes of its shards: those that were asked for",
        "`loadmaster pull` with --stage or --rank, or `load` or `serve` of a URL, or an interruption of these",
        "loadmaster.partial.jsonl: a partial copy of owner/name: 0.0 KiB of 1.00 GiB are on disk",
        "pull what other ranks need with the same --local-dir; only ranks whose bytes are on disk can be loaded",
    ),
    "download-partial": Entry(
        "the folder holds an unfinished download, although no shard is missing",
        "an interrupted download that was later finished by other means",
        (
            "model-00002-of-00003.safetensors.aria2: aria2 did not finish model-00002-of-00003.safetensors: "
            "the file has its full size from the start, but may have holes"
        ),
        "remove it, or finish the download if it belongs to a file that is wanted",
    ),
}
