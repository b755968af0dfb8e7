"""The request-level simulator and the Gymnasium environments built on it.

Importing this package registers ``opd/Pipeline-v0``; ``gymnasium.make("opd.simulator:opd/Pipeline-v0")`` imports it by
itself.
"""

import gymnasium

gymnasium.register(
    id="opd/Pipeline-v0",
    entry_point="opd.simulator.environment:PipelineEnv",
    vector_entry_point="opd.simulator.environment:PipelineVectorEnv",
)
