"""Kernels alone, in the interpreter or on a device."""
