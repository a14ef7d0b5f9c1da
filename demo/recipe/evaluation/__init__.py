"""Evaluation of the weights on tools, wordings and values that training never draws."""
