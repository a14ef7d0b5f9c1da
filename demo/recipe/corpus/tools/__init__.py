"""Conversations with tools: purposes, names and descriptions of tools, questions for them, and their results."""
