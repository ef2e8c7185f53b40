"""Plans and their proof: bind, compose, verify, derive a rank's reads. Runs without torch.

checkpoint = open_checkpoint(path)
plan = build_plan(checkpoint, ParallelLayout(pipeline_parallel_size=8))
proof = prove(plan)
proven = proof.require_proven()  # what loads and runs takes no other plan
"""

from loadmaster.plan.moves import MoveGroup
from loadmaster.plan.needed import NeededTensor, needed
from loadmaster.plan.plan import Plan, build_plan
from loadmaster.plan.proof import Proof, ProvenPlan, RankFigures, admit, prove
from loadmaster.plan.rank import RankPlan
from loadmaster.plan.shard_ranges import shard_ranges
from loadmaster.plan.specs import Division, Grid, ParamSpec, Rows
from loadmaster.plan.strided import StridedRun, strided_run
from loadmaster.plan.waivers import Waiver, WaiverRequest

__all__ = [
    "Division",
    "Grid",
    "MoveGroup",
    "NeededTensor",
    "ParamSpec",
    "Plan",
    "Proof",
    "ProvenPlan",
    "RankFigures",
    "RankPlan",
    "Rows",
    "StridedRun",
    "Waiver",
    "WaiverRequest",
    "admit",
    "build_plan",
    "needed",
    "prove",
    "shard_ranges",
    "strided_run",
]
