"""Kernels tried beside torch before they serve, and timed by the doctor."""
