"""LoRA adapters: how they are read, kept and applied to the rows of a step."""
