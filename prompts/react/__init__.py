"""The ReAct format of these models: written, and read back."""
