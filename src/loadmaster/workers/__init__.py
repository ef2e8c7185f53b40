"""The processes that compute: one for each rank. They load, run what the engine sends, and sample. Never imports `engine`.

`supervisor` starts and watches them from the engine's process, without torch; `worker` is what runs in each.
"""

from loadmaster.workers.sampling_params import SamplingParams

__all__ = ["SamplingParams"]
