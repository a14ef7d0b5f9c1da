"""Matrix products of our own for few rows on a CPU: weights of 4 or 8 bits, compiled for the machine at start."""
