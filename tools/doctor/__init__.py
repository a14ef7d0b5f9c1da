"""`qwen-server doctor`: what is installed and what the device is, whether the kernels work there, and what to do.

The part that needs torch. tools/doctor/command.py finds the checkpoint and starts this as a process of its own.
"""
