"""The built-in checkpoint and the recipe that makes it."""
