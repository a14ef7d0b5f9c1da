"""Tests of what both processes live by."""
