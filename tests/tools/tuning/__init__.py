"""`convert`, `merge` and `finetune`: what transformers and peft make of our checkpoints, and we of theirs."""
