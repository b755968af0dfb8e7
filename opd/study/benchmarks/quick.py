"""Training parameters that only show that everything runs."""

QUICK = {
    "updates": 2,
    "num_envs": 4,
    "rollout_steps": 8,
    "epochs": 2,
    "minibatch_size": 16,
    "width": 16,
    "blocks": 1,
    "cloning_steps": 5,
    "validate_every": 1,
    "validation_episodes": 4,
    "validation_decisions": 5,
}
