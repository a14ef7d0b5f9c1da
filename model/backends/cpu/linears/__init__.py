"""Products with packed weights of 4, 8, 16 or 32 bits, for few rows at a time."""
