"""Tests of server/responses."""
