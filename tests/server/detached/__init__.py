"""Tests of server/detached."""
