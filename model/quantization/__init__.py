"""Quantised linear layers, made by an injected `make_linear`."""
