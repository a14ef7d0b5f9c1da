"""Tests of server/replies."""
