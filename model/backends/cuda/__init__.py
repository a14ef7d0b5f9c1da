"""The CUDA backend: Triton kernels, graphs of decode steps, and the class that joins them. Needs the extra `cuda`."""
