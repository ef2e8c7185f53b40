"""Plans and their proof: bind, compose, verify, derive a rank's reads. Runs without torch.

checkpoint = open_checkpoint(path)
plan = build_plan(checkpoint, ParallelLayout(pipeline_parallel_size=8))
proof = prove(plan)
"""

from loadmaster.plan.plan import Plan, build_plan
from loadmaster.plan.rank import Batch, RankPlan
from loadmaster.plan.specs import Grid, ParamSpec
from loadmaster.plan.strided import StridedRun, strided_run
from loadmaster.plan.verify import Proof, RankFigures, prove

__all__ = [
    "Batch",
    "Grid",
    "ParamSpec",
    "Plan",
    "Proof",
    "RankFigures",
    "RankPlan",
    "StridedRun",
    "build_plan",
    "prove",
    "strided_run",
]
