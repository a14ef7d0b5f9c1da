"""Tests of server/batches."""
