"""Proves the kernels on the device they meet, and puts torch's operations in the place of those that fail."""
