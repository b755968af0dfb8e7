"""Online pipeline decisions: adaptive configuration of multi-model inference pipelines at the edge.

The modules follow the paper: the pipeline and its configurations (Sec. III), what they are worth
(Eqs. 1-4 and 7), the workload and its forecast, the simulator, the policies and the agent (Sec. IV),
and their evaluation (Sec. V).
"""

__version__ = "0.1.0"
