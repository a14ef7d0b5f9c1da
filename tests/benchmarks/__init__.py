"""Tests of the scripts behind the figures."""
