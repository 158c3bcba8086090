"""Training: optimizers, state, compiled steps, metrics, checkpoints and the loop."""
