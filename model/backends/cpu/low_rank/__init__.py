"""Adapters: what rows get from the low-rank factors of theirs."""
