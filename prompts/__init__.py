"""Conversations as the models were trained to read them, and replies as clients expect them. No tensors, no wire."""
