"""A step on the device: batch, cache, weights."""
