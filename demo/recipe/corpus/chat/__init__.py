"""Conversations without tools, one file for each kind."""
