"""`qwen-server finetune`: trains an adapter, or all weights, on conversations."""
