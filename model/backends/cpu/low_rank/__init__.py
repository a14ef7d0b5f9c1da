"""Adapters: low-rank factors, packed, and the kernel that adds their products to the rows that have them."""
