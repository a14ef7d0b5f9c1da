"""From the engine's outputs to deltas, and from deltas to the bytes of each API."""
