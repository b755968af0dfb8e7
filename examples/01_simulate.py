"""Simulate a pipeline: what three fixed configurations are worth under one stretch of load.

The environment is Gymnasium's: an action is a variant, replicas - 1 and log2 of the batch size for every stage.
"""

import gymnasium
import numpy as np

from opd.pipeline import StageConfiguration, as_array, to_choices

CONFIGURATIONS = {
    "small models, one replica each": (0, 1, 1),
    "small models, two replicas, batches of 4": (0, 2, 4),
    "better models, four replicas, batches of 4": (1, 4, 4),
}


def main() -> None:
    """Run twenty minutes of the bundled load for each configuration, and print the means."""
    environment = gymnasium.make("opd.simulator.environment:opd/Pipeline-v0", pipeline="video")
    stages = len(environment.unwrapped.pipeline.tasks)
    print(f"{'configuration':42} {'reward':>7} {'QoS':>7} {'cores':>6} {'dropped':>8}")
    for name, stage in CONFIGURATIONS.items():
        action = to_choices(as_array((StageConfiguration(*stage),) * stages)).ravel()
        environment.reset(seed=0, options={"decision": 1000})
        infos, truncated = [], False
        while not truncated:
            _, _, _, truncated, info = environment.step(action)
            if info["refused"]:
                raise SystemExit(f"{name}: {info['refused']}")
            infos.append(info)
        reward, qos, cost = (np.mean([info[figure] for info in infos]) for figure in ("reward", "qos", "cost"))
        print(f"{name:42} {reward:7.2f} {qos:7.2f} {cost:6.1f} {sum(info['dropped'] for info in infos):8d}")


if __name__ == "__main__":
    main()
