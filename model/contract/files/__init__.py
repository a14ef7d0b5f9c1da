"""The files of checkpoints and adapters, read without torch."""
