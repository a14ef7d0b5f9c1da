"""Tests of the Triton kernels and of what surrounds them."""
