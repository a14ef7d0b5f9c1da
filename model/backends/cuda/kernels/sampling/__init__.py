"""Choosing tokens from logits; `sample_rows` starts the kernels of the other files one after another."""
