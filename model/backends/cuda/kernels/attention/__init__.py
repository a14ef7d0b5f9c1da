"""Attention over the paged cache, and what rotates queries and keys and writes to it."""
