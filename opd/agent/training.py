"""Training agents: the names that notebooks and studies need.

They stand here and not in the package itself because training needs torch, while :mod:`opd.agent.deployed` does not.
"""

from opd.agent.jobs import Job, run_jobs
from opd.agent.parameters import TrainingParameters
from opd.agent.ppo import read_metrics
from opd.agent.problem import agent_weights, build_problem

__all__ = ["Job", "TrainingParameters", "agent_weights", "build_problem", "read_metrics", "run_jobs"]
