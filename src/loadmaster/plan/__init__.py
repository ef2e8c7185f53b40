"""Plans and their proof: bind, compose, verify, derive a rank's reads. Runs without torch.

checkpoint = open_checkpoint(path)
plan = build_plan(checkpoint, ParallelLayout(pipeline_parallel_size=8))
proof = prove(plan)
proven = proof.require_proven()  # what loads and runs takes no other plan
"""

from loadmaster.plan.plan import Plan, build_plan
from loadmaster.plan.proven import Proof, ProvenPlan, RankFigures
from loadmaster.plan.rank import Batch, RankPlan
from loadmaster.plan.specs import Grid, ParamSpec
from loadmaster.plan.strided import StridedRun, strided_run
from loadmaster.plan.verify import admit, prove
from loadmaster.plan.waivers import Waiver, WaiverRequest

__all__ = [
    "Batch",
    "Grid",
    "ParamSpec",
    "Plan",
    "Proof",
    "ProvenPlan",
    "RankFigures",
    "RankPlan",
    "StridedRun",
    "Waiver",
    "WaiverRequest",
    "admit",
    "build_plan",
    "prove",
    "strided_run",
]
