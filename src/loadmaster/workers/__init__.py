"""Worker processes, one for each rank: they load the model, run the engine's steps, and sample. Never imports `engine`.

`supervisor` starts and watches them from the engine's process, without torch; `worker` runs in each of them.
"""

from loadmaster.workers.sampling_params import SamplingParams
from loadmaster.workers.structured_outputs import StructuredOutputs

__all__ = ["SamplingParams", "StructuredOutputs"]
