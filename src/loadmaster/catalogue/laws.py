"""Laws: findings for a law that fails without another explanation."""

from __future__ import annotations

from typing import Final

from loadmaster.catalogue.entry import Entry

LAWS: Final[dict[str, Entry]] = {
    "law-destination": Entry(
        "an element of a parameter is never written, or is written more than once",
        "an error in a family's tables or in this package, never only in the checkpoint",
        "{block}.input_layernorm.weight: [320] is not filled exactly once by its 0 piece(s)",
        "report it with the plan's command line and config.json",
    ),
    "law-source": Entry(
        "a stored element is neither read nor waived, or read other than declared",
        "an error in a family's tables or in this package, never only in the checkpoint",
        "input_norm/weight (dense/full) is read by no parameter of any rank",
        "report it with the plan's command line and config.json",
    ),
    "law-cast": Entry(
        "a cast would narrow values without a declared reason",
        "an error in a family's tables or in this package, never only in the checkpoint",
        "{block}.input_layernorm.weight: F32 would be narrowed to BF16 without a reason",
        "report it with the plan's command line and config.json",
    ),
    "law-bytes": Entry(
        "the bytes needed do not add up to payload, waivers and replicas",
        "an error in a family's tables or in this package, never only in the checkpoint",
        "all ranks need 3,525,468 bytes, but payload 4,724,128 − waived 1,202,756 + replicas 0 = 3,521,372",
        "report it with the plan's command line and config.json",
    ),
}
