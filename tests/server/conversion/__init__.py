"""Tests of server/conversion."""
