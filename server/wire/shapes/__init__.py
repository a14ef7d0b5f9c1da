"""Requests and replies of each API: what fields there are, their types and bounds."""
