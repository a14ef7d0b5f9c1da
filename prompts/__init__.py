"""Renders conversations in the formats the models were trained on, and parses their replies. No tensors, no wire."""
