"""Layers of the transformer, free of any device."""
