"""Products: with weights as they are, with quantised ones, with the low-rank factors of adapters."""
