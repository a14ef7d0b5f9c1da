"""Tests of server/gates."""
