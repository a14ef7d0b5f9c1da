"""Tests of tools/doctor."""
