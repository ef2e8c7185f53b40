"""The payload's own checks: every byte of a checkpoint read once, for what headers cannot show. Runs without torch.

checkpoint = open_checkpoint(path)
result = verify_payload(survey_payload(checkpoint))
"""

from loadmaster.payload.journal import Journal
from loadmaster.payload.survey import Survey, survey_payload
from loadmaster.payload.verify import Verification, verify_payload

__all__ = ["Journal", "Survey", "Verification", "survey_payload", "verify_payload"]
