"""Triton kernels, one concern a file; each takes and returns torch tensors and knows nothing of sequences.

Sums are in float32. Offsets that grow with the KV cache or with the number of rows are 64 bits wide.
"""
