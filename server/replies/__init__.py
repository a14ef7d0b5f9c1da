"""From the engine's outputs to deltas, and to bytes."""
