"""`qwen-server memory`: what a checkpoint needs, told without loading it."""
