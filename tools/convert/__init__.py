"""`qwen-server convert`: a checkpoint in transformers' Qwen2 layout, and back."""
