"""Checks of the payload: reads every byte of a checkpoint once, for defects that headers cannot show. Needs no torch.

checkpoint = open_checkpoint(path)
result = verify_payload(survey_payload(checkpoint))
"""

from loadmaster.payload.journal import Journal
from loadmaster.payload.manifest import Manifest, check_writable, is_manifest, read_manifest, write_manifest
from loadmaster.payload.records import Records, read_sums
from loadmaster.payload.survey import Survey, survey_payload
from loadmaster.payload.verify import Verification, verify_payload

__all__ = [
    "Journal",
    "Manifest",
    "Records",
    "Survey",
    "Verification",
    "check_writable",
    "is_manifest",
    "read_manifest",
    "read_sums",
    "survey_payload",
    "verify_payload",
    "write_manifest",
]
