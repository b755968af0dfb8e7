"""Training parameters that only show that everything runs."""

QUICK = {
    "updates": 2,
    "environments": 4,
    "rollout": 8,
    "epochs": 2,
    "minibatch": 16,
    "width": 16,
    "blocks": 1,
    "cloning_steps": 5,
    "validate_every": 1,
    "validation_episodes": 4,
    "validation_decisions": 5,
}
