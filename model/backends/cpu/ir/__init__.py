"""Writing kernels in LLVM's language: what their texts have in common."""
