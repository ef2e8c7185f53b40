"""A finding: one reason why a checkpoint, a configuration and a layout do not fit together.

Findings are data. Every room that checks something returns them; nothing here raises or prints. The catalogue says for
each code what it means and what to do, so that the same words stand in reports and in the reference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect, reported once, at its cause.

    ``ranks`` are those whose parameters the defect touches (empty: all, or none in particular). ``tensor`` is a name in
    the checkpoint, ``param`` a name in the running model, ``file`` a file's name. ``message`` says what was expected and
    what was found, ``hint`` what to do.
    """

    code: str
    severity: Severity
    message: str
    tensor: str | None = None
    param: str | None = None
    file: str | None = None
    hint: str | None = None
    ranks: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the finding as JSON values, every field present."""
        return asdict(self) | {"ranks": list(self.ranks)}


CATALOGUE: Final[dict[str, str]] = {
    # files
    "checkpoint-missing": "the folder does not exist, or holds no safetensors file",
    "shard-missing": "the index names a shard that is not in the folder",
    "shard-unreadable": "a shard cannot be opened or read",
    "shard-stray": "a shard lies in the folder that the index does not name",
    "header-invalid": "a shard's header is not what the safetensors format allows",
    "header-duplicate-key": "a header names one tensor twice",
    "header-unknown-dtype": "a header names a number format that the safetensors format does not have",
    "header-extent": "the bytes a header gives a tensor are not those its dtype and shape need",
    "header-tiling": "the tensors of a file overlap, or leave a gap between them",
    "file-truncated": "a shard ends before its last tensor does",
    "file-overlong": "a shard goes on after its last tensor ends",
    "tensor-duplicate": "two shards hold a tensor of the same name",
    "index-invalid": "the index is not a JSON object with a weight_map of names to files",
    "index-disagrees": "the index and the headers of the shards name different tensors or places",
    "index-total-size": "the index states a total size that is not that of the tensors",
    # configuration
    "config-missing": "there is no config.json",
    "config-invalid": "config.json is not a JSON object, or a key is missing or has an impossible value",
    "architecture-unknown": "the config names an architecture that is not described here",
    "unsupported": "what the config declares, or what was asked, is sound but not supported yet",
    "plan-invalid": "what was given as a plan is none, or one that this version would make differently",
    "format-contradiction": "headers and the config's quantization_config say different things",
    # binding
    "tensor-missing": "a parameter needs a tensor that no shard holds",
    "scale-missing": "a quantised weight has no scale",
    "scale-stray": "a scale lies beside a weight that is not quantised",
    "tensor-unexpected": "a stored tensor is neither needed by any parameter nor waived",
    "shape-mismatch": "a tensor's shape is not the one that the config gives it",
    "dtype-inadmissible": "a tensor is stored in a form that its parameter does not allow",
    "dtype-noted": "a tensor is stored in another form than its neighbours, and is loaded as it is",
    "expert-incomplete": "some experts of a layer are missing",
    # layout
    "layout-stages": "the layers cannot be divided over the pipeline stages as asked",
    "layout-indivisible": "a dimension does not divide over the tensor-parallel ranks",
    "layout-block-cut": "a cut falls inside a quantisation block where that is not possible",
    "draft-missing": "speculative decoding with MTP was asked for, and the checkpoint has no MTP layer",
    "memory-capacity": "a rank needs more memory than the capacity given",
    # the laws, should one fail with nothing above to explain it
    "law-destination": "an element of a parameter is written never or more than once",
    "law-source": "a stored element is neither read nor waived, or read other than declared",
    "law-cast": "a cast would narrow values without a declared reason",
    "law-bytes": "the bytes needed do not add up to payload, waivers and replicas",
}
"""Every code that a finding can carry, with its meaning."""


def errors(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings that stand in the way of a proof."""
    return tuple(f for f in findings if f.severity == "error")
