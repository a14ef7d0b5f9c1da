"""Tests of server/hubs."""
