"""Conversations without tools, a file a kind."""
