"""`qwen-server merge`: a checkpoint with an adapter folded into its weights."""
